"""Spread: what is relevant is read with what stands around it, and is shown where its neighbours agree.

What makes a token relevant (its colour, say) is often clearest at one spot of an item, and the answer is in
all of it: so features are read with weights K r. But an item covers neighbouring tokens, and one that is
relevant by itself is a stray: so a map of relevance is r times what stands around it.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import avg_pool2d

Around = Callable[[Tensor, tuple[int, int], int], Tensor]  # one of the functions below
Grid = tuple[int, int] | Tensor | None


def on_grid(around: Around, values: Tensor, grid: Grid, radius: int) -> Tensor:
    """What a function of this file makes of values (B, N), each sample on its own grid.

    Args:
        grid: of all samples; or of each, (B, 2), whose tokens are the first of the N; None, or 0 in a row:
            they stand in none, and stay as they are.
        radius: 0: nothing is shared.
    """
    if grid is None or not radius:
        return values
    if not isinstance(grid, Tensor):
        return around(values, grid, radius)
    made = values.clone()
    for rows, columns in grid.unique(dim=0).tolist():
        some = ((grid[:, 0] == rows) & (grid[:, 1] == columns)).nonzero().flatten()
        if rows * columns:
            first = values[some, : rows * columns]
            made[some, : rows * columns] = around(first, (rows, columns), radius)
    return made


def supported(relevance: Tensor, grid: tuple[int, int], radius: int) -> Tensor:
    """q_n = r_n (K'r)_n / sum_m r_m (K'r)_m, (B, N): r times its mean around each token; sums to 1, and an
    even r stays even."""
    both = relevance * gather(relevance, grid, radius)
    return both / both.sum(1, keepdim=True)


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
