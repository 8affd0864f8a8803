"""Many positions of a text about one picture: its tokens are worked on once, the answers stay the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from arr_coc import ArrCocConfig, attach
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.answer import Answer, fuse
from arr_coc.learner import Learner
from arr_coc.percept import Percept

OF = torch.tensor([1, 0, 1, 1, 0])  # which picture each of five positions is about


def shared(masked: bool = False) -> Percept:
    draw = torch.Generator().manual_seed(3)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    return Percept(
        tokens=tuple(torch.randn(2, 9, 12, generator=draw) for _ in range(2)),
        attention=torch.rand(5, 9, generator=draw),
        context=torch.randn(5, 4, generator=draw),
        mask=mask[OF] if masked else None,
        state=torch.randn(5, 7, generator=draw),
        grid=None if masked else (3, 3),
        asked="sequence",
        sample=OF,
    )


def own(percept: Percept) -> Percept:
    """The same with tokens for every entry."""
    return replace(percept, tokens=tuple(t[percept.sample] for t in percept.tokens), sample=None)


def fitted() -> Learner:
    learner = Learner(ArrCocConfig(width=8, expansion=6), [12, 12], 4, 7)
    learner.relevance_weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(5))
    for turn in range(6):
        learner.learn(own(shared()), [str((turn + i) % 3) for i in range(5)])
    return learner


@pytest.mark.parametrize("masked", [False, True])
def test_entries_that_share_tokens_are_answered_as_with_tokens_of_their_own(masked: bool) -> None:
    learner, percept = fitted(), shared(masked)
    found, expected = learner.answer(percept), learner.answer(own(percept))
    for name in ("relevance", "surprise", "values", "trust", "features", "scene", "gamma"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-5, atol=1e-6)
    assert found.relevance.shape == (5, 9)
    assert not torch.allclose(found.scene[0], found.scene[1])  # two pictures, told apart


def test_what_was_made_of_a_picture_is_made_anew_where_learning_moves_it() -> None:
    """How unusual a scene is changes with every sample; a percept that is kept asks again."""
    learner, kept = Learner(ArrCocConfig(width=8, expansion=6), [12, 12], 4, 7), replace(shared(), made={})
    assert (learner.answer(kept).trust == 0).all()  # nothing is known
    for _ in range(20):
        learner.learn(own(shared()), ["0", "1", "2", "1", "0"])
    assert (learner.answer(kept).trust > 0.9).all()
    torch.testing.assert_close(learner.answer(kept).trust, learner.answer(own(shared())).trust)


def test_some_of_the_entries_keep_their_own_pictures() -> None:
    percept, some = shared(), torch.tensor([4, 0])
    for t, expected in zip(own(percept[some]).tokens, own(percept).tokens, strict=True):
        assert torch.equal(t, expected[some])


def test_a_picture_that_is_not_finite_makes_all_its_entries_so() -> None:
    percept = shared()
    percept.tokens[1][0, 3, 2] = float("nan")
    assert percept.finite().tolist() == [True, False, True, True, False]


def test_which_picture_has_to_be_said_for_every_entry() -> None:
    with pytest.raises(ValueError, match=r"\(5,\) is needed"):
        replace(shared(), sample=OF[:3])
    with pytest.raises(ValueError, match=r"\(2, 9, 'd'\) is needed"):
        replace(shared(), tokens=(torch.zeros(2, 9, 12), torch.zeros(3, 9, 12)))


def test_a_forward_over_many_positions_works_on_each_picture_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It once laid the tokens out for every position anew: a tenth of the forward pass."""
    attached = attach(tiny.generative(), ArrCocConfig(width=16, expansion=8))
    inputs = tiny.generative_inputs()
    for _ in range(4):
        attached.learn(**tiny.answered(inputs, torch.tensor([[7, 2], [8, 2]])))
    learner, met = attached.learner, []
    features = learner.ladder.features
    monkeypatch.setattr(learner.ladder, "features", lambda t: met.append(t[0].shape) or features(t))
    out = attached(**inputs)
    assert met == [(2, 16, 32)]
    assert out.relevance.shape == (2, 16)
    attached.detach()


