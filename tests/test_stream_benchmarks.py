"""MTIL, X-TAIL, CoIN and UCIT as streams, on small folders of the published layout; nothing is downloaded."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from arr_coc.eval import methods_features, percepts, published, run, table
from arr_coc.eval.cli import app
from arr_coc.eval.exam import examine
from arr_coc.eval.jsonl import read
from arr_coc.training import stream_mtil, streams
from fakes import CONFIG, FakeProcessor, tiny_clip

ORDER_II = "StanfordCars,Food,MNIST,OxfordPet,Flowers,SUN397,Aircraft,Caltech101,DTD,EuroSAT,CIFAR100"
SOME = "datasets=DTD,EuroSAT,MNIST"


def picture(colour: tuple[int, int, int], path: Path, side: int = 96) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), colour).save(path)


def a_set(folder: Path, number: int, names: tuple[str, ...], train: int = 3, test: int = 2) -> None:
    """A folder per split and class; red tells the set, green the class, blue the picture (see `told`)."""
    for c, name in enumerate(names):
        for split, count, first in (("train", train, 0), ("test", test, 100)):
            for i in range(count):
                picture((20 * number, 120 * c, first + i), folder / split / name / f"{i}.png")


@pytest.fixture(scope="module")
def eleven(tmp_path_factory) -> Path:
    """Every set with two classes; DTD and EuroSAT share one, and one folder has another of its names."""
    root = tmp_path_factory.mktemp("mtil")
    for number, name in enumerate(stream_mtil.ORDER_I):
        folder = root / {"Food": "food-101"}.get(name, name)
        shared = "river" if name in ("DTD", "EuroSAT") else f"{name}_b"
        a_set(folder, number, (f"{name}_a", shared))
    return root


def told(sample: dict[str, Any]) -> tuple[int, int, int]:
    """Set, class and number of a picture."""
    red, green, blue = sample["image"].getpixel((0, 0))
    return red // 20, green // 120, blue


# -- mtil and x-tail -----------------------------------------------------------------------------------------


def test_sets_come_in_the_published_orders_and_are_asked_for_their_own_classes(eleven: Path) -> None:
    one, two = (streams.load(f"mtil?source={eleven}", seed=1, order=o) for o in (0, 1))
    for stream, order in ((one, sorted(ORDER_II.split(","), key=str.lower)), (two, ORDER_II.split(","))):
        train = list(stream)
        assert [stream_mtil.ORDER_I[told(s)[0]] for s in train] == [d for d in order for _ in range(6)]
        for turn, (name, probe) in enumerate(zip(order, stream.probes, strict=True)):
            own = {f"a photo of a {name} a", f"a photo of a {name} b", "a photo of a river"}
            assert len(probe) == 4
            assert all(set(s["candidates"]) <= own and s["label"] in s["candidates"] for s in probe)
            assert all(stream_mtil.ORDER_I[told(s)[0]] == name and told(s)[2] >= 100 for s in probe)
            assert stream.asked[turn] == stream.experiences[turn] == probe[0]["candidates"]
    assert {s["index"]: told(s) for s in one} == {s["index"]: told(s) for s in two}
    assert "order I:" in one.notes[0]
    assert "order II:" in two.notes[0]
    third = streams.load(f"mtil?source={eleven}", seed=1, order=2)
    assert sorted(third.experiences) == sorted(one.experiences)
    turned = streams.load(f"mtil?source={eleven}&drift=1&blurry=0.2", seed=1)
    assert turned.asked == one.asked * 2
    assert all(s["label"] in s["candidates"] and len(s["candidates"]) == 2 for s in turned)


def test_x_tail_has_ten_sets_sixteen_shots_and_no_hint(eleven: Path, tmp_path: Path) -> None:
    stream = streams.load(f"x-tail?source={eleven}", seed=1)
    assert [stream_mtil.ORDER_I[told(p[0])[0]] for p in stream.probes] == [
        d for d in stream_mtil.ORDER_I if d != "CIFAR100"
    ]
    assert len(stream.classes) == 2 * 10 - 1  # two of its sets share a class
    assert stream.asked == []
    assert all(s["candidates"] == stream.classes for p in stream.probes for s in p)
    a_set(tmp_path / "DTD", 3, ("few", "many"), train=20)
    for path in (tmp_path / "DTD" / "train" / "few").glob("1*.png"):
        path.unlink()  # nine are left: fewer than sixteen are all taken
    for option, many, few in (("", 16, 9), ("&shots=2", 2, 2)):
        some = streams.load(f"x-tail?source={tmp_path}&datasets=DTD{option}")
        assert Counter(s["label"] for s in some) == {"a photo of a many": many, "a photo of a few": few}


def test_sizes_are_shared_evenly_and_saved_sets_are_read(eleven: Path, tmp_path: Path) -> None:
    stream = streams.load(f"mtil?source={eleven}&{SOME}", n_train=9, n_test=6)
    assert [Counter(s["experience"] for s in stream), list(map(len, stream.probes))] == [
        {0: 3, 1: 3, 2: 3},
        [2] * 3,
    ]
    kinds = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=["a_b", "c"]))
    rows = {"img": [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(10)], "label": [0, 1] * 5}
    made = datasets.Dataset.from_dict(rows, kinds)
    datasets.DatasetDict(train=made, test=made.select(range(4))).save_to_disk(tmp_path / "mnist")
    stream = streams.load(f"mtil?source={tmp_path}&datasets=MNIST")
    assert [len(stream.samples), len(stream.probes[0])] == [10, 4]
    assert all(
        s["label"] == ["a photo of a a b", "a photo of a c"][s["image"].getpixel((0, 0))[0] % 2]
        for s in stream
    )


def spoil_empty(root: Path) -> None:
    (root / "DTD" / "train" / "nothing").mkdir()


def spoil_other(root: Path) -> None:
    (root / "DTD" / "test" / "dots").rename(root / "DTD" / "test" / "spots")


def spoil_numbers(root: Path) -> None:
    rows = {"image": [Image.new("RGB", (8, 8))] * 2, "label": [3, 4]}
    datasets.Dataset.from_dict(rows).save_to_disk(root / "EuroSAT")


@pytest.mark.parametrize(
    ("name", "spoil", "fault", "words"),
    [
        ("mtil", None, ValueError, "say where it is, as in 'mtil"),
        (
            "mtil?source={tmp}",
            None,
            FileNotFoundError,
            "no folder for Aircraft, .*; it has DTD. .*datasets=DTD'",
        ),
        (
            "x-tail?source={tmp}&datasets=CIFAR100",
            None,
            ValueError,
            "x-tail has no 'CIFAR100'; the nearest is",
        ),
        ("mtil?source={tmp}&datasets=DTD", spoil_empty, ValueError, "train has no picture of nothing"),
        ("mtil?source={tmp}&datasets=DTD", spoil_other, ValueError, "no picture of (dots|spots)"),
        ("mtil?source={tmp}&datasets=EuroSAT", spoil_numbers, ValueError, "labels have no names"),
        ("mtil?source={tmp}&datasets=DTD&n_test=0", None, ValueError, "n_test=0"),
    ],
)
def test_what_is_wrong_with_a_set_is_said(
    name: str, spoil: Any, fault: type, words: str, tmp_path: Path
) -> None:
    a_set(tmp_path / "DTD", 3, ("dots", "lines"))
    if spoil is not None:
        spoil(tmp_path)
    with pytest.raises(fault, match=words):
        streams.load(name.format(tmp=tmp_path))


def test_a_probe_is_answered_among_its_own_candidates(eleven: Path) -> None:
    """Zero-shot scores are s x.t; which text wins among which is worked out here anew."""
    world = run.world((tiny_clip(), FakeProcessor()), held=1)
    for kind in ("mtil", "x-tail"):
        stream = streams.load(f"{kind}?source={eleven}&{SOME}", seed=1)
        store = world.store(stream, None, None)
        plan = percepts.plan(stream, store)
        found = examine(methods_features.ZeroShot(), plan, store, 3)
        expected, union = [], 0
        for rows, own in zip(plan.probes, stream.experiences, strict=True):
            among = own if kind == "mtil" else stream.classes
            scores = (store.image[rows] @ store.texts(among).T).numpy()
            right = [among[i] for i in scores.argmax(1)] == np.array(
                [store.classes[i] for i in store.label[rows]]
            )
            expected.append(right.mean())
            union += right.sum()
        assert found.accuracy == pytest.approx(expected)
        assert found.union[-1] == pytest.approx(union / 12)


class Looking:
    """Looks at the pictures; their green tells the class."""

    needs_images = True
    pairs: ClassVar[list[tuple[int, str]]] = []

    def observe(self, batch: Any) -> None:
        self.pairs.extend((told({"image": i})[1], x) for i, x in zip(batch.images, batch.labels, strict=True))

    def predict(self, batch: Any, texts: list[str]) -> list[str]:
        return [next(t for t in texts if t.endswith("ab"[told({"image": i})[1]])) for i in batch.images]


def test_pictures_that_cannot_be_read_are_passed_over_and_counted(tmp_path: Path) -> None:
    for folder in ("whole", "spoiled"):
        for number, name in enumerate(("DTD", "EuroSAT")):
            a_set(tmp_path / folder / name, number, (f"{name} a", f"{name} b"), train=4)
    for kept in ("whole", "spoiled"):  # of one folder a picture is gone, of the other it is no picture
        for path in ("DTD/train/DTD a/1.png", "EuroSAT/test/EuroSAT b/0.png"):
            (tmp_path / kept / path).unlink()
            if kept == "spoiled":
                (tmp_path / kept / path).write_bytes(b"no picture")
    scores = {}
    for kept in ("whole", "spoiled"):
        grid = run.Grid(f"mtil?source={tmp_path / kept}&datasets=DTD,EuroSAT", 2, config=CONFIG)
        rows = {"ncm": None, "looking": Looking}
        found, looked = run.run(grid, rows, [0], [0], (tiny_clip(), FakeProcessor()), held=0)
        scores[kept] = found["R"][-1]
        assert [found["n_learned"], found["n_probe"]] == [15, [4, 3]]
        assert looked["R"][-1] == [1, 1]  # each picture is the one that its label is of
    assert len(Looking.pairs) == 30
    assert all("ab"[green] == label[-1] for green, label in Looking.pairs)
    assert found["skipped"] == {"unreadable image (UnidentifiedImageError)": 2}
    assert scores["spoiled"] == scores["whole"]  # the nearest mean knows no order
    assert any(
        "Passed over (seed 0): 2 with unreadable image" in n for n in table.notes(table.summary([found]))
    )
    for path in (tmp_path / "spoiled" / "EuroSAT" / "test").glob("*/*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"no sample could be read of .*EuroSAT"):
        run.run(grid, ["ncm"], [1], [0], (tiny_clip(), FakeProcessor()), held=0)


def test_mtil_from_the_command_line(eleven: Path, tmp_path: Path) -> None:
    out = tmp_path / "eval.jsonl"
    asked = ["eval", f"mtil?source={eleven}&{SOME}", "--methods", "plugin,ncm,zero-shot", "--seeds", "0"]
    asked += ["--orders", "0", "--held", "0", "--batch", "4", "--out", str(out)]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    flat = " ".join(shown.output.split())
    for said in (
        "transfer %",
        "average %",
        "ZSCL 68.1 / 75.4 / 83.6",
        "GIFT 69.3 / 77.3 / 86.0 (from a second-",
    ):
        assert said in flat
    assert "another protocol than those: datasets=DTD,EuroSAT,MNIST" in flat
    for found in read(out):
        assert found["chance"] == 0.5
        r = np.array(found["R"], dtype=float)  # (4, 3)
        got = table.scores(found)
        assert got["transfer_zscl"] == pytest.approx((r[1, 1] + (r[1, 2] + r[2, 2]) / 2) / 2)
        assert got["mtil_average"] == pytest.approx(r[1:].mean())
        assert found["method"] != "plugin" or got["final_accuracy"] > 0.5
        if found["method"] == "zero-shot":
            assert (r == r[0]).all()
        if found["method"] == "ncm":  # it can say nothing of what it has not met
            assert r[0].max() == 0
            assert [r[1, 2], r[2, 2]] == [0, 0]
            assert r[3, 2] > 0


# -- coin and ucit -------------------------------------------------------------------------------------------


def llava(image: str, *turns: str) -> dict[str, Any]:
    spoken = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(turns)]
    return {"id": 1, "image": image, "conversations": spoken}


def instructions(root: Path) -> Path:
    """Two tasks in CoIN's layout: a JSON list and JSON lines, LLaVA's form and the flat one."""
    for i, colour in enumerate(((220, 30, 30), (40, 60, 220))):
        picture(colour, root / "images" / f"{i}.png")
    colours = ("red", "blue")
    train = [llava(f"./images/{i % 2}.png", "<image>\nwhat colour is it?", colours[i % 2]) for i in range(6)]
    train[0]["id"] = "a text, where the others have numbers"
    train += [llava("./images/0.png", "<image>\nis it red?", "yes", "is it blue?", "no")]
    train += [
        {"conversations": train[0]["conversations"]},
        llava("./images/9.png", "<image>\nand this?", "red"),
    ]
    test = [
        {"image": f"./images/{i}.png", "text": "what colour is it?", "answer": colours[i], "question_id": i}
        for i in range(2)
    ]
    for task, some in (("GQA", train), ("OCR-VQA", train[:4])):
        (root / task).mkdir(parents=True)
        (root / task / "train.json").write_text(json.dumps(some))
        (root / task / "test.jsonl").write_text("\n".join(map(json.dumps, test)))
    return root


def test_questions_become_samples_one_task_one_experience(tmp_path: Path) -> None:
    root = instructions(tmp_path)
    stream = streams.load(f"coin?source={root}&tasks=GQA,OCR-VQA")
    train = list(stream)
    assert stream.experiences == [["GQA"], ["OCR-VQA"]]
    assert Counter((s["context"], s["label"], s["experience"]) for s in train) == {
        ("what colour is it?", "red", 0): 3,
        ("what colour is it?", "blue", 0): 3,
        ("is it red?", "yes", 0): 1,
        ("is it blue?", "no", 0): 1,
        ("what colour is it?", "red", 1): 2,
        ("what colour is it?", "blue", 1): 2,
    }
    assert stream.skipped == {"unreadable image (FileNotFoundError)": 1}  # the image that is not there
    assert all(
        (s["label"] == "red") == (s["image"].getpixel((0, 0))[0] == 220)
        for s in train
        if "what" in s["context"]
    )
    assert [Counter(s["label"] for s in p) for p in stream.probes] == [{"red": 1, "blue": 1}] * 2
    assert stream.met == [["blue", "no", "red", "yes"]] * 2
    assert any("Grounding is left out" in n and "boxes" in n for n in stream.notes)
    assert any("GQA/train.json, left out: 1 with no image" in n for n in stream.notes)
    other = streams.load(f"coin?source={root}&tasks=GQA,OCR-VQA", order=1)
    index = {s["index"]: (s["context"], s["label"]) for s in train}
    assert {s["index"]: (s["context"], s["label"]) for s in other} == index


def test_ucit_leaves_captions_out_and_finds_images_beside_the_instructions(tmp_path: Path) -> None:
    root = tmp_path / "instructions"
    picture((9, 9, 9), tmp_path / "datasets" / "CLEVR" / "0.png")
    (root / "CLEVR").mkdir(parents=True)
    row = llava("CLEVR/0.png", "<image>\nhow many?", "3")
    (root / "CLEVR" / "train_4w.json").write_text(json.dumps([row]))
    flat = {"image": "CLEVR/0.png", "text": "how many?", "answer": [{"answer": "4"}, {"answer": "3"}, "3"]}
    (root / "CLEVR" / "test_3000.json").write_text(json.dumps([flat]))
    stream = streams.load(f"ucit?source={root}&tasks=CLEVR")
    assert [(s["context"], s["label"], s["image"].size) for s in [*stream.samples, *stream.probes[0]]] == [
        ("how many?", "3", (96, 96))
    ] * 2
    assert [n.split(" ")[0] for n in stream.notes if "captions" in n] == ["VizWiz", "Flickr30k"]
    with pytest.raises(ValueError, match="Flickr30k has no place here: its answers are captions"):
        streams.load(f"ucit?source={root}&tasks=Flickr30k")


@pytest.mark.parametrize(
    ("option", "file", "text", "fault", "words"),
    [
        ("", None, "", FileNotFoundError, "no folder for ScienceQA, TextVQA"),
        ("&tasks=GQA", "GQA/train.json", '[{"image": "x"},\n {]', ValueError, "train.json, line 2: no JSON"),
        (
            "&tasks=GQA",
            "GQA/test.jsonl",
            '{"image": "x"}\n{"image"',
            ValueError,
            "test.jsonl, line 2: no JSON",
        ),
        ("&tasks=GQA", "GQA/train.json", "[{}]", ValueError, "no question that can be used: 1 with no image"),
        ("&tasks=GQA", "GQA/test_2.jsonl", "", None, ""),  # test.jsonl is the one that is called so
        ("&tasks=GQA&images={tmp}/none", None, "", FileNotFoundError, "images=FOLDER"),
        ("&tasks=GQQA", None, "", ValueError, "coin has no 'GQQA'; the nearest is 'GQA'"),
    ],
)
def test_what_is_wrong_with_instructions_is_said(
    option: str, file: str | None, text: str, fault: Any, words: str, tmp_path: Path
) -> None:
    root = instructions(tmp_path)
    if file is not None:
        (root / file).write_text(text)
    name = f"coin?source={root}{option.format(tmp=tmp_path)}"
    if fault is None:
        assert len(streams.load(name).probes[0]) == 2
        return
    with pytest.raises(fault, match=words):
        streams.load(name)


def test_an_image_outside_the_folder_is_not_opened(tmp_path: Path) -> None:
    root = instructions(tmp_path / "coin")
    picture((1, 2, 3), tmp_path / "secret.png")
    rows = [
        llava(p, "<image>\nwhat?", "red")
        for p in ("images/0.png", "../secret.png", str(tmp_path / "secret.png"))
    ]
    (root / "GQA" / "train.json").write_text(json.dumps(rows))
    stream = streams.load(f"coin?source={root}&tasks=GQA")
    assert len(list(stream)) == 1
    assert stream.skipped == {"an image outside the folder": 2}


def test_coin_from_the_command_line(tmp_path: Path) -> None:
    root, out = instructions(tmp_path / "coin"), tmp_path / "eval.jsonl"
    asked = ["eval", f"coin?source={root}&tasks=GQA,OCR-VQA", "--methods", "plugin,zero-shot", "--seeds", "0"]
    asked += ["--orders", "0", "--held", "0", "--batch", "4", "--markdown", "--out", str(out)]
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    for said in ("| final % | MAA % | BWT (1/T) |", "Grounding is left out", "DyMoE 57.0 / 57.7 / -4.7"):
        assert said in shown.output
    assert "Passed over (seed 0): 1 with unreadable image" in shown.output
    for found in read(out):
        r = np.array(found["R"], dtype=float)
        got = table.scores(found)
        assert got["average_incremental_accuracy"] == pytest.approx((r[1, 0] + r[2].mean()) / 2)
        assert got["bwt_coin"] == pytest.approx((r[2, 0] - r[1, 0]) / 2)


def test_what_is_published_is_said_for_its_stream_alone() -> None:
    assert published.lines("split-fashion@10") == []
    assert published.lines("ucit?source=x") == []
    one, two = published.lines("cifar-100?hub=true@10")
    assert "random projection + ridge (RanPAC) 85.0" in one
    assert "RanPAC 92.1" in two
    assert "another protocol than those: steps=20." in published.lines("cifar-100?source=a@b&steps=20@10")[-1]
