"""Scenes: the masks are exact, the colours are closed form, and what training must not see it cannot see."""

import numpy as np
import pytest

from arr_coc.training import items, scenes
from arr_coc.training.captions import World


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.mark.parametrize("grid", scenes.GRIDS)
def test_the_cells_of_a_grid_partition_the_tokens(grid: int) -> None:
    masks = np.stack([scenes.cell_mask(grid, cell) for cell in range(grid * grid)])
    assert masks.shape == (grid * grid, 12, 12)
    assert (masks.sum(0) == 1).all()
    assert (masks.sum((1, 2)) == 144 // grid**2).all()


@pytest.mark.parametrize("grid", scenes.GRIDS)
def test_an_item_changes_no_pixel_outside_its_mask(grid: int) -> None:
    rng = np.random.default_rng(grid)
    white = np.full((20, 20, 4), 255, np.uint8)
    for cell in range(grid * grid):
        cells = [white if c == cell else None for c in range(grid * grid)]
        image, masks = scenes.compose(cells, grid, (0, 0, 0), rng)
        changed = np.asarray(image).any(2).reshape(12, 8, 12, 8).any((1, 3))  # (12, 12) tokens
        assert changed.any()
        assert not (changed & ~masks[cell]).any()
        assert masks.sum() == 144 // grid**2  # blank cells have no mask


def test_scale_and_shift_stay_in_the_cell_and_vary() -> None:
    rng = np.random.default_rng(0)
    white = np.full((8, 8, 4), 255, np.uint8)
    areas = set()
    for _ in range(20):
        image, _ = scenes.compose([white, None, None, None], 2, (0, 0, 0), rng)
        lit = np.asarray(image).any(2)
        assert not lit[48:].any()
        assert not lit[:, 48:].any()
        areas.add(int(lit.sum()))
    assert len(areas) > 5
    assert min(areas) >= round(48 * 0.72) ** 2
    assert max(areas) <= 48**2


def test_tint_has_its_closed_form() -> None:
    grey = np.array([[0, 51, 255]], np.uint8)
    rgba = scenes.tint(grey, (200, 100, 50))
    assert rgba[0, 0, 3] == 0
    assert rgba[0, 1, 3] == 204  # min(1, 4 * .2) * 255
    assert rgba[0, 2].tolist() == [200, 100, 50, 255]
    assert np.abs(rgba[0, 1, :3].astype(int) - [88, 44, 22]).max() <= 1  # .3 + .7 * .2 = .44
    assert (scenes.tint(grey, "red") == scenes.tint(grey, scenes.COLOURS["red"])).all()


def test_a_tinted_garment_is_nearest_to_its_own_colour() -> None:
    garments, _, _ = items.fashion("test")
    hue = {k: np.array(v) / np.linalg.norm(v) for k, v in scenes.COLOURS.items() if k in scenes.CUE_COLOURS}
    for row, colour in enumerate(scenes.CUE_COLOURS):
        rgba = scenes.tint(garments[row], colour).astype(float)
        mean = (rgba[..., :3] * rgba[..., 3:]).sum((0, 1))
        assert max(hue, key=lambda k: hue[k] @ (mean / np.linalg.norm(mean))) == colour


def test_the_six_cues_are_there() -> None:
    assert scenes.CUE_COLOURS == ("red", "green", "blue", "yellow", "pink", "cyan")


def test_place_phrases_name_rows_columns_and_cells() -> None:
    two, three = scenes.place_phrases(2), scenes.place_phrases(3)
    assert two["top left"].sum() == 36
    assert two["top left"][:6, :6].all()
    assert three["centre"][4:8, 4:8].all()
    assert three["centre"].sum() == 16
    assert (three["middle row"] == three["middle left"] | three["centre"] | three["middle right"]).all()
    assert (three["right column"] == three["top right"] | three["middle right"] | three["bottom right"]).all()
    assert (two["left"] == two["top left"] | two["bottom left"]).all()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: scenes.compose([None] * 3, 2), "grid^2 cells"),
        (lambda: scenes.compose([None] * 25, 5), "grid is one of"),
        (lambda: scenes.compose([None] * 4, 2), "needs an rng"),
        (lambda: scenes.compose([np.zeros((4, 4, 3), np.uint8)], 1, jitter=False), "RGBA|(h, w, 4)"),
        (lambda: scenes.cell_mask(2, 4), "cell"),
        (lambda: scenes.tint(np.zeros((4, 4)), "red"), "uint8"),
        (lambda: items.emoji("apple"), "no artwork 'apple'"),
        (lambda: items.fashion("val"), "train"),
        (lambda: items.shape("star", np.random.default_rng(0)), "circle"),
    ],
)
def test_bad_input_is_named(call, says: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert any(part in str(error.value) for part in says.split("|"))


def test_an_unknown_colour_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="cyan"):
        scenes.tint(np.zeros((4, 4), np.uint8), "mauve")


