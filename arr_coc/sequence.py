"""Sequences: the error module of a language tower, which runs over a text's tokens instead of up the ladder.

    epsilon_t = z_t - V [z_{t-1}, 1]                    the next token's state from this one's
    Delta V = eta Pi epsilon_t [z_{t-1}, 1]',  Delta log Pi = eta/2 (1 - Pi epsilon_t^2)
    F_t = 1/2 (Pi epsilon_t^2 - log Pi), mean over units: the surprise of a token; a text's is their mean

Beside it an association from time alone, over pairs s < t of one text (Bi & Poo, 1998, as in
`relevance.temporal`): S += A_plus e^{-(t-s)/tau} z_t z_s' - A_minus e^{-(t-s)/tau} z_s z_t'. What usually
follows is strengthened by what came before it, and what usually precedes is weakened.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, layer_norm, pad

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
    """V, Pi and S over texts, learned online: token by token, no gradient, no text is kept.

    States are layer-normalised and, where they are wider than W, reduced by a fixed matrix with orthonormal
    rows, as the ladder's are.

    Args:
        wide: d, of the states. width: W at most.
        eta: step of V and Pi. gain: g, what an association is worth in nats of relevance.
        tau: of the association, in tokens. penalty: A_minus, where A_plus is 1.
        seed: of the fixed matrix.
    """

    state_names = ("project", "weight", "log_precision", "association", "count")

    def __init__(
        self,
        wide: int,
        width: int,
        eta: float = 0.01,
        gain: float = 0.0,
        tau: float = 3.0,
        penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.width, self.eta, self.gain, self.tau, self.penalty = min(wide, width), eta, gain, tau, penalty
        self.project: Tensor  # (W, d)
        self.weight: Tensor  # V, (W, W + 1); the last column is what any token predicts
        self.log_precision: Tensor  # (W,)
        self.association: Tensor  # S, (W, W)
        self.count: Tensor  # transitions learned from
        draw = torch.Generator().manual_seed(seed)
        matrix = torch.eye(wide)
        if wide > self.width:
            basis = torch.linalg.qr(torch.randn(wide, self.width, generator=draw)).Q.T.contiguous()
            matrix = basis * (wide / self.width) ** 0.5  # unit variance per feature is kept
        self.register_buffer("project", matrix)
        self.register_buffer("weight", torch.zeros(self.width, self.width + 1))
        self.register_buffer("log_precision", torch.zeros(self.width))
        self.register_buffer("association", torch.zeros(self.width, self.width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def features(self, states: Tensor) -> Tensor:
        """z, (..., W), float32."""
        return layer_norm(states.float(), states.shape[-1:]) @ self.project.T

    def predicted(self, z: Tensor) -> Tensor:
        """V [z, 1], what is expected to follow each state, (..., W)."""
        return pad(z, (0, 1), value=1.0) @ self.weight.T

    def surprise(self, z: Tensor, mask: Tensor) -> Tensor:
        """F_t, (B, T), of states (B, T, W); 0 where there is no token, or none before it."""
        error = z[:, 1:] - self.predicted(z[:, :-1])
        each = 0.5 * (self.log_precision.exp() * error**2 - self.log_precision).mean(-1)
        return pad(torch.where(follows(mask), each, 0.0), (1, 0))

    def announced(self, z: Tensor, mask: Tensor) -> Tensor:
        """cos(z_t, S x_{t-1}), (B, T) in [-1, 1], x the trace of the tokens before; 0 where there are
        none."""
        before = self._kernel(z, mask) @ z  # x_{t-1}, (B, T, W)
        return cosine_similarity(z, before @ self.association.T, dim=-1) * mask

    def read(self, text: Text) -> Reading:
        """Relevance and surprise of a text's tokens. Changes nothing.

        r = softmax over the words of log a_t + cos(z_t, z_pooled) + g announced_t: attention x context x
        features, and what the tokens before have strengthened.
        """
        z, mask = self.features(text.states), text.mask
        surprise = self.surprise(z, mask)
        pairs = follows(mask).sum(1)
        floor = torch.finfo(torch.float32).tiny
        gamma = text.attention.float().clamp_min(floor).log()
        gamma = gamma + cosine_similarity(z, self.features(text.pooled).unsqueeze(1), dim=-1)
        if self.gain:
            gamma = gamma + self.gain * self.announced(z, mask)
        words = text.words & mask
        words = torch.where(words.any(1, keepdim=True), words, mask)  # a text may be markers alone
        relevance = torch.nan_to_num(gamma.masked_fill(~words, -torch.inf).softmax(1))
        return Reading(relevance, surprise, surprise.sum(1) / pairs.clamp_min(1))

    def learn(self, states: Tensor, mask: Tensor) -> None:
        """One step per token, from the first to the last; texts of a batch step together, on their mean.

        The gain is eta Pi / (1 + eta Pi |z|^2), as in `ErrorModules.learn`: it can at most cancel an error.
        """
        z = self.features(states)
        pairs = follows(mask)
        if not pairs.any():
            return
        for t in pairs.any(0).nonzero().flatten().tolist():
            now, after = pad(z[pairs[:, t], t], (0, 1), value=1.0), z[pairs[:, t], t + 1]
            self._step(now, after)
        kernel = self._kernel(z, mask)
        pushed = torch.einsum("btw,bts,bsv->wv", z, kernel, z)  # sum over s < t of K z_t z_s'
        self.association += pushed - self.penalty * pushed.T
        self.count += pairs.sum()

    def _step(self, now: Tensor, after: Tensor) -> None:
        """now (B, W + 1), after (B, W)."""
        error = after - now @ self.weight.T
        precision = self.log_precision.exp()
        gain = self.eta * precision / (1 + self.eta * precision * (now**2).sum(1, keepdim=True))
        self.weight += (gain * error).T @ now / len(now)
        # one outlier may lower a precision by at most a factor exp(-2 eta)
        step = 0.5 * (1 - precision * error**2).clamp_min(-4.0).mean(0)
        self.log_precision += self.eta * step
        self.log_precision.clamp_(-_BOUND, _BOUND)

    def _kernel(self, z: Tensor, mask: Tensor) -> Tensor:
        """exp(-(t - s) / tau) for tokens s < t of one text, else 0, (B, T, T); s is counted in tokens."""
        place = mask.cumsum(1).to(z)
        apart = place.unsqueeze(2) - place.unsqueeze(1)  # t - s
        both = mask.unsqueeze(2) & mask.unsqueeze(1) & (apart > 0)
        return torch.where(both, torch.exp(-apart / self.tau), 0.0)


def follows(mask: Tensor) -> Tensor:
    """Whether token t + 1 follows token t, (B, T - 1)."""
    return mask[:, 1:] & mask[:, :-1]


def make_sequence(config: "ArrCocConfig", wide: int) -> SequenceErrors | None:
    """As the config says; None where texts are not read, or cannot be (wide = 0)."""
    if not config.sequence or not wide:
        return None
    return SequenceErrors(wide, config.width, config.eta_sequence, config.sequence_gain, seed=config.seed)
