"""attach(model): a frozen vision-language model that keeps learning."""

import logging
from typing import Any

import torch

from arr_coc.adapters.attached import ArrCocModel
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.learners import make_learner
from arr_coc.adapters.structure import kind_of, unwrapped
from arr_coc.config import ArrCocConfig

__all__ = ["ArrCocModel", "attach"]

logger = logging.getLogger(__name__)


@torch.inference_mode(False)
def attach(model: Any, config: ArrCocConfig | None = None, processor: Any = None) -> ArrCocModel:
    """Attach an adapter to a pretrained vision-language model; its weights are never written.

    Nor are they read, but for a few values of each when the adapter is saved or loaded (see `adapters.base`).

    Args:
        model: a dual encoder or generative model of transformers, in PEFT's wrapping too, or of `timm_dual`.
        config: what is learned and how; the default is good for a start.
        processor: for `predict`.

    Returns:
        The attached model; use it in place of `model`. What it reads from is logged at level INFO and
        returned by `inspect()`.

    Raises:
        TypeError: for a model that is no vision-language model; says what was found and what would work.
        ValueError: for a second attachment, or a site that does not exist; the nearest is named.
    """
    config = ArrCocConfig() if config is None else config
    if isinstance(model, ArrCocModel) or _hooked(unwrapped(model)):
        raise ValueError(f"this {type(model).__name__} has an adapter attached already; detach() it first")
    given, model = model, unwrapped(model)
    kind = kind_of(model)
    body: DualEncoderBody | GenerativeBody
    if kind == "dual":
        body = DualEncoderBody(model, config.sites)
    else:
        body = GenerativeBody(model, config.sites, processor)
    learner = make_learner(model, body, config)
    # transformers.pipeline tells what it supports by the name of the class
    named: Any = type(type(model).__name__, (ArrCocModel,), {"__doc__": ArrCocModel.__doc__})
    capture = body.capture()
    try:
        attached = named(model, body, learner, capture, processor)
    except BaseException:
        capture.remove()
        raise
    attached._given = [given]
    logger.info("%s", attached.inspect())
    return attached


def _hooked(model: Any) -> bool:
    """Whether an adapter is attached: the model says so itself, and so a copy of it does."""
    hooks = getattr(model, "_forward_pre_hooks", {}).values()
    return any(isinstance(getattr(hook, "__self__", None), ArrCocModel) for hook in hooks)
