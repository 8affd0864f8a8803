"""Sets of others as streams, on small folders of the published layout; nothing is downloaded."""

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from arr_coc.eval import run
from arr_coc.training import stream_core50, stream_sets, streams
from fakes import CONFIG, FakeProcessor, tiny_clip


def picture(number: int, side: int = 8) -> Image.Image:
    """A plain colour that tells the number."""
    return Image.new("RGB", (side, side), (number % 256, number // 256, 7))


def number(sample: dict[str, Any]) -> int:
    low, high, _ = sample["image"].getpixel((0, 0))
    return low + 256 * high


@pytest.fixture(scope="module")
def cifar(tmp_path_factory) -> Path:
    """As the Hub's copy: img, fine_label and coarse_label, a train and a test split; 20 classes."""
    names = [f"sea_animal_{i}" for i in range(20)]
    kinds = datasets.Features(
        img=datasets.Image(),
        fine_label=datasets.ClassLabel(names=names),
        coarse_label=datasets.Value("int64"),
    )
    made = {}
    for split, first, count in (("train", 0, 100), ("test", 1000, 40)):
        labels = [i % 20 for i in range(count)]
        images = [picture(first + i, 96) for i in range(count)]
        made[split] = datasets.Dataset.from_dict(
            {"img": images, "fine_label": labels, "coarse_label": [0] * count}, kinds
        )
    folder = tmp_path_factory.mktemp("cifar")
    datasets.DatasetDict(made).save_to_disk(folder)
    return folder


def imagenet_r(folder: Path, splits: tuple[str, ...] = ("",)) -> Path:
    """As it is published: a folder per WordNet number, and README.txt with their names; 10 of each."""
    lines = ["ImageNet-R(endition)", "", "The classes are:"]
    for c in range(4):
        lines.append(f"n0000000{c} great_grey_{c}")
        for i in range(10):
            split = splits[0] if i < 6 else splits[-1]
            target = folder / split / f"n0000000{c}" / f"art_{i}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            picture(100 * c + i).save(target)
    (folder / "README.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def core50(tmp_path_factory) -> Path:
    """Two frames of each object in each session; the colour tells session and object."""
    folder = tmp_path_factory.mktemp("core50_128x128")
    for s in range(1, 12):
        for o in range(1, 51):
            target = folder / f"s{s}" / f"o{o}"
            target.mkdir(parents=True)
            for frame in range(2):
                picture(64 * s + o).save(target / f"C_{s:02d}_{o:02d}_{frame:03d}.png")
    return folder


def test_classes_come_in_equal_steps_and_each_picture_once(cifar: Path) -> None:
    name = f"cifar-100?source={cifar}&steps=5"
    one, other = (streams.load(name, seed=2, order=o) for o in (0, 1))
    train = list(one)
    assert Counter(s["experience"] for s in train) == dict.fromkeys(range(5), 20)
    assert [len(p) for p in one.probes] == [8] * 5
    assert sorted(map(number, train)) == list(range(100))
    assert sorted(number(s) for p in one.probes for s in p) == list(range(1000, 1040))
    for s in [*train, *(s for p in one.probes for s in p)]:
        assert s["label"] == f"a photo of a sea animal {number(s) % 1000 % 20}"
        assert s["label"] in one.experiences[s["experience"]]
    assert all(len(s["candidates"]) == 4 * (s["experience"] + 1) for s in train)
    assert all(s["candidates"] == one.classes for p in one.probes for s in p)
    assert sorted(c for e in one.experiences for c in e) == sorted(c for e in other.experiences for c in e)
    assert one.experiences != other.experiences
    assert {s["index"]: number(s) for s in other.samples} == {s["index"]: number(s) for s in train}
    turns = [s["experience"] for s in train]
    assert turns == sorted(turns)
    assert [number(s) for s in train] == [number(s) for s in streams.load(name, seed=2)]
    assert [number(s) for s in train] != [number(s) for s in streams.load(name, seed=3)]


def test_the_script_and_the_stream_divide_classes_by_one_rule() -> None:
    from arr_coc.training import cifar100_ten_steps

    assert cifar100_ten_steps.divided is stream_sets.divided
    parts = stream_sets.divided(100, 10, 0)
    assert [len(p) for p in parts] == [10] * 10
    assert sorted(c for p in parts for c in p) == list(range(100))


def test_imagenet_r_is_divided_from_the_seed_where_it_is_whole(tmp_path: Path) -> None:
    folder = imagenet_r(tmp_path / "imagenet-r")
    name = f"imagenet-r?source={folder}&steps=2"
    one = streams.load(name, seed=1)
    train, test = list(one), [s for p in one.probes for s in p]
    assert Counter(s["label"] for s in train) == dict.fromkeys(one.classes, 8)  # four fifths of ten
    assert Counter(s["label"] for s in test) == dict.fromkeys(one.classes, 2)
    assert sorted(map(number, [*train, *test])) == sorted(100 * c + i for c in range(4) for i in range(10))
    assert all(s["label"] == f"a photo of a great grey {number(s) // 100}" for s in [*train, *test])
    other = streams.load(name, seed=1, order=1)
    assert {number(s) for s in other.samples} == {number(s) for s in train}
    assert {number(s) for s in streams.load(name, seed=2).samples} != {number(s) for s in train}


def test_imagenet_r_that_is_divided_is_taken_so(tmp_path: Path) -> None:
    folder = imagenet_r(tmp_path / "imagenet-r", ("train", "test"))
    stream = streams.load(f"imagenet-r?source={folder}&steps=4", seed=1)
    assert {number(s) % 100 for s in stream.samples} == set(range(6))
    assert {number(s) % 100 for p in stream.probes for s in p} == {6, 7, 8, 9}
    said = sorted(c for e in stream.experiences for c in e)
    assert said == [f"a photo of a great grey {c}" for c in range(4)]


def test_a_copy_without_splits_is_never_learned_and_examined_alike(tmp_path: Path) -> None:
    """With the Hub's columns; saved without splits it was the same rows under either name."""
    rows = {"image": [picture(i) for i in range(40)], "wnid": [f"n0000000{i % 4}" for i in range(40)]}
    rows["class_name"] = [f"great_grey_{i % 4}" for i in range(40)]
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    for folder, whole in (("one", data), ("test", datasets.DatasetDict(test=data))):
        whole.save_to_disk(tmp_path / folder)
        stream = streams.load(f"imagenet-r?source={tmp_path / folder}&steps=2", seed=1)
        train, test = list(stream), [s for p in stream.probes for s in p]
        assert sorted(map(number, [*train, *test])) == list(range(40))
        assert Counter(s["label"] for s in train) == dict.fromkeys(stream.classes, 8)
        assert all(s["label"] == f"a photo of a great grey {number(s) % 4}" for s in [*train, *test])


def test_core50_has_eight_sessions_and_is_examined_on_three_others(core50: Path) -> None:
    stream = streams.load(f"core50?source={core50}", seed=1)
    train = list(stream)
    assert len(train) == 8 * 100
    order = [int(e[0].removeprefix("session ")) for e in stream.experiences]
    assert sorted(order) == [1, 2, 4, 5, 6, 8, 9, 11]
    assert all(number(s) // 64 == order[s["experience"]] for s in train)
    test = [s for p in stream.probes for s in p]
    assert {number(s) // 64 for s in test} == {3, 7, 10}
    assert sorted(len(p) for p in stream.probes) == [37] * 4 + [38] * 4  # 300 frames
    assert len({s["index"] for s in test}) == 300
    for s in [*train, *test]:
        assert s["label"] == f"a photo of a {stream_core50.NAMES[number(s) % 64 - 1]}"
        assert s["candidates"] == stream.classes
    assert len(stream.classes) == 50


def test_core50_by_classes_begins_with_one_object_of_each_category(core50: Path) -> None:
    stream = streams.load(f"core50-nc?source={core50}", seed=1)
    assert [len(e) for e in stream.experiences] == [10, *[5] * 8]
    assert {e.rsplit(" ", 1)[0] for e in stream.experiences[0]} == {
        f"a photo of a {c}" for c in stream_core50.CATEGORIES
    }
    assert sorted(c for e in stream.experiences for c in e) == sorted(stream.classes)
    assert [len(p) for p in stream.probes] == [60, *[30] * 8]
    for s in [*stream.samples, *(s for p in stream.probes for s in p)]:
        assert s["label"] in stream.experiences[s["experience"]]
    assert {number(s) // 64 for s in stream.samples} == {1, 2, 4, 5, 6, 8, 9, 11}


def test_options_of_any_stream_and_sizes_hold_for_them(core50: Path) -> None:
    stream = streams.load(f"core50-nc?source={core50}&noise=0.5&shots=2", n_test=200, n_train=790)
    assert Counter(Counter(k.index for k in stream.samples.keys).values()) == {1: 100}
    assert sum(map(len, stream.probes)) == 200


def test_the_grid_runs_them(cifar: Path) -> None:
    grid = run.Grid(f"cifar-100?steps=2&source={cifar}", 10, config=CONFIG)
    found = run.run(grid, ["plugin", "ncm"], [0], [0], (tiny_clip(), FakeProcessor()), held=0)
    assert [np.shape(r["R"]) for r in found] == [(3, 2)] * 2


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [
        ("cifar-100", ValueError, r"say where it is, as in 'cifar-100\?source=FOLDER'"),
        ("core50", ValueError, "source=FOLDER"),
        ("core50?source={tmp}/none", FileNotFoundError, "no folder"),
        ("core50?source={tmp}", ValueError, "s1/o1/C_01_01_000.png"),
        ("imagenet-r?source={tmp}/none", FileNotFoundError, "no folder"),
        ("cifar-100?source={cifar}&steps=7", ValueError, "divides 20 classes"),
        ("cifar-100?source={cifar}&n_train=101", ValueError, "1 to 100"),
        ("cifar-100?source={cifar}&n_test=3", ValueError, "too few for every one of 10"),
    ],
)
def test_what_is_missing_is_said(name: str, fault: type, words: str, tmp_path: Path, cifar: Path) -> None:
    with pytest.raises(fault, match=words):
        streams.load(name.format(tmp=tmp_path, cifar=cifar))