def test_fusing_what_was_learned_alone_gives_the_bits_of_fusing_the_whole_vocabulary() -> None:
    """Beside the formula written out: log-sum over every column, also where one side is log 0."""
    draw = torch.Generator().manual_seed(6)
    answer = fitted().answer(own(shared()))
    for dtype in (torch.float32, torch.bfloat16):
        for trust in ([0.0, 1.0, 0.3, 1e-300, 0.9], [0.0] * 5, [1.0] * 5):
            logits = (torch.randn(5, 400, generator=draw) * 10).to(dtype)
            rows = torch.full((400,), -1)
            rows[torch.tensor([390, 7, 52])] = torch.arange(3)
            given = replace(answer, trust=torch.tensor(trust, dtype=torch.float64))
            assert torch.equal(fuse(logits, rows, given, 10.0), whole(logits, rows, given, 10.0))


def whole(logits: torch.Tensor, rows: torch.Tensor, answer: Answer, scale: float) -> torch.Tensor:
    wide = logits.double()
    log_own, t = wide.log_softmax(1), answer.trust.unsqueeze(1)
    learned = torch.full_like(log_own, -torch.inf)
    learned[:, rows >= 0] = (scale * answer.values[:, rows[rows >= 0]]).log_softmax(1)
    mixed = torch.logaddexp(torch.log1p(-t) + log_own, t.log() + learned)
    fused = (wide + mixed - log_own).clamp_min(torch.finfo(logits.dtype).min / 4)
    return torch.where(t > 0, fused.to(logits.dtype), logits)


def test_a_score_of_minus_infinity_is_no_nan() -> None:
    """A model that rules a word out in its own scores once got NaN for it, and with it no answer at all."""
    answer = replace(fitted().answer(own(shared())), trust=torch.full((5,), 0.5, dtype=torch.float64))
    rows = torch.tensor([0, -1, 1, -1, 2])
    logits = torch.tensor([0.5, -torch.inf, 1.0, 2.0, -torch.inf]).repeat(5, 1)
    found = fuse(logits, rows, answer, 10.0)
    assert torch.isfinite(found).all()
    assert (found[:, 1] < -1e30).all()  # never learned, and still ruled out
    almost = fuse(logits.masked_fill(logits.isinf(), -1e30), rows, answer, 10.0)
    torch.testing.assert_close(found.softmax(1), almost.softmax(1))


def test_a_text_is_written_with_its_pictures_worked_on_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every decoding step once made the same features of the same tokens anew; nothing is kept afterwards."""
    attached = attach(tiny.generative(), ArrCocConfig(width=16, expansion=8))
    inputs = tiny.generative_inputs()
    for _ in range(4):
        attached.learn(**tiny.answered(inputs, torch.tensor([[7, 2], [8, 2]])))
    attached.add_adapter("other", ArrCocConfig(width=8, expansion=4))
    attached.set_active(["default", "other"])
    how = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    met: dict[str, list[torch.Tensor]] = {}
    for name in attached.adapters:
        ladder, heard = attached.adapter(name).ladder, met.setdefault(name, [])
        made = ladder.features
        monkeypatch.setattr(ladder, "features", lambda t, h=heard, m=made: h.append(t[0]) or m(t))
    scores = attached.generate(**inputs, **how, output_scores=True, return_dict_in_generate=True)
    assert [len(heard) for heard in met.values()] == [1, 1]
    attached.generate(**{**inputs, "pixel_values": inputs["pixel_values"].flip(0)}, **how)
    assert [len(heard) for heard in met.values()] == [2, 2]  # another text, other pictures
    assert attached.body.now.seen is None

    percept = GenerativeBody.percept

    def anew(*args: Any) -> Percept:
        return replace(percept(*args), made=None)

    monkeypatch.setattr(GenerativeBody, "percept", anew)
    again = attached.generate(**inputs, **how, output_scores=True, return_dict_in_generate=True)
    assert [len(heard) for heard in met.values()] == [6, 6]
    assert all(torch.equal(a, b) for a, b in zip(scores.scores, again.scores, strict=True))
    attached.detach()