def test_a_scene_is_bit_equal_for_equal_seeds(world: World) -> None:
    first, second = (
        [world.sample(rng) for _ in range(10)] for rng in (np.random.default_rng(3), np.random.default_rng(3))
    )
    for a, b in zip(first, second, strict=True):
        assert (a.pixels == b.pixels).all()
        assert a.caption == b.caption
        assert [p.text for p in a.phrases] == [p.text for p in b.phrases]
    assert len({s.caption for s in first}) > 5


def test_every_phrase_names_exactly_the_cells_it_is_true_of(world: World) -> None:
    rng = np.random.default_rng(5)
    kinds = set()
    for _ in range(60):
        scene = world.sample(rng)
        for phrase in scene.phrases:
            kinds.add(phrase.kind)
            if phrase.kind == "place":
                continue
            expected = np.zeros(144, bool)
            for cell, (concept, colour) in enumerate(zip(scene.concepts, scene.colours, strict=True)):
                if concept < 0:
                    continue
                if phrase.kind == "colour":
                    true = colour in phrase.text.split()
                elif phrase.kind == "both":
                    true = phrase.text.endswith(f"{colour} {world.names[concept]}")
                else:
                    words = {world.names[concept], *world.keywords[concept]}
                    true = any(
                        phrase.text in (w, f"the {w}") or phrase.text.endswith(f" a {w}") for w in words
                    )
                    true |= phrase.text == f"a {world.names[concept]}" or concept in world.told[phrase.text]
                if true:
                    expected |= scene.masks[cell]
            assert (phrase.mask == expected).all(), phrase.text
    assert kinds == {"name", "both", "group", "colour", "place"}


def test_training_shows_no_held_out_concept_and_no_garment(world: World, monkeypatch) -> None:
    monkeypatch.setattr(items, "fashion", lambda split: pytest.fail("training read a garment"))
    fresh = World()
    noto = items.emoji("noto")
    held = {noto.hexcodes[i] for i in np.flatnonzero(noto.held_out)}
    assert held.isdisjoint(noto.hexcodes[row] for row in fresh.rows)
    assert fresh.emoji == (~noto.held_out).sum()
    fresh.sample(np.random.default_rng(0))
    assert (world.images[0] == noto.images[~noto.held_out]).all()


def test_both_artworks_hold_out_the_same_seventh_of_concepts() -> None:
    noto, twemoji = items.emoji("noto"), items.emoji("twemoji")
    assert noto.names == twemoji.names
    assert (noto.held_out == twemoji.held_out).all()
    assert 0.12 < noto.held_out.mean() < 0.18
    assert not (noto.images == twemoji.images).all((1, 2, 3)).any()  # two artworks, not one twice


def test_the_shipped_data_is_complete_small_and_attributed() -> None:
    assert [len(items.fashion(s)[0]) for s in ("train", "test")] == [20_000, 10_000]
    assert items.fashion("train")[0].shape[1:] == (28, 28)
    assert np.bincount(items.fashion("test")[1]).tolist() == [1000] * 10
    size = sum(f.stat().st_size for f in items.DATA.iterdir() if f.is_file())
    assert size < 40e6
    told = (items.DATA / "ATTRIBUTION.md").read_text()
    for parquet in items.DATA.glob("*.parquet"):
        assert parquet.name in told
    assert {"LICENSE.Apache-2.0.txt", "LICENSE.MIT.txt"} <= {f.name for f in items.DATA.iterdir()}


def test_missing_data_says_how_to_write_it(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(items, "DATA", tmp_path)
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        items._table("noto")
