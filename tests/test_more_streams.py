"""Garments in domains, emoji by artwork and by group, easy-VQA by kind: what each stream claims of itself."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from arr_coc.eval import run
from arr_coc.training import stream_fashion_domains as domains
from arr_coc.training import streams
from arr_coc.training.items import SHIPPED, emoji, fashion
from fakes import CLASSES, CONFIG, FakeProcessor, fake_store, tiny_clip

SMALL = {
    "permuted-fashion": {"n_train": 60, "n_test": 40},
    "rotated-fashion": {"n_train": 60, "n_test": 40},
    "emoji-vendors": {"n_train": 240, "n_test": 200},
    "emoji-groups": {"n_train": 192, "n_test": 64},
    "easy-vqa": {"n_train": 60, "n_test": 30},
}
PARTS = {"permuted-fashion": 10, "rotated-fashion": 10, "emoji-vendors": 4, "emoji-groups": 8, "easy-vqa": 3}


def load(name: str, **options) -> streams.Stream:
    return streams.load(name, **{"seed": 3, **SMALL[name], **options})


def told(samples) -> dict[int, tuple[str, bytes]]:
    return {s["index"]: (s["label"], np.asarray(s["image"]).tobytes()) for s in samples}


@pytest.mark.parametrize("name", SMALL)
def test_sizes_are_exact_nothing_comes_twice_and_orders_share_their_samples(name: str) -> None:
    one, again, other = load(name), load(name), load(name, order=1)
    train = list(one)  # a sample twice would stop it
    assert len(train) == SMALL[name]["n_train"]
    assert [len(p) for p in one.probes] == [SMALL[name]["n_test"] // PARTS[name]] * PARTS[name]
    assert Counter(s["experience"] for s in train) == dict.fromkeys(
        range(PARTS[name]), SMALL[name]["n_train"] // PARTS[name]
    )
    assert [s["experience"] for s in train] == sorted(s["experience"] for s in train)
    assert told(train) == told(again) == told(other)
    assert list(told(train)) == list(told(again)) != list(told(other))
    assert one.experiences != other.experiences
    assert sorted(one.experiences) == sorted(other.experiences)
    assert told(train) != told(load(name, seed=4))


@pytest.mark.parametrize("name", SMALL)
def test_labels_are_candidates_and_known_without_rendering(name: str) -> None:
    stream = load(name)
    for samples in (stream.samples, *stream.probes):
        for key, sample in zip(samples.keys, samples, strict=True):
            assert samples.told(key) == sample["label"]
            assert sample["label"] in sample["candidates"]
    for e, probe in enumerate(stream.probes):
        for sample in probe:
            assert sample["experience"] == e
            assert sample["candidates"] == stream.classes


@pytest.mark.parametrize("name", ["permuted-fashion", "rotated-fashion", "emoji-vendors"])
def test_in_domains_all_classes_are_candidates_from_the_first(name: str) -> None:
    stream = load(name)
    assert all(s["candidates"] == stream.classes for s in stream.samples)


def test_a_domain_is_a_permutation_of_its_own_and_the_first_is_none() -> None:
    """A permuted picture has the pixels of the garment, and is enlarged after that."""
    found = domains.permutations(3, 10)
    assert (found[0] == np.arange(784)).all()
    assert all((np.sort(p) == np.arange(784)).all() for p in found)
    assert len({p.tobytes() for p in found}) == 10
    stream = load("permuted-fashion")
    for place in range(0, 60, 6):
        sample = stream.samples[place]
        number = int(stream.experiences[sample["experience"]][0].removeprefix("permutation "))
        grey = fashion("train")[0][sample["index"]].reshape(-1)[found[number]].reshape(28, 28)
        wanted = np.asarray(Image.fromarray(grey).resize((96, 96), Image.Resampling.BICUBIC))
        assert (np.asarray(sample["image"])[..., 1] == wanted).all()


def test_angles_are_one_from_each_slice_of_half_a_turn() -> None:
    for seed in range(20):
        assert [int(a // 18) for a in domains.angles(seed, 10)] == list(range(10))
    assert domains.angles(0, 10) != domains.angles(1, 10)


def test_a_rotated_picture_is_the_garment_turned_by_its_domains_angle() -> None:
    """Turned back, the middle of it is the upright garment, up to interpolation."""
    stream = load("rotated-fashion", n_train=20, n_test=20)
    angles = domains.angles(3, 10)
    for sample in stream.samples:
        said = stream.experiences[sample["experience"]][0]
        angle = next(a for a in angles if f"{a:.0f} degrees anticlockwise" == said)
        back = np.asarray(sample["image"].rotate(-angle, Image.Resampling.BILINEAR), float)[30:66, 30:66, 0]
        upright = Image.fromarray(fashion("train")[0][sample["index"]])
        wanted = np.asarray(upright.resize((96, 96), Image.Resampling.BICUBIC), float)[30:66, 30:66]
        assert np.abs(back - wanted).mean() < 12
        assert np.corrcoef(back.ravel(), wanted.ravel())[0, 1] > 0.9 or wanted.std() < 8


@pytest.mark.parametrize("name", ["emoji-vendors", "emoji-groups"])
def test_concepts_are_held_out_ones_that_every_artwork_has(name: str) -> None:
    stream, art = load(name), emoji("noto")
    rows = [art.names.index(c.removeprefix("a photo of a ")) for c in stream.classes]
    assert len(set(rows)) == len(stream.classes) == (50 if name == "emoji-vendors" else 64)
    assert art.held_out[rows].all()
    assert all(emoji(a).images[r, ..., 3].any() for a in SHIPPED for r in rows)
    assert "flags" not in {art.groups[r] for r in rows}


def test_vendors_show_every_concept_in_each_artwork() -> None:
    stream = load("emoji-vendors")
    assert sorted(e[0] for e in stream.experiences) == sorted(SHIPPED)
    for turn in range(4):
        shown = [s for s in stream.samples if s["experience"] == turn]
        assert {s["label"] for s in shown} == set(stream.classes)
        counts = Counter(s["label"] for s in shown).values()
        assert max(counts) - min(counts) <= 1


def test_groups_bring_their_own_classes_and_are_examined_in_another_artwork() -> None:
    stream, art = load("emoji-groups"), emoji("noto")
    for turn, taught in enumerate(stream.experiences):
        rows = [art.names.index(c.removeprefix("a photo of a ")) for c in taught]
        assert len({art.groups[r] for r in rows}) == 1
        labels = Counter(s["label"] for s in stream.samples if s["experience"] == turn)
        assert labels == dict.fromkeys(taught, 3)
    assert {k.artwork for k in stream.samples.keys} == {"noto", "twemoji", "fluent_flat"}
    assert {k.artwork for p in stream.probes for k in p.keys} == {"fluent_3d"}


def test_easy_vqa_asks_one_kind_after_another_and_its_answers_are_the_packages() -> None:
    import easy_vqa

    asked = {split: getattr(easy_vqa, f"get_{split}_questions")() for split in ("train", "test")}
    triples = {split: set(zip(*rows, strict=True)) for split, rows in asked.items()}
    stream = load("easy-vqa")
    for split, groups in (("train", [stream.samples]), ("test", stream.probes)):
        for samples in groups:
            for key, sample in zip(samples.keys, samples, strict=True):
                assert (sample["context"], sample["label"], key.image) in triples[split]
                kind = stream.experiences[sample["experience"]][0]
                assert (sample["label"] in ("yes", "no")) == (kind == "yes or no")
                assert (sample["label"] in ("circle", "rectangle", "triangle")) == (kind == "shape")
                assert sample["label"] in stream.rivals[sample["experience"]]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("permuted-fashion", {"domains": 0}, "1 to"),
        ("permuted-fashion", {"domains": True}, "1 to"),
        ("rotated-fashion", {"n_test": 10_001}, "1 to 10000"),
        ("rotated-fashion", {"change": "permuted"}, "Its options are"),
        ("emoji-vendors", {"concepts": 201}, "2 to 200"),
        ("emoji-groups", {"concepts": 10}, "2 to 9"),
        ("emoji-groups", {"n_test": 60}, "64"),
        ("easy-vqa", {"kinds": ("colour", "size")}, "possible are shape, colour, yes or no"),
        ("easy-vqa", {"n_train": 10**6}, "are possible for 3 kinds"),
    ],
)
def test_wrong_options_say_what_is_possible(name: str, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(name, **options)


def test_what_a_stream_teaches_is_not_held_out() -> None:
    store = fake_store()
    taught = CLASSES[1]
    rest = store.beside([taught])
    kept = [i for i in range(len(store)) if store.classes[store.label[i]] != taught]
    assert rest.classes == [CLASSES[0], CLASSES[2]]
    assert torch.equal(rest.image, store.image[kept])
    assert torch.equal(rest.tokens[0], store.tokens[0][kept])
    assert [rest.classes[i] for i in rest.label] == [store.classes[store.label[i]] for i in kept]
    assert rest.place == {("train", i): kept.index(i) for i in kept}
    assert store.beside(["another"]) is store
    assert store.beside(CLASSES) is None


@pytest.mark.parametrize(
    ("name", "options", "parts"),
    [("rotated-fashion", ("domains", 2), 2), ("emoji-groups", ("concepts", 2), 8)],
)
def test_the_grid_runs_them(name: str, options: tuple[str, int], parts: int) -> None:
    grid = run.Grid(name, 10, n_train=80, n_test=40, probe_limit=4, options=(options,), config=CONFIG)
    methods = ["plugin", "ncm", "zero-shot"]
    found = run.run(grid, methods, [0], [0], (tiny_clip(), FakeProcessor()), held=2)
    assert [r["method"] for r in found] == methods
    assert all(np.shape(r["R"]) == (parts + 1, parts) for r in found)
    assert all(r["n_learned"] == 80 for r in found)


@pytest.mark.slow
def test_the_grid_runs_questions_without_a_truth_for_relevance() -> None:
    """The mean over no samples was NaN, which JSON has no word for."""
    grid = run.Grid("easy-vqa", 6, n_train=12, n_test=12, config=CONFIG)
    plugin, ncm, frozen = run.run(grid, ["plugin", "ncm", "zero-shot"], [0], [0], held=2)
    for found in (plugin, ncm, frozen):
        assert found["P"] is found["CP"] is found["pointing_chance"] is None
        assert np.shape(found["R"]) == (4, 3)
    assert ncm["R"][0] == [0, 0, 0]  # no mean of any class before learning
    assert np.mean(frozen["R"][-1]) > 0.7  # it was trained on easy-VQA
