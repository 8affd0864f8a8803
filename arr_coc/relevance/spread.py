"""Spread: relevance of a token is shared with its neighbours on the grid, so that an item is read whole.

What makes a token relevant (its colour, say) is often clearest at one spot of an item, and the answer is in
all of it.
"""

from torch import Tensor
from torch.nn.functional import avg_pool2d


def spread(relevance: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """K r, (B, N): every token gives equal parts to the (2 radius + 1)^2 tokens around it; the sum stays
    1."""
    shape = (-1, 1, *grid)
    r = relevance.reshape(shape)
    side = 2 * radius + 1
    # divisor 1 sums; a token near the border has fewer neighbours and gives each of them more
    neighbours = avg_pool2d(r.new_ones(1, 1, *grid), side, 1, radius, divisor_override=1)
    return avg_pool2d(r / neighbours, side, 1, radius, divisor_override=1).reshape(relevance.shape)


def gather(score: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """K' s, (B, N): the mean of what stands around each token; the adjoint of `spread`, for what it learns
    from."""
    side = 2 * radius + 1
    mean = avg_pool2d(score.reshape(-1, 1, *grid), side, 1, radius, count_include_pad=False)
    return mean.reshape(score.shape)
