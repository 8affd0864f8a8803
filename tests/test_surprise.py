"""The measurement of surprise: detectors and scores by hand, token-level surprise, and the gate's reach."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arr_coc import ArrCocConfig, Learner, Percept, state
from arr_coc.eval import surprise
from arr_coc.eval import surprise_classes as sc
from arr_coc.eval import surprise_text as st
from arr_coc.eval.jsonl import append
from arr_coc.token_surprise import token_surprise

SMALL = ArrCocConfig(width=6, expansion=4)


def percept(seed: int, asked: str = "image", batch: int = 1) -> Percept:
    draw = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(batch, 12, 6, generator=draw) for _ in range(2))
    attention = torch.rand(batch, 12, generator=draw)
    context = torch.eye(4)[torch.randint(3, (batch,), generator=draw)]
    return Percept(tokens, attention, context, grid=(3, 4), asked=asked)  # type: ignore[arg-type]


def taught(config: ArrCocConfig, asked: str = "image") -> Learner:
    made = Learner(config, [6, 6], 4)
    for t in range(8):
        made.learn(percept(t, asked), ["abc"[t % 3]])
    return made


# -- token by token ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["context", "answer"])
def test_a_tokens_surprise_is_that_of_a_sample_whose_relevance_is_all_on_it(top: str) -> None:
    learner = taught(replace(SMALL, surprise=top))
    answer = learner.answer(percept(50, batch=2))
    found = token_surprise(learner, answer)
    assert found.shape == (2, 12)
    for n in (0, 7):
        climb = learner.ladder.climb(answer.features[:, n], answer.context, None)
        if learner.answers is None:
            one = learner.errors.surprise(learner.errors.errors(climb.states, answer.context))
        else:
            one = learner.answers.surprise(climb.drives[-1])
        torch.testing.assert_close(found[:, n], one, atol=1e-5, rtol=1e-5)


def test_around_a_token_features_are_averaged_over_those_that_exist() -> None:
    learner = taught(replace(SMALL, surprise="answer"))
    answer = learner.answer(percept(50))
    f = answer.features.reshape(1, 3, 4, -1)
    corner, middle = f[:, :2, :2].mean((1, 2)), f[:, :, :3].mean((1, 2))
    found = token_surprise(learner, answer, (3, 4), around=1)
    assert learner.answers is not None
    wanted = learner.answers.surprise(torch.stack([corner, middle], 1)[..., -6:])
    torch.testing.assert_close(found[:, [0, 5]], wanted, atol=1e-5, rtol=1e-5)


def test_a_ladder_with_a_state_has_token_surprise_too() -> None:
    learner = Learner(SMALL, [6, 6], 4, state_width=9)
    given = replace(percept(1, "sequence"), state=torch.randn(1, 9))
    found = token_surprise(learner, learner.answer(given))
    assert torch.isfinite(found).all()


# -- the gate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", ["boost", "damp"])
def test_where_nothing_is_asked_the_gate_changes_nothing(sign: str) -> None:
    """split-fashion asks nothing, so its relevance is not learned, and there is no update to gate."""
    off, gated = taught(SMALL), taught(replace(SMALL, surprise_gate=sign))
    mine, its = state.tensors(off), state.tensors(gated)
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    asked = taught(SMALL, "text"), taught(replace(SMALL, surprise_gate=sign), "text")
    assert not torch.equal(asked[0].relevance_weight, asked[1].relevance_weight)


# -- switches ------------------------------------------------------------------------------------------------


def test_the_sum_alarms_after_as_many_steps_as_its_threshold_takes() -> None:
    z = np.array([0.0] * 5 + [1.5] * 5)  # each step adds 1 above the drift of a half
    assert sc.alarms(z, 2.5) == [7]
    assert sc.alarms(-z, 2.5) == []
    assert sc.alarms(-z, 2.5, both=True) == [7]
    assert sc.alarms(np.array([1.5] * 6), 1.5) == [1, 3, 5]  # from 0 again after each


def test_the_first_alarm_behind_a_switch_is_its_own_and_all_others_are_false() -> None:
    delays, false = sc.detected([3, 12, 15, 31], [10, 20, 30, 40])
    assert delays == [2, 10, 1]  # the second switch was missed: its experience is 10 long
    assert false == 1000 * 2 / 40


def test_a_signal_is_standardised_by_what_came_before() -> None:
    draw = np.random.default_rng(0)
    signal = draw.normal(5, 2, 3000)
    z = sc.standardised(signal)
    assert not z[: sc.MEMORY].any()
    assert abs(z[1000:].mean()) < 0.1
    assert z[1000:].std() == pytest.approx(1.0, abs=0.1)
    later = np.concatenate([signal, [1e9]])
    assert (sc.standardised(later)[:3000] == z).all()


def test_the_threshold_keeps_to_its_false_alarms_and_a_shift_is_found() -> None:
    draw = np.random.default_rng(0)
    quiet, shift = draw.normal(size=2000), np.repeat([0.0, 1.5, 0.0, 1.5], 500)
    passed = sc.Course({}, {"noise": quiet, "shifting": quiet + shift}, [500, 1000, 1500, 2000])
    h = sc.threshold([passed], "noise")
    assert sc.detected(sc.alarms(sc.standardised(quiet), h), passed.ends)[1] <= sc.TARGET
    told = sc.switches(passed, {"shifting": h})["shifting"]
    assert told["within 50"] >= 2 / 3  # up twice, and down once, which one side does not hear
    assert math.isfinite(told["delay"])


# -- texts ---------------------------------------------------------------------------------------------------


def test_a_shuffled_question_has_the_same_words_in_another_order() -> None:
    question = "what colour is the coat?"
    mixed = st.shuffled(question, np.random.default_rng(0))
    assert mixed != question
    assert sorted(mixed.rstrip("?").split()) == sorted(question.rstrip("?").split())
    assert mixed.endswith("?")


def test_pieces_are_put_together_to_words() -> None:
    assert st._whole(["a", "##n", "##kle", "boot", "?"]) == ["ankle"] * 3 + ["boot", "?"]


def test_words_that_name_something_are_told_from_the_template() -> None:
    from arr_coc.adapters import attach, embedded
    from arr_coc.training import streams

    model, processor = embedded.load("generative")
    attached = attach(model, ArrCocConfig(expansion=0, sequence=True))
    stream = streams.load("scene-qa", 0, n_train=6, n_test=6)
    (batch,) = st.read(attached, processor, stream.samples, str)
    attached.detach()
    for row, sample in enumerate(stream.samples):
        words = [w for w in sample["context"].rstrip("?").split() if w not in st.TEMPLATE]
        pieces = sum(len(processor.tokenizer(word)["input_ids"]) for word in words)
        assert int(batch.names[row].sum()) == pieces
        assert not (batch.names[row] & ~batch.text.words[row]).any()
    assert torch.isfinite(batch.own).all()


# -- told ----------------------------------------------------------------------------------------------------


def test_a_table_pairs_what_is_compared_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "records.jsonl"
    for seed, (off, boost) in enumerate([(0.5, 0.4), (0.6, 0.52), (0.7, 0.58)]):
        scores = {"off": off, "boost": boost}
        append(kept, {"part": "gate", "stream": "cued-clutter-novel", "seed": seed, "scores": scores})
    surprise.main(["--records", str(kept)])
    told = capsys.readouterr().out
    assert "**gate, cued-clutter-novel** (3 seeds)" in told
    assert "| off | 0.600 | 0.248 |" in told
    assert "| boost - off | -0.100 | 0.050 |" in told


def test_without_records_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        surprise.main(["--records", str(tmp_path / "none.jsonl")])
