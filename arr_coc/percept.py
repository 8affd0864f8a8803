"""A percept: what one frozen forward pass leaves behind."""

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Percept:
    """Everything the learner sees of a batch of B samples with N visual tokens.

    Args:
        tokens: per site the token activations, (B, N, d_l); with `sample`, (S, N, d_l), one per picture.
        attention: one row of attention over the tokens, mean over heads and sites, (B, N); rows need not sum
            to 1.
        context: what relevance is asked for, (B, C).
        own: how well the model itself finds that each token fits what was asked, (B, N): a dual encoder's
            scaled cosine of projected tokens and context, a generative model's match of its visual tokens
            with the question's words (`relevance.asked`); None where no shared space exists.
        mask: which tokens exist, (B, N) bool, or None for all.
        state: further activations that the readout sees (a generative model's hidden state at the answer),
            (B, S).
        grid: rows and columns that the N tokens stand in, row by row, or None where they stand in no grid.
        grids: instead, where they are not alike: rows and columns of each sample's, which are the first of
            the N and all that exist, (B, 2); 0 for a sample whose tokens stand in none.
        asked: where the context comes from. "text": a text that is the same whenever it is asked; "sequence":
            the sample's own words, never quite the same twice; "image": nothing was asked, and the image's
            own embedding serves. Relevance is learned for what was asked.
        sample: whose tokens each entry looks at, (B,), where several look at the same ones (the positions of
            a text about one picture), or None for its own.
        made: what each learner has made of `tokens` alone, for percepts that show the very same ones again
            (the steps that a text is written in); None where they are shown once.
    """

    tokens: tuple[Tensor, ...]
    attention: Tensor
    context: Tensor
    own: Tensor | None = None
    mask: Tensor | None = None
    state: Tensor | None = None
    grid: tuple[int, int] | None = None
    asked: Literal["text", "sequence", "image"] = "text"
    sample: Tensor | None = None
    made: dict[Any, Any] | None = None
    grids: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            raise ValueError("a percept needs the tokens of at least one site")
        shape = self.attention.shape
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"attention has shape {tuple(shape)}; (B, N) with B, N >= 1 is needed")
        if self.sample is not None and self.sample.shape != shape[:1]:
            raise ValueError(f"sample has shape {tuple(self.sample.shape)}; ({shape[0]},) is needed")
        wanted = shape if self.sample is None else (len(self.tokens[0]), shape[1])
        for site, tokens in enumerate(self.tokens):
            if tokens.dim() != 3 or tokens.shape[:2] != wanted:
                raise ValueError(
                    f"site {site} has tokens of shape {tuple(tokens.shape)}; {(*wanted, 'd')} is needed"
                )
        if self.grid is not None and self.grid[0] * self.grid[1] != shape[1]:
            raise ValueError(
                f"a grid of {self.grid} has {self.grid[0] * self.grid[1]} tokens; there are {shape[1]}"
            )
        if self.grids is not None:
            if self.grid is not None or self.grids.shape != (shape[0], 2):
                raise ValueError(
                    f"grids has shape {tuple(self.grids.shape)} beside grid={self.grid}; ({shape[0]}, 2) and "
                    "None are needed"
                )
            count = self.grids.prod(1)
            there = torch.full_like(count, shape[1]) if self.mask is None else self.mask.sum(1)
            first = torch.arange(shape[1], device=count.device) < count.unsqueeze(1)
            fits = (count == there) & (first if self.mask is None else first == self.mask).all(1)
            if not bool((fits | (count == 0)).all()):
                raise ValueError(
                    f"grids {self.grids.tolist()} do not hold the first tokens of each sample; there are "
                    f"{there.tolist()}"
                )
        for name in ("own", "mask"):
            given = getattr(self, name)
            if given is not None and given.shape != shape:
                raise ValueError(f"{name} has shape {tuple(given.shape)}; {tuple(shape)} is needed")
        for name in ("context", "state"):
            given = getattr(self, name)
            if given is not None and (given.dim() != 2 or given.shape[0] != shape[0]):
                raise ValueError(f"{name} has shape {tuple(given.shape)}; ({shape[0]}, width) is needed")

    @property
    def batch(self) -> int:
        return self.attention.shape[0]

    def finite(self) -> Tensor:
        """Which samples are free of NaN and infinity, (B,) bool."""
        good = torch.isfinite(self.attention).all(1) & torch.isfinite(self.context).all(1)
        for tokens in self.tokens:
            fine = torch.isfinite(tokens).flatten(1).all(1)
            good = good & (fine if self.sample is None else fine[self.sample])
        for more in (self.own, self.state):
            if more is not None:
                good = good & torch.isfinite(more).flatten(1).all(1)
        return good

    def __getitem__(self, index: slice | Tensor) -> "Percept":
        """The percept of some of the samples."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return replace(
            self,
            tokens=self.tokens if self.sample is not None else tuple(t[index] for t in self.tokens),
            attention=self.attention[index],
            context=self.context[index],
            own=pick(self.own),
            mask=pick(self.mask),
            grids=pick(self.grids),
            state=pick(self.state),
            sample=pick(self.sample),
            made=self.made if self.sample is not None else None,
        )
