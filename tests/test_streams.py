"""Streams: the same every time, nothing twice, truth where it is claimed, and bad rows counted."""

import io
import itertools
from collections import Counter

import datasets
import numpy as np
import pytest
from PIL import Image

from arr_coc.training import questions, stream_scene_qa, streams
from arr_coc.training.items import fashion
from arr_coc.training.scenes import COLOURS, CUE_COLOURS, PLACES
from arr_coc.training.stream_cued import NONSENSE

SMALL = {"n_train": 48, "n_test": 24}
CUED = [name for name in streams.STREAMS if name.startswith("cued-clutter")]


def pixels(sample: streams.Sample) -> bytes:
    return np.asarray(sample["image"]).tobytes()


@pytest.mark.parametrize("name", [*CUED, "split-fashion", "scene-qa"])
def test_same_arguments_give_the_same_samples_bit_for_bit(name: str) -> None:
    one, two = (list(streams.load(name, seed=3, order=1, **SMALL)) for _ in range(2))
    assert [pixels(s) for s in one] == [pixels(s) for s in two]
    assert [s["label"] for s in one] == [s["label"] for s in two]


@pytest.mark.parametrize("name", [*CUED, "split-fashion", "scene-qa"])
def test_nothing_is_seen_twice_and_orders_share_their_samples(name: str) -> None:
    orders = [list(streams.load(name, seed=3, order=o, **SMALL)) for o in range(2)]
    for samples in orders:
        assert len({s["index"] for s in samples}) == len(samples)
    if name == "split-fashion" or "reversed" in name:
        return  # which images are taught under which meaning depends on the order there
    by_index = [{s["index"]: pixels(s) for s in samples} for samples in orders]
    assert by_index[0] == by_index[1]


@pytest.mark.parametrize("name", [n for n in CUED if "place" not in n and "artwork" not in n])
def test_the_cued_cell_alone_has_the_colour_that_the_word_means(name: str) -> None:
    stream = streams.load(name, seed=1, **SMALL)
    for sample in stream.samples:
        word = sample["context"]
        meant = (NONSENSE if "novel" in name else CUE_COLOURS).index(word)
        if "reversed" in name and sample["experience"] >= 6:
            meant = (meant + 1) % 6
        mask = np.kron(sample["mask"], np.ones((8, 8))) > 0
        of_colour = {c: has_colour(sample["image"], COLOURS[c]) for c in CUE_COLOURS}
        inside = {c: int((of_colour[c] & mask).sum()) for c in CUE_COLOURS}
        assert max(inside, key=lambda c: inside[c]) == CUE_COLOURS[meant]
        assert inside[CUE_COLOURS[meant]] > 5  # a dark sandal shows little of its colour
        assert (of_colour[CUE_COLOURS[meant]] & ~mask).sum() < 0.2 * inside[CUE_COLOURS[meant]]


