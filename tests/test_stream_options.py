"""Options of any stream: what they change, and that they change nothing else."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arr_coc.eval import exam, percepts, run
from arr_coc.eval.methods_features import Answered, Method
from arr_coc.training import streams
from arr_coc.training.stream_options import apply, split_name, written
from fakes import CONFIG, FakeProcessor, fake_store, tiny_clip


def made(sizes: list[int], classes: int = 2, order: int = 0) -> streams.Stream:
    """Class-incremental: experience e teaches classes of its own; another order of the same samples."""
    turns = np.random.default_rng(order).permutation(len(sizes)).tolist()
    first = np.cumsum([0, *sizes]).tolist()
    taught = [[f"{e}-{c}" for c in range(classes)] for e in turns]
    met = [[c for e in taught[: k + 1] for c in e] for k in range(len(taught))]

    def sample(turn: int, e: int, n: int, some: list[str]) -> streams.Sample:
        said = {"label": f"{e}-{n % classes}", "candidates": some, "experience": turn, "index": first[e] + n}
        return {**said, "image": first[e] + n, "context": None, "mask": None}

    train = [sample(t, e, n, met[t]) for t, e in enumerate(turns) for n in range(sizes[e])]
    probes = [[sample(t, e, n, met[-1]) for n in range(4)] for t, e in enumerate(turns)]
    return streams.Stream("made", train, taught, met[-1], list(probes))


SIZES = st.lists(st.integers(4, 12), min_size=2, max_size=5)
SEEDS = st.integers(0, 2**31)
EVERY = settings(max_examples=40, deadline=None)


def whole(samples: Any) -> list[tuple[Any, ...]]:
    return [(s["index"], s["label"], s["experience"], s["image"], tuple(s["candidates"])) for s in samples]


def unmoved(before: streams.Stream, after: streams.Stream) -> None:
    """Nothing twice, probes as they were, experiences in turn, and whatever is taught is a candidate."""
    assert len({s["index"] for s in after}) == len(after.samples)
    assert [whole(p) for p in after.probes] == [whole(p) for p in before.probes]
    turns = [s["experience"] for s in after.samples]
    assert turns == sorted(turns)
    assert all(s["label"] in s["candidates"] for s in after.samples)
    index, turn = streams.outline(after.samples)
    assert (index, turn) == ([s["index"] for s in after.samples], turns)
    assert streams.labels(after.samples) == [s["label"] for s in after.samples]


def bare(stream: streams.Stream) -> Counter:
    return Counter((s["index"], s["label"], s["image"]) for s in stream.samples)


@EVERY
@given(SIZES, SEEDS, st.floats(0.01, 1.0))
def test_blurry_brings_exactly_its_share_from_other_experiences(sizes, seed, share) -> None:
    before = made(sizes)
    own = {s["index"]: s["experience"] for s in before.samples}
    wanted = round(share * len(own))
    if len(sizes) == 2 or wanted == 1:  # who changes places needs a partner
        wanted -= wanted % 2
    if len(own) - max(sizes) < wanted / 2:
        with pytest.raises(ValueError, match="at most can come outside"):
            apply(before, seed, 0, blurry=share)
        return
    after = apply(before, seed, 0, blurry=share)
    unmoved(before, after)
    assert bare(after) == bare(before)
    away = sum(s["experience"] != own[s["index"]] for s in after.samples)
    assert away == wanted
    assert Counter(s["experience"] for s in after.samples) == Counter(own.values())
    met: set[str] = set()
    for s in after.samples:  # candidates: what the experiences met so far teach, or everything
        met |= set(before.experiences[own[s["index"]]])
        assert met <= set(s["candidates"]) or own[s["index"]] == len(sizes) - 1
        assert set(s["candidates"]) <= set(before.classes)


@EVERY
@given(SIZES, SEEDS, st.floats(0.01, 0.8))
def test_repeated_classes_come_back_later_and_never_sooner(sizes, seed, share) -> None:
    before = made(sizes)
    after = apply(before, seed, 0, repeat=share)
    own = {s["index"]: s["experience"] for s in before.samples}
    counts = Counter(own.values())
    unmoved(before, after)
    assert bare(after) == bare(before)
    late = Counter(own[s["index"]] for s in after.samples if s["experience"] != own[s["index"]])
    assert all(s["experience"] >= own[s["index"]] for s in after.samples)
    last = len(sizes) - 1
    assert {e: late[e] for e in range(last)} == {e: round(share * counts[e]) for e in range(last)}
    assert late[last] == 0


@EVERY
@given(SIZES, SEEDS, st.integers(1, 2))
def test_shots_are_so_many_of_each_class(sizes, seed, shots) -> None:
    before = made(sizes)
    after = apply(before, seed, 0, shots=shots)
    unmoved(before, after)
    assert Counter(s["label"] for s in after.samples) == dict.fromkeys(before.classes, shots)
    assert not bare(after) - bare(before)
    assert whole(after.samples) == [w for w in whole(before.samples) if w in whole(after.samples)]
    assert set(bare(apply(made(sizes, order=3), seed, 1, shots=shots))) == set(bare(after))


@EVERY
@given(SEEDS, st.sampled_from([1.5, 2, 10, "20:1", 50]), st.integers(2, 4))
def test_imbalance_has_its_ratio_and_falls_exponentially(seed, ratio, parts) -> None:
    before = made([100] * parts)
    after = apply(before, seed, 0, imbalance=ratio)
    unmoved(before, after)
    assert not bare(after) - bare(before)
    counts = sorted(Counter(s["label"] for s in after.samples).values(), reverse=True)
    wide = float(str(ratio).removesuffix(":1"))
    least = int(50 / wide)
    profile = least * wide ** (1 - np.arange(2 * parts) / (2 * parts - 1))
    assert counts == np.round(profile).astype(int).tolist()
    assert set(bare(apply(made([100] * parts, order=3), seed, 1, imbalance=ratio))) == set(bare(after))


@EVERY
@given(SIZES, SEEDS, st.floats(0.01, 1.0))
def test_noise_is_exactly_its_share_and_the_same_in_every_order(sizes, seed, share) -> None:
    before = made(sizes)
    after = apply(before, seed, 0, noise=share)
    unmoved(before, after)
    right = {s["index"]: s["label"] for s in before.samples}
    assert [s["index"] for s in after.samples] == list(right)
    assert sum(s["label"] != right[s["index"]] for s in after.samples) == round(share * len(right))
    assert {s["label"] for s in after.samples} <= set(before.classes)
    assert bare(apply(made(sizes, order=3), seed, 1, noise=share)) == bare(after)


def test_wrong_labels_are_drawn_evenly_from_the_others() -> None:
    after = apply(made([3000, 3000]), 0, 0, noise=1.0)
    counts = Counter(s["label"] for s in after.samples if s["image"] % 2 == 0 and s["image"] < 3000)
    assert counts["0-0"] == 0
    assert all(abs(counts[c] - 500) < 4 * (1500 * 2 / 9) ** 0.5 for c in ("0-1", "1-0", "1-1"))


@EVERY
@given(st.lists(st.integers(20, 40), min_size=2, max_size=5), SEEDS, st.integers(1, 3))
def test_drift_turns_every_label_in_the_second_half(sizes, seed, places) -> None:
    before = made(sizes)
    count = len(sizes)
    after = apply(before, seed, 0, drift=places)
    assert len({s["index"] for s in after}) == len(before.samples)
    right = {s["index"]: s for s in before.samples}
    ring = sorted(before.classes)
    turns = [s["experience"] for s in after.samples]
    assert turns == sorted(turns)
    assert sum(t >= count for t in turns) == len(before.samples) // 2
    for s in after.samples:
        old = right[s["index"]]
        late = s["experience"] >= count
        assert s["experience"] % count == old["experience"]
        assert s["label"] == ring[(ring.index(old["label"]) + places * late) % len(ring)]
        assert s["label"] in s["candidates"]
    assert after.experiences == before.experiences * 2
    assert after.outdated == tuple(range(count))
    assert [whole(p) for p in after.probes[:count]] == [whole(p) for p in before.probes]
    for e, probe in enumerate(after.probes[count:]):
        for new, old in zip(probe, before.probes[e], strict=True):
            assert new["image"] == old["image"]
            assert new["label"] == ring[(ring.index(old["label"]) + places) % len(ring)]
    index = [s["index"] for probe in after.probes for s in probe]
    assert len(set(index)) == 2 * len({s["index"] for probe in before.probes for s in probe})
    assert bare(apply(made(sizes, order=3), seed, 1, drift=places)) == bare(after)


@pytest.mark.parametrize("said", [{"drift": 1}, {"repeat": 1.0}])
def test_what_leaves_nothing_of_an_experience_is_refused(said: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="nothing is left of experiences"):
        apply(made([1, 9]), 0, 0, **said)


ALL = {"imbalance": 2, "repeat": 0.3, "blurry": 0.2, "drift": 1, "noise": 0.25, "delay": 3}


@settings(max_examples=15, deadline=None)
@given(SEEDS, st.sets(st.sampled_from(sorted(ALL)), min_size=2))
def test_together_they_are_deterministic_and_show_nothing_twice(seed, names) -> None:
    said = {name: ALL[name] for name in sorted(names)}
    before = made([30, 40, 50])
    after, again = (apply(before, seed, 0, **some) for some in (said, dict(reversed(said.items()))))
    assert whole(after.samples) == whole(again.samples)
    assert whole(before.samples) == whole(made([30, 40, 50]).samples)
    assert len({s["index"] for s in after}) == len(after.samples)
    assert all(s["label"] in s["candidates"] for s in after.samples)
    assert {s["index"] for s in after.samples} <= {s["index"] for s in before.samples}
    other = apply(before, seed + 1, 0, **said)
    assert names == {"delay"} or whole(other.samples) != whole(after.samples)


# -- every built-in stream -----------------------------------------------------------------------------------

# their data are not shipped
OUTSIDE = ("cifar-100", "imagenet-r", "core50", "core50-nc", "mtil", "x-tail", "coin", "ucit")


@pytest.mark.parametrize("name", [n for n in streams.STREAMS if n not in OUTSIDE])
def test_labels_are_told_without_rendering(name: str) -> None:
    small = {"n_train": 240, "n_test": 240} if name != "easy-vqa" else {"n_train": 60, "n_test": 30}
    stream = streams.load(name, 3, order=1, **small)
    assert stream.samples.told is not None
    for samples in (stream.samples, *stream.probes):
        for place in range(0, len(samples), 7):
            assert samples.told(samples.keys[place]) == samples[place]["label"]


@pytest.mark.parametrize("name", ["split-fashion", "cued-clutter-reversed", "scene-qa", "emoji-groups"])
def test_built_in_streams_take_them_by_name(name: str) -> None:
    said = "?repeat=0.25&blurry=0.1&drift=1&noise=0.2&delay=2"
    one, two, other = (streams.load(name + said, 3, order=o, n_train=240, n_test=240) for o in (0, 0, 1))
    assert one.name == name + said
    assert one.delay == 2
    train = list(one)
    assert [(s["index"], s["label"]) for s in train] == [(s["index"], s["label"]) for s in two]
    assert len(train) == 240
    assert all(s["label"] in s["candidates"] for s in train)
    assert streams.labels(one.samples) == [s["label"] for s in train]
    plain = streams.load(name, 3, n_train=240, n_test=240)
    parts = len(plain.experiences)
    assert len(one.experiences) == len(one.probes) == 2 * parts
    if name != "cued-clutter-reversed":  # whose second half has other scenes
        assert {s["index"] for s in other.samples} == {s["index"] for s in train}
    for e, probe in enumerate(one.probes[parts:]):
        answers = one.rivals[e] if one.rivals else one.classes
        assert {s["label"] for s in probe} <= set(answers)


def test_wrong_answers_to_a_question_are_answers_to_its_kind() -> None:
    stream = streams.load("scene-qa?noise=1", 0, n_train=120, n_test=60)
    plain = streams.load("scene-qa", 0, n_train=120, n_test=60)
    for noisy, sample in zip(stream, plain, strict=True):
        assert noisy["label"] != sample["label"]
        assert noisy["label"] in plain.rivals[sample["experience"]]
        assert noisy["context"] == sample["context"]


def test_a_folders_bad_rows_are_still_skipped_and_counted() -> None:
    import datasets

    rows = {"image": [{"bytes": b"none"}] * 8, "label": ["a", "b", None, "a", "b", "a", "b", "a"]}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    stream = apply(streams.from_dataset(data), 0, 0, noise=0.5)
    assert list(stream) == []
    assert stream.skipped == {"unreadable image (UnidentifiedImageError)": 7, "no label": 1}


# -- names ---------------------------------------------------------------------------------------------------


def test_names_that_mean_the_same_are_the_same() -> None:
    assert written("a") == "a"
    assert (
        written("a?noise=.20&blurry=0.1") == written("a?blurry=0.10&noise=2e-1") == "a?blurry=0.1&noise=0.2"
    )
    assert written("a?imbalance=100:1") == written("a?imbalance=100.0") == "a?imbalance=100"
    assert written("a?noise=0&delay=0&imbalance=1&drift=0&blurry=0&repeat=0") == "a"
    assert written("a?grid=3&by=classes") == "a?by=classes&grid=3"
    assert split_name("a?x=1&y=b=c") == ("a", {"x": "1", "y": "b=c"})


def test_a_streams_own_options_stand_behind_its_name_too() -> None:
    stream = streams.load("split-fashion?per_experience=5&n_train=50", n_test=50)
    assert len(stream.experiences) == 2
    assert len(stream.samples) == 50
    assert len(streams.load("cued-clutter?mixed=true&n_train=60", n_test=60).samples) == 60
    kinds = streams.load("scene-qa?kinds=colour,count", n_train=10, n_test=10).experiences
    assert sorted(kinds) == [["colour"], ["count"]]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("split-fashion?nose=0.1", "no option 'nose'; the nearest is 'noise'.*per_experience"),
        ("split-fashion?noise=1.5", "noise=1.5: a share from 0 to 1"),
        ("split-fashion?noise=much", "a share from 0 to 1"),
        ("split-fashion?noise=nan", "a share from 0 to 1"),
        ("split-fashion?shots=0", "at least 1"),
        ("split-fashion?shots=2.5", "whole number"),
        ("split-fashion?imbalance=0.5", "ratio of at least 1"),
        ("split-fashion?noise", "name=value"),
        ("split-fashion?", "name=value"),
        ("split-fashion?noise=0.1&noise=0.2", "said twice"),
        ("split-fashion?n_train=20", "n_train is given twice"),
        ("split-fashion?per_experience=two", "whole number"),
        ("cued-clutter?mixed=1", "true, false"),
        ("split-fashon?noise=0.1", "nearest is 'split-fashion'"),
        ("split-fashion?imbalance=100", "are needed; more samples"),
        ("split-fashion?shots=100", "samples of"),
        ("split-fashion?drift=10", "are what they were"),
        ("same-different?blurry=0.1", "one experience only"),
        ("cued-clutter?mixed=true&repeat=0.1", "mixed already"),
    ],
)
def test_what_is_wrong_in_a_name_is_said(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        streams.load(name, n_train=120, n_test=120)


# -- the harness ---------------------------------------------------------------------------------------------


def test_a_grid_keeps_runs_with_other_options_apart(tmp_path) -> None:
    out = tmp_path / "runs.jsonl"
    asked = {"seeds": [0], "orders": [0], "model": (tiny_clip(), FakeProcessor()), "out": out, "held": 0}
    found = {}
    names = ["split-fashion", "split-fashion?noise=0.5", "split-fashion?drift=1&noise=0.5"]
    for name in names:
        grid = run.Grid(name, 4, n_train=60, n_test=40, config=CONFIG)
        found[name] = run.run(grid, ["ncm"], **asked)
    assert len(out.read_text().splitlines()) == 3
    again = run.Grid("split-fashion?noise=0.50&drift=1", 4, n_train=60, n_test=40, config=CONFIG)
    assert run.run(again, ["ncm"], **asked) == found["split-fashion?drift=1&noise=0.5"]
    assert len(out.read_text().splitlines()) == 3
    assert len({r[0]["key"] for r in found.values()}) == 3
    labels = [r[0]["label"] for r in found.values()]
    assert labels == ["split-fashion@4", "split-fashion?noise=0.5@4", "split-fashion?drift=1&noise=0.5@4"]
    assert np.shape(found[names[2]][0]["R"]) == (11, 10)
    assert found[names[2]][0]["outdated"] == [0, 1, 2, 3, 4]


class Watching(Method):
    """Writes down what it is told and when it is examined."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def observe(self, batch: percepts.Batch) -> None:
        self.heard.append(batch.rows.tolist())

    def answer(self, batch: percepts.Batch, texts: list[str]) -> Answered:
        self.heard.append("exam")
        return Answered(batch.own_logits(texts))

    def state_bytes(self) -> int:
        return 0


@pytest.mark.parametrize("delay", [0, 1, 3, 50])
def test_labels_that_come_late_are_learned_late_and_none_is_lost(delay: int) -> None:
    store, size, ends = fake_store(24), 2, [10, 20]
    stream = streams.Stream("late", [{}] * 20, [["x"], ["y"]], [], [], delay=delay)
    plan = percepts.Plan(
        torch.arange(20),
        ends,
        [torch.tensor([20, 21])],
        stream.experiences,
        [store.classes],
        stream,
        [[0, 1]],
        list(range(20)),
    )
    method = Watching()
    record = exam.one(method, plan, store, size)
    steps = [[i, i + 1] for i in range(0, 20, 2)]
    known = max(0, 5 - delay)  # steps whose label has come when the first experience ends
    assert method.heard == ["exam", *steps[:known], "exam", *steps[known:], "exam"]
    assert record["samples_waiting"] == (min(2 * (delay + 1), 20) if delay else 0)
    assert record["steps"] == 10
