"""The exam of selection: each way takes k tokens as its paper says, and right means what `generate`
writes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from arr_coc.eval import selection, selection_speed
from arr_coc.eval.selection_baselines import (
    WAYS,
    Chosen,
    Evidence,
    divprune,
    grid_of,
    own,
    uniform,
    visionzip,
)
from arr_coc.eval.selection_exam import BUDGETS, Examiner, Scores, exam, joined, scenes_of


def evidence(count: int = 144, seed: int = 0) -> Evidence:
    draw = torch.Generator().manual_seed(seed)

    def some(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=draw)

    truth = torch.zeros(count, dtype=torch.bool)
    truth[: count // 4] = True
    scores = some(count), some(3, count), some(count), some(count)
    return Evidence(some(count, 8) - 0.5, some(count, 6), *scores, truth, seed, some(4))


@pytest.fixture(scope="module")
def examiner() -> Examiner:
    return Examiner()


# -- ways to choose ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(WAYS))
@pytest.mark.parametrize("k", [*BUDGETS, 1, 143, 144])
def test_every_way_takes_exactly_k(name: str, k: int) -> None:
    chosen = WAYS[name].choose(evidence(), k)
    assert chosen.place.tolist() == sorted(set(chosen.place.tolist()))
    assert len(chosen.place) == k
    assert chosen.tokens is None or chosen.tokens.shape == (k, 8)


def test_divprune_takes_the_farthest_each_time() -> None:
    seen = evidence(12)
    unit = normalize(seen.tokens.double(), dim=1)

    def far(a: int, b: int) -> float:
        return 1 - float(unit[a] @ unit[b])

    taken = [max(range(12), key=lambda n: min(far(n, m) for m in range(12) if m != n))]
    while len(taken) < 5:
        rest = [n for n in range(12) if n not in taken]
        taken.append(max(rest, key=lambda n: min(far(n, m) for m in taken)))
    assert divprune(seen, 5).place.tolist() == sorted(taken)


def test_visionzip_keeps_every_token_in_some_mean() -> None:
    """Each token is either kept, or in the mean of the target that its key is most like."""
    seen = evidence()
    chosen = visionzip(seen, 16)
    assert chosen.tokens is not None
    dominant = set(seen.of_class.topk(14).indices.tolist())  # 16 less round(16 * 10 / 64)
    assert dominant <= set(chosen.place.tolist())
    targets = [int(p) for p in chosen.place if int(p) not in dominant]
    groups: dict[int, list[int]] = {t: [t] for t in targets}
    keys = normalize(seen.keys.double(), dim=1)
    for n in range(144):
        if n not in dominant and n not in targets:
            groups[max(targets, key=lambda t: float(keys[n] @ keys[t]))].append(n)
    for place, token in zip(chosen.place.tolist(), chosen.tokens, strict=True):
        want = seen.tokens[groups.get(place, [place])].mean(0)
        torch.testing.assert_close(token, want)


def test_a_uniform_grid_is_even() -> None:
    assert [grid_of(k) for k in BUDGETS] == [(6, 8), (4, 8), (4, 4), (2, 4)]
    place = uniform(evidence(), 16).place
    assert sorted(set((place // 12).tolist())) == sorted(set((place % 12).tolist())) == [1, 4, 7, 10]


def test_the_ceiling_stays_in_the_tile() -> None:
    seen = evidence()
    assert seen.truth is not None
    assert bool(seen.truth[WAYS["tile"].choose(seen, 36).place].all())


# -- the exam ------------------------------------------------------------------------------------------------


def test_pictures_are_drawn_from_their_seed_and_split() -> None:
    first, again, other = (scenes_of("2x2", 3, s) for s in (0, 0, 1))
    assert [s.text for s in first] == [s.text for s in again]
    assert [s.text for s in first] != [s.text for s in other]
    assert [s.text for s in first] != [s.text for s in scenes_of("2x2", 3, 0, "train")]
    assert [s.image for s in first] == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match="2x2, 3x3 and single"):
        scenes_of("4x4", 1, 0)


def test_right_is_what_generate_writes(examiner: Examiner) -> None:
    """The exam's own choice and answer are those of `generate(keep_tokens=16)`, with and without it."""
    samples = scenes_of("2x2", 4, 3)
    seen = examiner.evidence(samples)
    chosen = [own(e, 16, 0.35) for e in seen]
    for options, right in (
        ({}, examiner.right(samples, seen, None)),
        ({"keep_tokens": 16, "mix": 0.35}, examiner.right(samples, seen, chosen)),
    ):
        texts = [f"USER: <image>\n{s.text} ASSISTANT:" for s in samples]
        inputs = examiner.processor(
            text=texts, images=[s.picture for s in samples], return_tensors="pt", padding=True
        )
        written = examiner.attached.generate(**inputs, max_new_tokens=6, do_sample=False, **options)
        said = examiner.words.batch_decode(
            written[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert [a.strip() == s.answer for a, s in zip(said, samples, strict=True)] == right.astype(
            bool
        ).tolist()
    kept = examiner.attached.kept
    assert kept is not None
    assert all(torch.equal(a, b.place) for a, b in zip(kept.tokens, chosen, strict=True))


def test_all_tokens_chosen_is_the_full_model(examiner: Examiner) -> None:
    samples = scenes_of("3x3", 3, 5)
    seen = examiner.evidence(samples)
    every = [Chosen(torch.arange(144)) for _ in seen]
    assert np.array_equal(examiner.right(samples, seen, every), examiner.right(samples, seen, None))


def test_easy_pictures_have_no_tile(examiner: Examiner) -> None:
    scores = exam(examiner, scenes_of("single", 2, 0), ["relevance", "tile"], (16,))
    assert list(scores.kept) == ["relevance"]


def test_differences_are_over_images() -> None:
    """Both questions of a picture are one unit: two pictures, whatever their questions say."""
    parts = [Scores(scenes_of("2x2", 2, seed), np.array([1.0, 0, 1, 1])) for seed in (0, 1)]
    for p in parts:
        p.kept = {n: {k: np.array([1.0, 1, 1, 1]) for k in BUDGETS} for n in ("arr-coc", "random")}
    scores = joined(parts)
    assert scores.by_image(scores.full).tolist() == [0.5, 1.0, 0.5, 1.0]
    found = selection.difference(scores, "arr-coc", None)
    assert (found.mean, found.n) == (0.25, 4)
    assert selection.difference(scores, "arr-coc", "random").sign == 0
    table = selection.accuracies(scores, "two")
    assert table.rows[1][0] == WAYS["arr-coc"].about
    assert "2 seeds" in table.title
    assert "within the 1 point" in selection.verdict({"two": scores})[0]
    worse = replace(
        scores, full=np.ones(8), kept={n: {k: v[k] * 0 for k in v} for n, v in scores.kept.items()}
    )
    assert "more than the 1 point" in selection.verdict({"two": worse})[0]


def test_speed_is_measured_with_the_choice_in_it() -> None:
    speed = selection_speed.measure((64,), repeats=1, shrink=32, depth=4)
    assert set(speed.kept) == {64}
    assert min(speed.bare, speed.attached, speed.kept[64]) > 0
    assert selection_speed.shown(speed).rows[2][1] == "64"
    assert selection_speed.TOKENS == 576