def has_colour(image: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Pixels in the direction of a colour, whatever their shade."""
    picture = np.asarray(image).astype(int)
    unit = picture / np.linalg.norm(picture, axis=-1, keepdims=True).clip(1)
    return (unit @ (np.array(colour) / np.linalg.norm(colour)) > 0.995) & (picture.max(-1) > 120)


def test_reversed_words_change_their_meaning_at_mid_stream() -> None:
    stream = streams.load("cued-clutter-reversed", seed=1, **SMALL)
    assert stream.experiences[:6] == stream.experiences[6:]
    assert stream.outdated == (0, 1, 2, 3, 4, 5)
    assert streams.load("cued-clutter", seed=1, **SMALL).outdated == ()
    assert [s["experience"] for s in stream.samples] == sorted(s["experience"] for s in stream.samples)


def test_by_classes_the_test_scenes_do_not_decide_what_the_training_scenes_show() -> None:
    """Numbers of scenes that are no tens of tens: a scene's class once came from the other split's scene."""
    stream = streams.load("cued-clutter-classes", seed=0, n_train=90, n_test=30)
    for samples in (stream.samples, *stream.probes):
        for sample in samples:
            assert sample["label"] in stream.experiences[sample["experience"]]


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
        ({"name": "cued-clutter", "n_trian": 60}, "nearest is 'n_train'"),
        ({"name": "cued-clutter-reversed", "n_train": 8}, "each of the 12 cues"),
        ({"name": "cued-clutter-reversed", "mixed": True}, "mid-stream"),
        ({"name": "cued-clutter", "seed": -1}, "at least 0"),
        ({"name": "cued-clutter", "order": True}, "at least 0"),
        ({"name": "cued-clutter", "batch": 2.0}, "at least 1"),
        ({"name": "scene-qa", "grid": 4}, "possible are 2, 3"),
        ({"name": "scene-qa", "kinds": ("color",)}, "colour"),
        ({"name": "scene-qa", "n_test": 5}, "each of the 6 kinds"),
        ({"name": "cued-clutter-novel", "cues": "known"}, "Its options are"),
        ({"name": "cued-clutter", "grid": 5}, "grid 2, 3"),
        ({"name": "split-fashion", "n_train": 10**6}, "20000"),
        ({"name": "split-fashion", "per_experience": 3}, "1, 2, 5, 10"),
    ],
)
def test_wrong_arguments_say_what_is_possible(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        streams.load(**arguments)


def picture() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((40, 40), 60).convert("RGB").save(file, "PNG")
    return file.getvalue()


def test_a_folder_of_images_streams_and_what_cannot_be_read_is_counted(tmp_path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / label).mkdir()
        for i in range(4):
            (tmp_path / label / f"{i}.png").write_bytes(picture())
    half, text = tmp_path / "dog" / "2.png", tmp_path / "dog" / "3.png"
    half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    text.write_text("no picture at all")
    stream = streams.from_dataset(tmp_path)
    for _ in range(2):  # a second look counts anew
        assert [s["label"] for s in stream] == ["a photo of a cat"] * 4 + ["a photo of a dog"] * 2
        assert stream.skipped == {
            "unreadable image (OSError)": 1,
            "unreadable image (UnidentifiedImageError)": 1,
        }
    assert stream.classes == stream.experiences[0] == ["a photo of a cat", "a photo of a dog"]
    assert [len(b) for b in streams.from_dataset(tmp_path, batch=4)] == [4, 2]


def test_bad_rows_of_a_dataset_are_counted_by_their_reason() -> None:
    rows = {
        "picture": [{"bytes": picture(), "path": None}] * 6 + [None],
        "kind": [1, 0, -1, 1, None, 1, 1],
        "question": ["what?", "who?", "why?", None, "how?", "when?", "where?"],
        "turn": [0, 1, 1, 1, 1, None, 1],
    }
    columns = {"kind": datasets.ClassLabel(names=["tea", "coffee"]), "picture": datasets.Image()}
    columns |= {"question": datasets.Value("string"), "turn": datasets.Value("int64")}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features({k: columns[k] for k in rows}))
    stream = streams.from_dataset(
        data, image="picture", label="kind", context="question", experience="turn", prompt="some {}"
    )
    seen = list(stream)
    assert [(s["label"], s["context"], s["experience"], s["index"]) for s in seen] == [
        ("some coffee", "what?", 0, 0),
        ("some tea", "who?", 1, 1),
    ]
    assert all(s["image"].mode == "RGB" and s["candidates"] == ["some coffee", "some tea"] for s in seen)
    assert stream.skipped == {"no label": 2, "no context": 1, "no experience": 1, "no image": 1}


def test_a_source_that_is_none_is_refused(tmp_path) -> None:
    data = datasets.Dataset.from_dict({"image": [{"bytes": picture()}], "label": ["cat"]})
    data = data.cast_column("image", datasets.Image())
    with pytest.raises(KeyError, match=r"the nearest .* is 'label'"):
        streams.from_dataset(data, label="lable")
    with pytest.raises(FileNotFoundError, match="no folder"):
        streams.from_dataset(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no folder"):
        streams.from_dataset("./none")
    with pytest.raises(TypeError, match="one split"):
        streams.from_dataset(datasets.DatasetDict({"train": data}))
    with pytest.raises(ValueError, match="at least 1"):
        streams.from_dataset(data, batch=0)
    with pytest.raises(ValueError, match="for the class"):
        streams.from_dataset(data, prompt="a photo")


def test_a_fault_of_the_stream_itself_is_no_skipped_row() -> None:
    def broken(_: int) -> streams.Sample:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        list(streams.Stream("broken", streams.Rendered([0], broken), [], [], []))


def test_a_sample_that_comes_twice_stops_the_stream() -> None:
    twice = streams.Stream("twice", [{"index": 4}, {"index": 5}, {"index": 4}], [], [], [])
    with pytest.raises(RuntimeError, match="twice shows sample 4 twice"):
        list(twice)


# scene-qa


@pytest.mark.parametrize("grid", [2, 3])
def test_every_question_has_its_answer_in_the_scene_and_one_answer_only(grid: int) -> None:
    names, colours = stream_scene_qa._names(), CUE_COLOURS
    plurals = {stream_scene_qa._plural(n): n for n in names}
    places = [said[0] for said in PLACES[grid]]
    rng = np.random.default_rng(5)
    for kind, ask in stream_scene_qa._ASK.items():
        for number in range(60):
            asked = ask(grid, number, rng)
            shown = [(colours[c], names[i]) for i, c in zip(asked.items, asked.colours, strict=True)]
            words = asked.question.rstrip("?")
            if kind == "colour":
                item = words.removeprefix("what colour is the ")
                found = [i for i, s in enumerate(shown) if s[1] == item]
                true = [shown[i][0] for i in found]
            elif kind == "place":
                pair = tuple(words.removeprefix("where is the ").split(" ", 1))
                found = [i for i, s in enumerate(shown) if s == pair]
                true = [places[i] for i in found]
            elif kind == "item by colour":
                colour = words.removeprefix("what is the ").removesuffix(" item")
                found = [i for i, s in enumerate(shown) if s[0] == colour]
                true = [shown[i][1] for i in found]
            elif kind == "item by place":
                found = [places.index(words.removeprefix("what is in the "))]
                true = [shown[found[0]][1]]
            elif kind == "count":
                item = plurals[words.removeprefix("how many ").removesuffix(" are there")]
                found = [i for i, s in enumerate(shown) if s[1] == item]
                true = [("zero", "one", "two", "three")[len(found)]]
            else:
                pair = tuple(words.removeprefix("is there a ").split(" ", 1))
                found = [i for i, s in enumerate(shown) if s == pair]
                true = ["yes" if found else "no"]
                # no single word gives it away: colour and item are both in the scene either way
                assert any(s[0] == pair[0] for s in shown)
                assert any(s[1] == pair[1] for s in shown)
            assert true == [asked.answer], (kind, shown, asked.question)
            assert sorted(asked.cells) == found


def test_answers_are_balanced_and_not_told_by_the_time() -> None:
    stream = streams.load("scene-qa", n_train=1_200, n_test=6)
    answers = {}
    for sample in stream.samples:
        answers.setdefault(stream.experiences[sample["experience"]][0], []).append(sample["label"])
    assert Counter(answers["yes or no"]) == {"yes": 100, "no": 100}
    assert Counter(answers["count"]) == dict.fromkeys(("zero", "one", "two", "three"), 50)
    assert {len(set(answers[k])) for k in ("item by colour", "item by place")} == {13}
    repeats = np.mean([a == b for a, b in itertools.pairwise(answers["yes or no"])])
    assert abs(repeats - 0.5) < 4 * (0.25 / 199) ** 0.5


def test_the_masked_cell_of_a_colour_question_shows_the_answer() -> None:
    stream = streams.load("scene-qa", n_train=60, n_test=6, kinds=("colour",))
    for sample in stream.samples:
        mask = np.kron(sample["mask"], np.ones((8, 8))) > 0
        counts = {c: int((has_colour(sample["image"], COLOURS[c]) & mask).sum()) for c in CUE_COLOURS}
        assert max(counts, key=lambda name: counts[name]) == sample["label"]
        assert mask.sum() == 48 * 48


def test_question_kinds_arrive_one_after_another_and_answers_with_them() -> None:
    first, other = (streams.load("scene-qa", seed=2, order=o, n_train=60, n_test=12) for o in range(2))
    assert first.experiences != other.experiences
    assert sorted(first.experiences) == sorted(other.experiences)
    for sample in first.samples:
        assert sample["label"] in sample["candidates"]
    assert [s["experience"] for s in first.samples] == sorted(s["experience"] for s in first.samples)
    assert len(first.samples[0]["candidates"]) < len(first.classes)
    assert all(s["candidates"] == first.classes for probe in first.probes for s in probe)
    assert questions.PROMPT.format(question=first.samples[0]["context"]).startswith("USER: <image>")


def test_mixing_keeps_the_samples_and_loses_the_order() -> None:
    for name in ("scene-qa", "cued-clutter"):
        blocks, mixed = (streams.load(name, mixed=m, n_train=120, n_test=12) for m in (False, True))
        turns = [s["experience"] for s in mixed.samples]
        assert turns != sorted(turns)
        assert {s["index"]: pixels(s) for s in blocks.samples} == {
            s["index"]: pixels(s) for s in mixed.samples
        }


def test_a_test_split_is_the_probes_one_after_another() -> None:
    stream = streams.load("scene-qa", split="test", n_train=6, n_test=12)
    assert [pixels(s) for s in stream] == [pixels(s) for probe in stream.probes for s in probe]


def test_scenes_of_train_and_test_differ_in_their_backgrounds_too() -> None:
    for name in [*CUED, "scene-qa"]:
        stream = streams.load(name, seed=4, n_train=24, n_test=24)
        train = {s["index"]: s for s in stream.samples}
        test = {s["index"]: s for probe in stream.probes for s in probe}
        assert not {pixels(s) for s in train.values()} & {pixels(s) for s in test.values()}
        corner = [train[i]["image"].getpixel((0, 0)) == test[i]["image"].getpixel((0, 0)) for i in train]
        assert sum(corner) < len(corner) / 2  # scenes laid out alike would share it


def test_seeds_have_scenes_of_their_own() -> None:
    for name in [*CUED, "scene-qa"]:
        one, two = ({pixels(s) for s in streams.load(name, seed=s, **SMALL).samples} for s in (0, 1))
        assert not one & two
