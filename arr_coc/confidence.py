"""Confidence: how sharp the learned values have to be for their softmax to be as right as it says it is.

    log s <- log s + eta sum_i g_i / (1 + eta sum_i h_i),   p = softmax(s v)
    g = s (v_y - sum_k p_k v_k),   h = s^2 (sum_k p_k v_k^2 - (sum_k p_k v_k)^2)

climbs log p_y of a batch's samples i by the values v that they are answered by before they are learned from,
so nothing is held out; of one sample it is the gradient's step, of very many Newton's. Scores were made with
the fixed s_0 of `value_scale` (see `answer.fuse`); told as probabilities they are

    softmax(fused (1 + t (s / s_0 - 1))),   t the trust, 0 where no candidate was ever learned

so the answer stays what it was, and where t is 0 they are the softmax of the model's own scores. No label
bears out the share of candidates that were never learned (`unlearned`): it is sharpened like the rest.
Source: Guo et al. (2017) for one temperature; Dawid (1984) for scoring what comes before it is learned.
"""

import math

import torch
from torch import Tensor, nn

RATE = 0.01  # eta
MOST = 0.2  # of log s, in one step
REACH = math.log(20.0)  # from log s_0: where all or nothing is right, nothing else holds it


class Confidence(nn.Module):
    """log s, a scalar in float64.

    Args:
        start: s_0.
    """

    state_names = ("log_scale",)

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start = start
        self.log_scale: Tensor
        self.register_buffer("log_scale", torch.tensor(math.log(start), dtype=torch.float64))

    def check(self, log_scale: Tensor) -> None:
        """Raises:
        ValueError: for a log s that learning cannot come to."""
        if not abs(float(log_scale) - math.log(self.start)) <= REACH + 1e-9:
            raise ValueError(
                f"the saved confidence.log_scale is {float(log_scale)!r}; it stays within {REACH:.3f} of "
                f"{math.log(self.start):.3f}, the logarithm of value_scale"
            )

    def learn(self, values: Tensor, rows: Tensor) -> None:
        """One step: values (B, K) from before these labels were learned, and the labels' rows, (B,)."""
        v = values.double()
        s = float(self.log_scale.exp())
        p = (s * v).softmax(1)
        mean = (p * v).sum(1)
        right = v.gather(1, rows.to(v.device).unsqueeze(1)).squeeze(1)
        slope = float(s * (right - mean).sum())
        curvature = float(s * s * ((p * v * v).sum(1) - mean * mean).clamp_min(0).sum())
        step = RATE * slope / (1 + RATE * curvature)
        if math.isfinite(step):
            self.log_scale += max(-MOST, min(MOST, step))
            self.log_scale.clamp_(math.log(self.start) - REACH, math.log(self.start) + REACH)

    def probabilities(self, fused: Tensor, trust: Tensor) -> Tensor:
        """(B, K) in float32 of fused scores (B, K) and the trust (B,) that they were mixed by; rows sum to
        1."""
        sharper = 1 + trust.double() * (float(self.log_scale.exp()) / self.start - 1)
        told = (fused.to(trust.device).double() * sharper.unsqueeze(1)).softmax(1)
        return told.float().to(fused.device)
