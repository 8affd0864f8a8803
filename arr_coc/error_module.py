"""The error modules: every rung is predicted from the one above, and the precision-weighted error is the
surprise."""

import torch
from torch import Tensor, nn


class ErrorModules(nn.Module):
    """epsilon_l = z_l - V_l z_{l+1}, the top rung predicted from the context; generative, running downward.

    Learning: Delta V_l = eta Pi_l epsilon_l z_{l+1}' and Delta log Pi_l = eta/2 (1 - Pi_l epsilon_l^2), whose
        fixed
    point is Pi = 1 / E[epsilon^2]. Surprise: F = 1/2 sum_l (Pi_l epsilon_l^2 - log Pi_l), mean over units, so
    that depth and width do not set its scale. Inspired by Rao & Ballard (1999) and Friston (2005).

    Args:
        width: of a rung.
        depth: number of rungs.
        context: width of the context.
    """

    _BOUND = 12.0  # |log Pi| stays under this: a unit that never varies must not earn an infinite precision

    def __init__(self, width: int, depth: int, context: int) -> None:
        super().__init__()
        above = [width] * (depth - 1) + [context]
        self.state_names = tuple(
            f"{kind}_{level}" for level in range(depth) for kind in ("weight", "log_precision")
        )
        for level in range(depth):
            self.register_buffer(f"weight_{level}", torch.zeros(width, above[level]))
            self.register_buffer(f"log_precision_{level}", torch.zeros(width))
        self.depth = depth

    def errors(self, states: list[Tensor], context: Tensor) -> list[Tensor]:
        """epsilon_l for states z_l (B, width) and context (B, C)."""
        above = [*states[1:], context.to(states[-1])]
        return [
            z - top @ self.get_buffer(f"weight_{i}").T
            for i, (z, top) in enumerate(zip(states, above, strict=True))
        ]

    def surprise(self, errors: list[Tensor]) -> Tensor:
        """F per sample, (B,), in nats per unit."""
        total = torch.zeros(len(errors[0]), device=errors[0].device)
        for level, error in enumerate(errors):
            log_precision = self.get_buffer(f"log_precision_{level}")
            total = total + 0.5 * (log_precision.exp() * error**2 - log_precision).mean(1)
        return total / self.depth

    def learn(self, states: list[Tensor], errors: list[Tensor], context: Tensor, eta: float) -> None:
        """One local step, on the batch mean. The gain is eta Pi / (1 + eta Pi |z_{l+1}|^2).

        For small steps that is eta Pi; for large activations or precisions it can at most cancel the error,
        where the plain product would diverge (normalised least mean squares).
        """
        above = [*states[1:], context.to(states[-1])]
        for level, (error, top) in enumerate(zip(errors, above, strict=True)):
            precision = self.get_buffer(f"log_precision_{level}").exp()
            gain = eta * precision / (1 + eta * precision * (top**2).sum(1, keepdim=True))  # (B, width)
            self.get_buffer(f"weight_{level}").add_((gain * error).T @ top / len(top))
            log_precision = self.get_buffer(f"log_precision_{level}")
            # one outlier may lower a precision by at most a factor exp(-2 eta)
            step = 0.5 * (1 - precision * error**2).clamp_min(-4.0).mean(0)
            log_precision.add_(eta * step).clamp_(-self._BOUND, self._BOUND)
