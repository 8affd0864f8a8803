"""Pointing: what somebody says is relevant, as a distribution over the tokens, and what it teaches.

    Delta U = eta sum_n (t_n - r_n) c f_n' / sqrt d

t is where a click, a box, a gaze map or a mask points, r the relevance there is: the gradient of the
log-likelihood sum_n t_n log r_n, at lambda = 0 and inside the clamp. No answer and no reward is needed.
"""

import math

import torch
from torch import Tensor

from arr_coc.percept import Percept
from arr_coc.relevance.gain import own_correlation


def shares(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """How much of the interval [low, high) lies in each of `cells` equal parts of [0, 1]; (K,) -> (K,
    cells)."""
    edges = torch.arange(cells + 1, dtype=torch.float64, device=low.device) / cells
    reach = torch.minimum(high.double().unsqueeze(1), edges[1:])
    return (reach - torch.maximum(low.double().unsqueeze(1), edges[:-1])).clamp_min(0.0)


def click_target(point: Tensor, grid: tuple[int, int]) -> Tensor:
    """1 at the token that the point lies in; points (x, y), (B, 2) in [0, 1] -> (B, N), float64."""
    rows, columns = grid
    column = (point[:, 0] * columns).long().clamp_max(columns - 1)  # the far edge belongs to the last
    row = (point[:, 1] * rows).long().clamp_max(rows - 1)
    return torch.nn.functional.one_hot(row * columns + column, rows * columns).double()


def box_target(box: Tensor, grid: tuple[int, int]) -> Tensor:
    """Each token's part of the area of the box (x0, y0, x1, y1), (B, 4) in [0, 1] -> (B, N), float64."""
    across = shares(box[:, 0], box[:, 2], grid[1])  # (B, columns)
    down = shares(box[:, 1], box[:, 3], grid[0])  # (B, rows)
    area = (down.unsqueeze(2) * across.unsqueeze(1)).flatten(1)
    return area / area.sum(1, keepdim=True)


def map_target(given: Tensor, grid: tuple[int, int]) -> Tensor:
    """Each token's part of the mass of a map (B, H, W), not negative, resampled by area -> (B, N), float64.

    A pixel that lies across tokens gives each its share: the mass stays what it was, whatever the sizes.
    """

    def parts(pixels: int, cells: int) -> Tensor:
        edges = torch.arange(pixels + 1, dtype=torch.float64, device=given.device) / pixels
        return shares(edges[:-1], edges[1:], cells)  # (pixels, cells)

    height, width = given.shape[1:]
    mass = (parts(height, grid[0]).T @ given.double() @ parts(width, grid[1])).flatten(1)
    return mass / mass.sum(1, keepdim=True)


def check_target(target: Tensor, percept: Percept) -> None:
    """Something was asked for, and t is a distribution over the tokens (B, N), with nothing on missing ones.

    Raises:
        ValueError: for anything else.
    """
    if percept.asked == "image":
        raise ValueError("nothing was asked for, so there is nothing that a place could be relevant to")
    if target.shape != percept.attention.shape:
        needed = tuple(percept.attention.shape)
        raise ValueError(f"the target has shape {tuple(target.shape)}; {needed} is needed")
    if not bool((target >= 0).all()) or not bool(((target.sum(1) - 1).abs() < 1e-5).all()):
        raise ValueError("the target is no distribution: numbers of at least 0 that sum to 1 are needed")
    if percept.mask is not None and bool(target.masked_fill(percept.mask, 0.0).any()):
        raise ValueError("the target points at tokens that are masked")


def pointed(
    target: Tensor, relevance: Tensor, features: Tensor, own: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What t asks of U and of the own gain where relevance is r.

    Args:
        target, relevance: (B, N). features: f, (B, N, F). own: the model's own score, (B, N).

    Returns:
        direction of U, sum_n (t_n - r_n) f_n / sqrt d, (B, F).
        size, 1/2 sum_n |t_n - r_n|, (B,) in [0, 1]: how much of r lies elsewhere; stands for |delta|.
        rho of the own gain, (B,) in [-1, 1], or None: the correlation of (t - r) / m and the own score over
            the tokens, each weighing m_n = (t_n + r_n) / 2. Its sign is that of d log-likelihood / d g; m,
            not r, weighs, so that an own score that left nothing where it was pointed is unlearned too.
    """
    missed = target - relevance
    direction = torch.bmm(missed.unsqueeze(1), features).squeeze(1) / math.sqrt(features.shape[-1])
    size = 0.5 * missed.abs().sum(1)
    if own is None:
        return direction, size, None
    middle = (target + relevance) / 2
    each = missed / middle.clamp_min(torch.finfo(middle.dtype).tiny)
    return direction, size, own_correlation(middle, each, own)
