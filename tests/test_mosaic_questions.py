"""Every question of a mosaic has one answer, distractors that share an attribute, and pictures that differ
where it says."""

import re

import numpy as np
import pytest

from arr_coc.eval.mosaic_questions import KINDS, Asked, Question, mosaics
from arr_coc.training.scenes import CUE_COLOURS, PLACES


def answered(asked: Asked, question: Question) -> tuple[str, int]:
    """Answer and tile, read off the tiles by somebody who was only given the text."""
    tiles, text = asked.tiles, question.text
    places = [p[0] for p in PLACES[asked.grid]]
    if found := re.fullmatch(r"where is the (\w+) (\w+)\?", text):
        (cell,) = [c for c, t in enumerate(tiles) if t == (found[2], found[1])]
        return places[cell], cell
    if found := re.fullmatch(r"what colour is the (\w+)\?", text):
        (cell,) = [c for c, t in enumerate(tiles) if t[0] == found[1]]
        return tiles[cell][1], cell
    if found := re.fullmatch(r"what is the (\w+) item\?", text):
        (cell,) = [c for c, t in enumerate(tiles) if t[1] == found[1]]
        return tiles[cell][0], cell
    found = re.fullmatch(r"what is in the (.+)\?", text)
    assert found is not None
    return tiles[places.index(found[1])][0], places.index(found[1])


def changed(one: np.ndarray, other: np.ndarray, grid: int) -> set[int]:
    """Tiles in which two pictures differ."""
    side = 96 // grid
    differ = (one != other).any(2)
    return {
        r * grid + c
        for r in range(grid)
        for c in range(grid)
        if differ[r * side : (r + 1) * side, c * side : (c + 1) * side].any()
    }


@pytest.mark.parametrize("grid", [2, 3])
def test_questions_have_one_answer_and_two_different_tiles(grid: int) -> None:
    made = mosaics(grid, 24, 0)
    assert {q.kind for a in made for q in a.questions} == set(KINDS)
    for asked in made:
        assert len(set(asked.tiles)) == grid * grid
        first, second = asked.questions
        assert first.cell != second.cell
        assert not (asked.truth(first) & asked.truth(second)).any()
        for question in asked.questions:
            assert answered(asked, question) == (question.answer, question.cell)
            name, colour = asked.tiles[question.cell]
            others = [t for c, t in enumerate(asked.tiles) if c != question.cell]
            assert any((s == name) != (c == colour) for s, c in others)
            if question.kind == "where":
                assert any(s == name for s, _ in others)
                assert any(c == colour for _, c in others)


@pytest.mark.parametrize("grid", [2, 3])
def test_changed_pictures_differ_where_they_say_and_nowhere_else(grid: int) -> None:
    for asked in mosaics(grid, 24, 1):
        image = np.asarray(asked.image)
        for question in asked.questions:
            flipped, answer = question.flipped
            assert answer != question.answer
            where = changed(image, np.asarray(flipped), grid)
            assert question.cell in where
            assert len(where) == (2 if question.kind == "where" else 1)
            kept = changed(image, np.asarray(question.stays), grid)
            assert kept
            assert question.cell not in kept


def test_a_seed_draws_the_same_mosaics_and_another_split_others() -> None:
    first, again = mosaics(2, 6, 3), mosaics(2, 6, 3)
    assert [a.tiles for a in first] == [a.tiles for a in again]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, again, strict=True))
    assert [a.tiles for a in mosaics(2, 6, 3, split="train")] != [a.tiles for a in first]
    assert [a.tiles for a in mosaics(2, 6, 4)] != [a.tiles for a in first]


def test_tiles_stand_in_every_place_alike() -> None:
    cells = [q.cell for a in mosaics(2, 400, 0) for q in a.questions]
    share = np.bincount(cells, minlength=4) / len(cells)
    assert abs(share - 0.25).max() < 4 * (0.25 * 0.75 / len(cells)) ** 0.5
    colours = [c for a in mosaics(2, 100, 0) for _, c in a.tiles]
    assert set(colours) == set(CUE_COLOURS)


def test_what_there_is_not_is_refused() -> None:
    for wrong, message in (
        ({"grid": 4}, "grid=4"),
        ({"kinds": ("who",)}, "possible are where"),
        ({"kinds": ()}, "possible are where"),
        ({"split": "dev"}, "no split"),
        ({"count": 0}, "count=0"),
    ):
        with pytest.raises(ValueError, match=message):
            mosaics(**{"grid": 2, "count": 1, "seed": 0} | wrong)
