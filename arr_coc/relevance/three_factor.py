"""Three factors: how far and along what U and the own gain move, whoever worked out the direction."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arr_coc.optimizer import Optimizer
from arr_coc.relevance.gain import OwnGain
from arr_coc.relevance.learn import ContextKey

if TYPE_CHECKING:
    from arr_coc.config import ArrCocConfig


class ThreeFactor:
    """Attention x reward prediction error x activity, written where a context's key says.

        Delta U = eta min(1, |delta|) gate o  key(c) (x) direction / |direction|

    with o what the own gain leaves to be learned (`OwnGain.openness`), and the own gain's own step beside it.
    U itself belongs to the learner and is changed in place.

    Args:
        config: steps and switches.
        key, gain: of the contexts; both are changed.
        optimizer: for every direction that is no unit one.
    """

    def __init__(self, config: "ArrCocConfig", key: ContextKey, gain: OwnGain, optimizer: Optimizer) -> None:
        self.config, self.key, self.gain, self.optimizer = config, key, gain, optimizer

    def learn(
        self,
        weight: Tensor,
        asked: str,
        context: Tensor,
        direction: Tensor,
        size: Tensor,
        rho: Tensor | None,
        gate: Tensor | None = None,
        whole: Tensor | None = None,
        told_where: bool = False,
    ) -> None:
        """One step of U and of the own gain for contexts (B, C).

        Args:
            weight: U, (C, F).
            asked: where the contexts came from (see `Percept`).
            direction: of U, for each sample, (B, F).
            size: |delta|, (B,). rho: of the own gain, (B,). gate: the neuromodulator's, (B,); None: 1.
            whole: dU itself, (C, F), from a rule that has it; then `direction` is not used.
            told_where: somebody pointed, who is not to be doubted: eta is `eta_pointed`, and what the model's
                own score finds is learned all the same.
        """
        self.meet(weight, asked, context)
        eta = self.config.eta_pointed if told_where else self.config.eta
        first = rho is not None and self.config.own_first and not told_where
        open_ = self.gain.openness(context).to(size) if first else torch.ones_like(size)
        if whole is None:
            self._move(weight, context, direction, size, open_ if gate is None else gate * open_, eta)
        else:
            step = self._along_keys(context, self.optimizer.step("relevance", whole, eta), open_)
            self._add(weight, step, eta)
        if rho is not None:
            self.gain.move(context, self._pre(context), self.config.eta_own * size.clamp(max=1.0) * rho)
        self.key.observe(context)

    def meet(self, weight: Tensor, asked: str, context: Tensor) -> None:
        """A text never asked before starts from the model's own relevance: U -= key (x) (c' U), g = start."""
        if not self.config.context_reset or asked != "text":
            return
        for c in context:
            if self.key.meet(c):
                one = c.unsqueeze(0)
                key = self.key.key(one)
                for tensor in (weight, *self.optimizer.consolidation.anchors("relevance")):
                    tensor -= key.to(c).T @ (one @ tensor)
                self.gain.reset(one, key)
                self.key.observe(one)

    def _pre(self, context: Tensor) -> Tensor:
        """What stands for the contexts (B, C) on the update side: their keys, or they themselves."""
        return self.key.key(context) if self.config.context_key else context

    def _along_keys(self, context: Tensor, step: Tensor, open_: Tensor) -> Tensor:
        """K' (o * C'^+ step): what a step does for these contexts (B, C), done along their keys; (C, F).

        For one context it is o key (x) (c' step) / (c' c): under c what it was, times o, elsewhere next to
        nothing. Without keys it is the step, times the mean of o (B,).
        """
        if not self.config.context_key:
            return step * open_.mean()
        keys = self.key.key(context)  # (B, C)
        each = torch.linalg.pinv(context.to(keys).T) @ step.to(keys)  # (B, F)
        return (keys.T @ (each * open_.to(keys).unsqueeze(1))).to(step)

    def _move(
        self, weight: Tensor, context: Tensor, direction: Tensor, size: Tensor, gate: Tensor, eta: float
    ) -> None:
        pre = self._pre(context).to(context)
        if self.config.optimizer == "direction":
            # c' key = 1: a step of 1 changes gamma by f' direction / (|direction| sqrt d), a nat for an
            # aligned token
            unit = torch.nn.functional.normalize(direction, dim=1) * direction.shape[1] ** 0.5
            scaled = unit * (eta * size.clamp(max=1.0) * gate).unsqueeze(1)
            self._add(weight, pre.T @ scaled / direction.shape[1] ** 0.5, eta)
        else:
            step = pre.T @ (direction * gate.unsqueeze(1)) / len(pre)
            self._add(weight, self.optimizer.step("relevance", step, eta), eta)

    def _add(self, weight: Tensor, step: Tensor, eta: float) -> None:
        """U += step; its direction is the step itself over eta, whose size the error decides."""
        consolidation = self.optimizer.consolidation
        before = consolidation.before(weight)
        weight += step
        consolidation.settle("relevance", weight, before, step / (eta or 1.0), eta)
