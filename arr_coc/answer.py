"""What the learner makes of a percept, and how it is mixed with what the model says itself."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from arr_coc.ladder import Climb
from arr_coc.relevance import Course, Settled


@dataclass(frozen=True)
class Answer:
    """What the learner makes of a percept.

    Args:
        relevance: settled, and supported by its neighbours, (B, N), sums to 1 over the tokens.
        reading: the weights that features are read with: settled, and spread, (B, N), sums to 1.
        surprise: F, (B,).
        values: R phi, (B, K) in float64 (and on the CPU where the device has none), one column per class in
            `Learner.classes`: what is taught.
        evened: the same with the sizes of the classes evened out (see `PrecisionReadout.evened`), (B, K):
            what is answered by.
        trust: how far the values are trusted against the model's own scores, (B,) in [0, 1]: by how unusual
            phi is among what was learned, or the whole scene if that is more unusual.
        learned: the log-odds that the answer is one that was learned, (B,) (see `unlearned`).
        gamma: the log-precision that settled to r, (B, N).
        settled: iterations and residual of the settling.
        climb: the pass up the ladder.
        features: f of all sites side by side, (B, N, F).
        scene: what the whole scene looks like at the lowest site: mean and standard deviation of its features
            over all tokens, and 1, (B, 2 width + 1); the same whatever is relevant.
        context: as U sees it, (B, C).
        course: what the moments before had to say, if that is switched on.
    """

    relevance: Tensor
    reading: Tensor
    surprise: Tensor
    values: Tensor
    evened: Tensor
    trust: Tensor
    learned: Tensor
    gamma: Tensor
    settled: Settled
    climb: Climb
    features: Tensor
    scene: Tensor
    context: Tensor
    course: Course | None = None


def near(wide: Tensor, other: Tensor) -> Tensor:
    """A float64 tensor on the device of another one; on the CPU where that device has no float64 (mps)."""
    return wide.cpu() if other.device.type == "mps" else wide.to(other.device)


def check_finite(answer: Answer, step: int) -> None:
    """Whether what would be learned from is finite.

    Raises:
        FloatingPointError: if activations have overflown; `step` says at which sample.
    """
    if not bool(torch.isfinite(answer.climb.phi).all() and torch.isfinite(answer.scene).all()):
        raise FloatingPointError(
            f"the features of the sample at {step} are not finite: its activations overflow float32; nothing "
            "was changed"
        )


def fuse(own_logits: Tensor, rows: Tensor, answer: Answer, value_scale: float) -> Tensor:
    """own + log((1 - t) + t p_learned / p_own): the model's own scores and the learned values, mixed by
    trust.

    p_own = softmax(own) over the candidates, t the trust. p_learned of those that were learned is
    (1 - q) softmax(s v), v their values evened out; of the rest q softmax(own) over that rest, with
    q = 1 / (1 + exp(e)) the probability that it is one of them (e: `Answer.learned`); q is 0 where all were
    learned, or the model rules all the rest out. Where t is 0 the model's own scores come back bit for bit.

    Args:
        own_logits: (B, K).
        rows: of the K candidates in the readout, on the device of the values, (K,); -1: never learned.
        value_scale: s.
    """
    known, trusted = rows >= 0, answer.trust > 0
    if not (known.any() and trusted.any()):
        return own_logits
    own = own_logits[trusted.to(own_logits.device)].to(answer.values)
    learned = (value_scale * answer.evened[trusted][:, rows[known]]).log_softmax(1)
    t, e = answer.trust[trusted].unsqueeze(1), answer.learned[trusted].unsqueeze(1)
    total = own.logsumexp(1, keepdim=True)
    others = torch.log1p(-t)  # what those that were never learned have, over their own score
    if bool((e < torch.inf).any()):  # of a vocabulary it never is
        rest = own.masked_fill(known, -torch.inf).logsumexp(1, keepdim=True)
        e = e.masked_fill(rest == -torch.inf, torch.inf)  # nothing else can be the answer
        lifted = torch.where(e < torch.inf, logsigmoid(-e) + total - rest, -torch.inf)
        others = torch.logaddexp(others, t.log() + lifted)
    # of a whole vocabulary only the columns that were learned need the sum: no other is normalised, so a
    # score of -inf stays a number
    mixed = others + own
    mixed[:, known] = (
        torch.logaddexp(torch.log1p(-t) + own[:, known] - total, t.log() + logsigmoid(e) + learned) + total
    )
    # a candidate that was never learned keeps a finite score, far below every other
    floor = torch.finfo(own_logits.dtype).min / 4
    fused = own_logits.clone()
    fused[trusted.to(fused.device)] = mixed.clamp_min_(floor).to(fused)
    return fused
