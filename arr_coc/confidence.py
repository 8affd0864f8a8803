"""Confidence: how sharp the learned values have to be for their softmax to be as right as it says it is.

    log s <- log s + eta (v_y - sum_k p_k v_k) s,   p = softmax(s v),   v the values before v learns of y

climbs log p_y of every sample before it is learned from, so nothing is held out. Scores were made with the
fixed s_0 of `value_scale` (see `answer.fuse`); told as probabilities they are

    softmax(fused (1 + t (s / s_0 - 1))),   t the trust

so the answer stays what it was, and where t is 0 the probabilities are the model's own.
Source: Guo et al. (2017) for one temperature; Dawid (1984) for scoring what comes before it is learned.
"""

import math

import torch
from torch import Tensor, nn

RATE = 0.01
MOST = 0.2  # of log s, in one step
BOUNDS = math.log(0.5), math.log(100.0)  # where all or nothing is right, nothing else holds it


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

    def learn(self, values: Tensor, rows: Tensor) -> None:
        """One step: values (B, K) from before these labels were learned, and the labels' rows, (B,)."""
        v = values.double()
        s = float(self.log_scale.exp())
        right = v.gather(1, rows.to(v.device).unsqueeze(1)).squeeze(1)
        slope = s * (right - ((s * v).softmax(1) * v).sum(1))
        step = float(slope.sum()) * RATE
        if math.isfinite(step):
            self.log_scale += max(-MOST, min(MOST, step))
            self.log_scale.clamp_(*BOUNDS)

    def probabilities(self, fused: Tensor, trust: Tensor) -> Tensor:
        """(B, K) of fused scores (B, K) and the trust (B,) that they were mixed by; rows sum to 1."""
        sharper = 1 + trust.double() * (float(self.log_scale.exp()) / self.start - 1)
        return (fused.to(trust.device).double() * sharper.unsqueeze(1)).softmax(1).to(fused)
