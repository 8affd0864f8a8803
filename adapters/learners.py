"""The learners of an attached model: how they are made, moved with it, and checked against it."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from arr_coc import state
from arr_coc.adapters import base, saving
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.offloaded import device_of
from arr_coc.adapters.text_tokens import text_width
from arr_coc.config import ArrCocConfig
from arr_coc.learner import Learner


class Learners(nn.ModuleList):
    """Moved to another device with the model, and never to another dtype: statistics stay float64."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Learners":
        def moved(tensor: Tensor) -> Tensor:
            device = fn(tensor.new_empty(0, dtype=torch.float32)).device
            wide = device.type == "mps" and tensor.dtype == torch.float64  # which has none
            return tensor if wide else tensor.to(device)

        for learner in self:
            assert isinstance(learner, Learner)
            state.move_rest(learner, moved)
        return super()._apply(moved, recurse)


def make_learner(model: nn.Module, body: DualEncoderBody | GenerativeBody, config: ArrCocConfig) -> Learner:
    """A fresh learner of what this body reads, where the model computes."""
    words = text_width(body) if config.sequence else 0
    learner = Learner(config, body.site_widths, body.context_width, body.state_width, words)
    state.place(learner, device_of(model))
    return learner


def check_base(saved: saving.Saved, model: nn.Module, strict: bool) -> None:
    """Whether a saved adapter was made on this model.

    Raises:
        ValueError: if the model's structure is another one; and, if `strict`, for other weights, or the same
            in another dtype. Otherwise those are a warning.
    """
    made_on = saved.header.base
    name = f"the adapter {saved.header.name!r}"
    told = base.structural_difference(made_on, model)
    if told:
        raise ValueError(f"{name} was made on {told}: it does not fit")
    told = base.weight_difference(made_on, saved.sample, model)
    if told and strict:
        raise ValueError(
            f"{name} was made on {told}{f' (its base was {made_on.name})' if made_on.name else ''}; what it "
            "learned holds for its own base: load that one, or pass strict=False to go on with a warning"
        )
    if told:
        warnings.warn(f"{name} was made on {told}", stacklevel=3)
