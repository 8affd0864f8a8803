"""Mosaics: balance, truths and distinctness are counted, not trusted."""

import numpy as np
import pytest

from arr_coc.eval.relevance_protocols import KINDS, latin_square, mosaics
from arr_coc.training import items, scenes
from arr_coc.training.questions import emoji_names


@pytest.mark.parametrize("m", [4, 9, 16])
def test_a_latin_square_has_every_item_once_in_every_row_and_column(m: int) -> None:
    square = latin_square(m, np.random.default_rng(m))
    everything = np.arange(m)
    assert (np.sort(square, 0) == everything[:, None]).all()
    assert (np.sort(square, 1) == everything).all()
    assert (latin_square(m, np.random.default_rng(m + 1)) != square).any()


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_item_stands_in_every_cell_once(kind: str) -> None:
    made = mosaics(kind, 2, 3)
    m = KINDS[kind].grid ** 2
    assert [x.square for x in made] == [0] * m + [1] * m
    for square in (0, 1):
        texts = np.array([x.asked for x in made if x.square == square])
        assert texts.shape == (m, m)
        for column in texts.T:
            assert sorted(column) == sorted(texts[0])
        assert len(set(texts[0])) == m
    for one in made:
        assert one.image.size == (96, 96)
        assert one.truths.shape == (m, 12, 12)
        assert (one.truths.sum(0) == 1).all()  # cells share no token and leave none out
        assert len(set(one.absent)) == 2
        assert not set(one.absent) & set(one.asked)


def test_the_seed_draws_the_same_ones() -> None:
    first, again, other = (mosaics("emoji-3x3", 1, seed) for seed in (5, 5, 6))
    for a, b in zip(first, again, strict=True):
        assert (a.asked, a.absent) == (b.asked, b.absent)
        assert (np.asarray(a.image) == np.asarray(b.image)).all()
    assert [m.asked for m in first] != [m.asked for m in other]


def test_emoji_are_seen_concepts_and_garments_have_colours_of_their_own() -> None:
    seen = {name for name, _ in emoji_names(held_out=False)}
    held = {n for n, out in zip(items.emoji("noto").names, items.emoji("noto").held_out, strict=True) if out}
    asked = {t for m in mosaics("emoji-4x4", 1, 0) for t in (*m.asked, *m.absent)}
    assert asked <= seen
    assert not asked & held
    assert all(set(m.asked) == set(scenes.COLOURS) for m in mosaics("garments-3x3", 1, 0))


def test_a_cell_shows_what_its_text_says() -> None:
    """The mean colour of a tinted garment's cell is nearest to its own word's, less the background, in most
    cells."""
    right = []
    names, palette = list(scenes.COLOURS), np.array(list(scenes.COLOURS.values()), float)
    for mosaic in mosaics("garments-3x3", 1, 1):
        pixels = np.asarray(mosaic.image, float).reshape(3, 32, 3, 32, 3).swapaxes(1, 2).reshape(9, -1, 3)
        for cell, text in zip(pixels, mosaic.asked, strict=True):
            near = ((cell[:, None] - palette) ** 2).sum(2)
            right.append(near.min(0)[names.index(text)] < 4000)
    assert np.mean(right) > 0.9


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="emoji-3x3, emoji-4x4, garments-3x3"):
        mosaics("emoji-5x5", 1, 0)
    with pytest.raises(ValueError, match="one or more"):
        mosaics("emoji-3x3", 0, 0)
    with pytest.raises(ValueError, match="9 colours"):
        KINDS["garments-3x3"].draw(np.random.default_rng(0), 10)
