"""The error module with the answer at the top: what the highest drive would be if the answer were y.

    epsilon_y = x - V_y,   Delta V_y = (x - V_y) / (rho + n_y) for the right y,   n_y the samples of y
    Delta log Pi = eta/2 (1 - Pi epsilon_y^2)
    F = min over y of 1/2 (Pi epsilon_y^2 - log Pi), mean over units

The answer of least surprise explains the sample; what none of them explains is surprising. V_y is the
recursive least-squares prediction from a one-hot answer, so it needs no key.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

_BOUND = 12.0  # |log Pi| stays under this, as in `error_module`


class AnswerErrors(nn.Module):
    """V, (K, W), and log Pi, (W,): one row of V per class, in the order of the readout's rows.

    Args:
        width: W.
        ridge: rho, samples' worth of the prior that V_y is 0.
    """

    state_names = ("mean", "class_count", "log_precision")

    def __init__(self, width: int, ridge: float = 1.0) -> None:
        super().__init__()
        self.ridge = ridge
        self.mean: Tensor  # V
        self.class_count: Tensor  # n, (K,)
        self.log_precision: Tensor
        self.register_buffer("mean", torch.zeros(0, width))
        self.register_buffer("class_count", torch.zeros(0))
        self.register_buffer("log_precision", torch.zeros(width))

    def surprise(self, x: Tensor) -> Tensor:
        """F of drives or of tokens, (..., W) -> (...); with no class met, of the prediction 0."""
        met = self.mean[self.class_count > 0]
        met = met if len(met) else torch.zeros_like(self.log_precision).unsqueeze(0)
        scale = (0.5 * self.log_precision).exp()
        shape, wide = x.shape[:-1], x.float().reshape(-1, x.shape[-1])
        # |a - b|^2 for all pairs at once; rounding may leave it just under 0
        square = torch.cdist(wide * scale, met * scale, compute_mode="use_mm_for_euclid_dist") ** 2
        least = square.min(1).values / len(scale)
        return (0.5 * (least - self.log_precision.mean())).reshape(shape)

    def keep(self, rows: Tensor) -> None:
        """Leave only the rows of these classes, (K,) ascending."""
        rows = rows[rows < len(self.mean)]  # a class that was only acted on may have none
        self.mean, self.class_count = self.mean[rows], self.class_count[rows]

    def learn(self, x: Tensor, rows: Tensor, classes: int, eta: float) -> None:
        """One sample after another: drives (B, W) with their classes' rows, (B,), of `classes` in all."""
        grown = classes - len(self.mean)
        self.mean, self.class_count = pad(self.mean, (0, 0, 0, grown)), pad(self.class_count, (0, grown))
        for drive, row in zip(x.to(self.mean), rows.tolist(), strict=True):
            error = drive - self.mean[row]
            step = 0.5 * eta * (1 - self.log_precision.exp() * error**2)
            # one outlier may lower a precision by at most a factor e; of a class's first sample nothing is
            # known that could have been wrong
            if self.class_count[row]:
                self.log_precision += step.clamp_min(-1.0)
                self.log_precision.clamp_(-_BOUND, _BOUND)
            self.class_count[row] += 1
            self.mean[row] += error / (self.ridge + self.class_count[row])
