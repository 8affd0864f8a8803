"""Tensors of which one dimension gets longer."""

from torch import Tensor


def placed(tensor: Tensor, place: Tensor, width: int, dim: int = -1) -> Tensor:
    """A tensor whose entry i along a dimension stands at `place[i]` of `width`, with 0 elsewhere."""
    shape = list(tensor.shape)
    shape[dim] = width
    return tensor.new_zeros(shape).index_copy(dim, place.to(tensor.device), tensor)
