"""Sequences: the error module of a language tower, which runs over a text's tokens instead of up the ladder.

    epsilon_t = z_t - V [z_{t-1}, 1]                    the next token's state from this one's
    Delta V = epsilon_t k',  k = Q [z_{t-1}, 1] / (1 + [z_{t-1}, 1]' Q [z_{t-1}, 1])
    Delta log Pi = eta/2 (1 - Pi epsilon_t^2)
    F_t = 1/2 (Pi epsilon_t^2 - log Pi), mean over units: the surprise of a token; a text's is their mean

k is the key of the state before, Q the recursive inverse second moment of such states (a presynaptic
precision): hidden states are so alike that the plain product eta Pi epsilon_t z_{t-1}' unlearns with each
token what it learned of the last. With the key V is the ridge solution at every moment, and Pi cancels.

Beside it an association from time alone, over pairs s < t of one text, all states less their mean:
    A = sum e^{-(t-s)/tau} z_t z_s',  S = C^-1 (A_plus A - A_minus A') C^-1,  C their covariance
What usually follows is strengthened by what came before it, and what usually precedes is weakened (Bi & Poo,
1998, as in `relevance.temporal`).
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm, pad

from arr_coc.familiarity import absorb

if TYPE_CHECKING:
    from arr_coc.config import ArrCocConfig

_BOUND = 12.0  # |log Pi| stays under this, as in `error_module`


@dataclass(frozen=True)
class Text:
    """What one frozen forward pass leaves of B texts with T tokens at most.

    Args:
        states: the language side's last hidden states, (B, T, d).
        mask: which tokens there are, (B, T) bool.
        attention: the row of whoever sums the text up (a text tower's pooled position, a generative model's
            answer) over the tokens, (B, T); rows need not sum to 1.
        words: which tokens may be relevant: those that begin, end or separate may not, (B, T) bool.
        pooled: the state at the position of that row, (B, d).
    """

    states: Tensor
    mask: Tensor
    attention: Tensor
    words: Tensor
    pooled: Tensor

    def __post_init__(self) -> None:
        shape = self.states.shape[:2]
        for name in ("mask", "attention", "words"):
            given = getattr(self, name).shape
            if given != shape:
                raise ValueError(f"{name} has shape {tuple(given)}; {tuple(shape)} is needed")
        if self.pooled.shape != (shape[0], self.states.shape[2]):
            raise ValueError(f"pooled has shape {tuple(self.pooled.shape)}; one state per text is needed")

    def __getitem__(self, rows: Tensor) -> "Text":
        """Some of the texts."""
        fields = (self.states, self.mask, self.attention, self.words, self.pooled)
        return Text(*(tensor[rows] for tensor in fields))


@dataclass(frozen=True)
class Reading:
    """What a text's own tokens were worth.

    Args:
        relevance: (B, T), sums to 1 over the words of each text; 0 elsewhere.
        surprise: F_t, (B, T), nats per unit; 0 at a text's first token and where there is none.
        mean: F of each text, (B,); 0 for a text of one token.
    """

    relevance: Tensor
    surprise: Tensor
    mean: Tensor


class SequenceErrors(nn.Module):
    """V, Pi and A over texts, learned online: no gradient, and no text is kept. All of it in float64.

    States are layer-normalised and, where they are wider than W, reduced by a fixed matrix with orthonormal
    rows, as the ladder's are.

    Args:
        wide: d, of the states. width: W at most.
        eta: step of Pi, and without a key of V.
        gain: g, what an association is worth in nats of relevance.
        key: whether V learns by the key; else by Delta V = eta Pi epsilon_t [z_{t-1}, 1]' (normalised).
        tau: of the association, in tokens. penalty: A_minus, where A_plus is 1.
        ridge: the prior of Q. shrink: that of C, in units of its mean variance.
        seed: of the fixed matrix.
    """

    state_names = (
        *("project", "weight", "log_precision", "precision"),
        *("association", "after", "before", "pushed", "second_moment", "total", "count"),
    )

    def __init__(
        self,
        wide: int,
        width: int,
        eta: float = 0.01,
        gain: float = 0.0,
        key: bool = True,
        tau: float = 1.0,
        penalty: float = 1.0,
        ridge: float = 1.0,
        shrink: float = 0.01,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.width, self.eta, self.gain, self.key = min(wide, width), eta, gain, key
        self.tau, self.penalty, self.shrink = tau, penalty, shrink
        self.project: Tensor  # (W, d)
        self.weight: Tensor  # V, (W, W + 1); the last column is what any token predicts
        self.log_precision: Tensor  # log Pi, (W,)
        self.precision: Tensor  # Q, (W + 1, W + 1)
        self.association: Tensor  # A of the states as they are, (W, W)
        self.after: Tensor  # sum of e^{-(t-s)/tau} z_t, (W,)
        self.before: Tensor  # of z_s
        self.pushed: Tensor  # and of 1
        self.second_moment: Tensor  # sum of z z' over all tokens, (W, W)
        self.total: Tensor  # of z, (W,)
        self.count: Tensor  # and their number
        draw = torch.Generator().manual_seed(seed)
        matrix = torch.eye(wide)
        if wide > self.width:
            basis = torch.linalg.qr(torch.randn(wide, self.width, generator=draw)).Q.T.contiguous()
            matrix = basis * (wide / self.width) ** 0.5  # unit variance per feature is kept
        w, exact = self.width, torch.float64
        self.register_buffer("project", matrix.to(exact))
        self.register_buffer("weight", torch.zeros(w, w + 1, dtype=exact))
        self.register_buffer("log_precision", torch.zeros(w, dtype=exact))
        self.register_buffer("precision", torch.eye(w + 1, dtype=exact) / ridge)
        for name in ("association", "second_moment"):
            self.register_buffer(name, torch.zeros(w, w, dtype=exact))
        for name in ("total", "after", "before"):
            self.register_buffer(name, torch.zeros(w, dtype=exact))
        self.register_buffer("pushed", torch.zeros((), dtype=exact))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def features(self, states: Tensor) -> Tensor:
        """z, (..., W)."""
        return layer_norm(states.to(self.project), states.shape[-1:]) @ self.project.T

    def predicted(self, z: Tensor) -> Tensor:
        """V [z, 1], what is expected to follow each state, (..., W)."""
        return pad(z, (0, 1), value=1.0) @ self.weight.T

    def surprise(self, z: Tensor, mask: Tensor) -> Tensor:
        """F_t, (B, T), of states (B, T, W); 0 where there is no token, or none before it."""
        error = z[:, 1:] - self.predicted(z[:, :-1])
        each = 0.5 * (self.log_precision.exp() * error**2 - self.log_precision).mean(-1)
        return pad(torch.where(follows(mask), each, 0.0), (1, 0))

    def announced(self, z: Tensor, mask: Tensor) -> Tensor:
        """cos(z_t, S x_t) less the mean state, (B, T) in [-1, 1], x_t the trace of the tokens before; 0 where
        there are none."""
        mean = self.total / self.count.clamp_min(1)
        apart = z - mean
        pairs = self.association - torch.outer(self.after, mean) - torch.outer(mean, self.before)
        pairs = pairs + self.pushed * torch.outer(mean, mean)
        spread = self.second_moment / self.count.clamp_min(1) - torch.outer(mean, mean)
        prior = self.shrink * spread.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
        inverse = torch.linalg.inv(spread + prior * torch.eye(self.width).to(spread))
        learned = inverse @ (pairs - self.penalty * pairs.T) @ inverse
        trace = self._kernel(z, mask) @ apart
        return cosine_similarity(apart, trace @ learned.T, dim=-1, eps=1e-30) * mask

    def read(self, text: Text) -> Reading:
        """Relevance and surprise of a text's tokens. Changes nothing.

        r = softmax over the words of log a_t + cos(z_t, z_pooled) + g announced_t: attention x context x
        features, and what the tokens before have strengthened.
        """
        mask, words = (m.to(self.project.device) for m in (text.mask, text.words & text.mask))
        z = self.features(text.states)
        surprise = self.surprise(z, mask)
        gamma = text.attention.to(z).clamp_min(torch.finfo(torch.float32).tiny).log()
        gamma = gamma + cosine_similarity(z, self.features(text.pooled).unsqueeze(1), dim=-1)
        if self.gain:
            gamma = gamma + self.gain * self.announced(z, mask)
        words = _some(words, mask)  # a text may be markers alone
        words = _some(words & (text.attention.to(z) > 0), words)  # what a causal row does not see
        relevance = torch.nan_to_num(gamma.masked_fill(~words, -torch.inf).softmax(1))
        mean = surprise.sum(1) / follows(mask).sum(1).clamp_min(1)
        device = text.states.device
        return Reading(*(found.float().to(device) for found in (relevance, surprise, mean)))

    def learn(self, states: Tensor, mask: Tensor) -> None:
        """One step on texts, (B, T, d) with (B, T); the texts of a batch are not one behind the other."""
        z, mask = self.features(states), mask.to(self.project.device)
        pairs = follows(mask)
        if not pairs.any():
            return
        if self.key:
            now, after = pad(z[:, :-1][pairs], (0, 1), value=1.0), z[:, 1:][pairs]  # (P, W + 1), (P, W)
            error = after - now @ self.weight.T
            self._weigh(error, len(z))
            gain = absorb(self.precision, now, torch.ones_like(now[:, 0]))
            self.weight += error.T @ gain
        else:
            for t in pairs.any(0).nonzero().flatten().tolist():
                there = pairs[:, t]
                self._step(pad(z[there, t], (0, 1), value=1.0), z[there, t + 1])
        kernel = self._kernel(z, mask)
        self.association += torch.einsum("btw,bts,bsv->wv", z, kernel, z)
        self.after += torch.einsum("btw,bts->w", z, kernel)
        self.before += torch.einsum("bts,bsw->w", kernel, z)
        self.pushed += kernel.sum()
        every = z[mask]
        self.second_moment += every.T @ every
        self.total += every.sum(0)
        self.count += len(every)

    def _step(self, now: Tensor, after: Tensor) -> None:
        """Without a key, now (B, W + 1), after (B, W). The gain is eta Pi / (1 + eta Pi |z|^2), as in
        `ErrorModules.learn`: it can at most cancel an error."""
        error = after - now @ self.weight.T
        step = self.eta * self.log_precision.exp()
        gain = step / (1 + step * (now**2).sum(1, keepdim=True))
        self._weigh(error, len(now))
        self.weight += (gain * error).T @ now / len(now)

    def _weigh(self, error: Tensor, texts: int) -> None:
        """Delta log Pi of errors (P, W): a step per token, on the mean over texts."""
        # a token may lower a precision by at most a factor e: were it less, rare jumps would count for less
        step = 0.5 * self.eta * (1 - self.log_precision.exp() * error**2)
        self.log_precision += step.clamp_min(-1.0).sum(0) / texts
        self.log_precision.clamp_(-_BOUND, _BOUND)

    def _kernel(self, z: Tensor, mask: Tensor) -> Tensor:
        """exp(-(t - s) / tau) for tokens s < t of one text, else 0, (B, T, T); s is counted in tokens."""
        place = mask.cumsum(1).to(z)
        apart = place.unsqueeze(2) - place.unsqueeze(1)  # t - s
        both = mask.unsqueeze(2) & mask.unsqueeze(1) & (apart > 0)
        return torch.where(both, torch.exp(-apart / self.tau), 0.0)


def _some(chosen: Tensor, otherwise: Tensor) -> Tensor:
    """The rows that have something chosen, (B, T) bool, and the other ones of `otherwise`."""
    return torch.where(chosen.any(1, keepdim=True), chosen, otherwise)


def follows(mask: Tensor) -> Tensor:
    """Whether token t + 1 follows token t, (B, T - 1)."""
    return mask[:, 1:] & mask[:, :-1]


def make_sequence(config: "ArrCocConfig", wide: int) -> SequenceErrors | None:
    """As the config says; None where texts are not read, or cannot be (wide = 0)."""
    if not config.sequence or not wide:
        return None
    return SequenceErrors(wide, config.width, config.eta_sequence, config.sequence_gain, seed=config.seed)
