"""Streams: the same every time, nothing twice, truth where it is claimed, and bad rows counted."""

import numpy as np
import pytest
from PIL import Image

from arr_coc.training import streams
from arr_coc.training.items import fashion
from arr_coc.training.scenes import COLOURS

SMALL = {"n_train": 48, "n_test": 24}
CUED = [name for name in streams.STREAMS if name.startswith("cued-clutter")]


def pixels(sample: streams.Sample) -> bytes:
    return np.asarray(sample["image"]).tobytes()


@pytest.mark.parametrize("name", [*CUED, "split-fashion"])
def test_same_arguments_give_the_same_samples_bit_for_bit(name: str) -> None:
    one, two = (list(streams.load(name, seed=3, order=1, **SMALL)) for _ in range(2))
    assert [pixels(s) for s in one] == [pixels(s) for s in two]
    assert [s["label"] for s in one] == [s["label"] for s in two]


@pytest.mark.parametrize("name", [*CUED, "split-fashion"])
def test_nothing_is_seen_twice_and_orders_share_their_samples(name: str) -> None:
    orders = [list(streams.load(name, seed=3, order=o, **SMALL)) for o in range(2)]
    for samples in orders:
        assert len({s["index"] for s in samples}) == len(samples)
    if name == "split-fashion" or "reversed" in name:
        return  # which images are taught under which meaning depends on the order there
    by_index = [{s["index"]: pixels(s) for s in samples} for samples in orders]
    assert by_index[0] == by_index[1]


@pytest.mark.parametrize("name", [n for n in CUED if "place" not in n and "artwork" not in n])
def test_the_cued_cell_alone_has_the_cued_colour(name: str) -> None:
    stream = streams.load(name, seed=1, **SMALL)
    for sample in stream.samples:
        picture = np.asarray(sample["image"]).astype(int)
        mask = np.kron(sample["mask"], np.ones((8, 8))).astype(bool)
        # the tint's ratio of channels: brightness shades it, so compare directions
        bright = picture.max(-1) > 120
        unit = picture / np.linalg.norm(picture, axis=-1, keepdims=True).clip(1)
        inside = [(unit @ (np.array(c) / np.linalg.norm(c)) > 0.995) & bright for c in COLOURS.values()]
        cued = max(range(6), key=lambda c: (inside[c] & mask).sum())
        assert (inside[cued] & mask).sum() > 5  # a dark sandal shows little of its colour
        if name not in ("cued-clutter-novel", "cued-clutter-novel-3x3", "cued-clutter-reversed"):
            assert list(COLOURS)[cued] == sample["context"]


def test_reversed_words_change_their_meaning_at_mid_stream() -> None:
    stream = streams.load("cued-clutter-reversed", seed=1, **SMALL)
    assert stream.experiences[:6] == stream.experiences[6:]
    assert [s["experience"] for s in stream.samples] == sorted(s["experience"] for s in stream.samples)


def test_classes_variant_teaches_two_classes_at_a_time() -> None:
    stream = streams.load("cued-clutter-classes", seed=1, n_train=120, n_test=60)
    for sample in [*stream.samples, *(s for probe in stream.probes for s in probe)]:
        assert sample["label"] in stream.experiences[sample["experience"]]


def test_train_and_test_images_are_disjoint() -> None:
    train, test = ({i.tobytes() for i in fashion(split)[0]} for split in ("train", "test"))
    assert not train & test


def test_split_fashion_shows_only_classes_met_so_far() -> None:
    stream = streams.load("split-fashion", seed=2, n_train=200, n_test=100)
    for sample in stream.samples:
        met = [c for e in stream.experiences[: sample["experience"] + 1] for c in e]
        assert sample["candidates"] == met
        assert sample["label"] in stream.experiences[sample["experience"]]
    assert all(len(s["candidates"]) == 10 for s in stream.probes[0])


def test_cues_of_the_test_scenes_are_balanced() -> None:
    stream = streams.load("cued-clutter", seed=0)
    assert [len(p) for p in stream.probes] == [250] * 6
    assert len(stream.samples) == 12_000


def test_batches_hold_every_sample_once() -> None:
    stream = streams.load("cued-clutter", batch=10, **SMALL)
    sizes = [len(b) for b in stream]
    assert sizes == [10, 10, 10, 10, 8]
    assert len(stream) == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "cued-cluter"}, "cued-clutter"),
        ({"name": "cued-clutter", "split": "val"}, "'train', 'test'"),
        ({"name": "cued-clutter", "batch": 0}, "at least 1"),
        ({"name": "cued-clutter", "order": -1}, "at least 0"),
        ({"name": "cued-clutter", "colour": "red"}, "n_train"),
        ({"name": "cued-clutter-novel", "cues": "known"}, "its options are"),
        ({"name": "cued-clutter", "grid": 5}, "grid 2, 3"),
        ({"name": "split-fashion", "n_train": 10**6}, "20000"),
        ({"name": "split-fashion", "per_experience": 3}, "1, 2, 5, 10"),
    ],
)
def test_wrong_arguments_say_what_is_possible(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        streams.load(**arguments)


def test_a_folder_of_images_streams_and_a_truncated_one_is_counted(tmp_path) -> None:
    for label, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / label).mkdir()
        for i in range(3):
            Image.new("RGB", (20, 20), colour).save(tmp_path / label / f"{i}.png")
    broken = tmp_path / "dog" / "2.png"
    broken.write_bytes(broken.read_bytes()[:40])
    stream = streams.from_dataset(tmp_path)
    seen = list(stream)
    assert [s["label"] for s in seen] == ["a photo of a cat"] * 3 + ["a photo of a dog"] * 2
    assert sum(stream.skipped.values()) == 1
    with pytest.raises(KeyError, match="label"):
        streams.from_dataset(tmp_path, label="lable")
    with pytest.raises(FileNotFoundError):
        streams.from_dataset(tmp_path / "none")
