"""The learner's arithmetic keeps its own precision, whatever the model around it runs in."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

_Method = TypeVar("_Method", bound=Callable[..., Any])


def exact(method: _Method) -> _Method:
    """A method of a learner, run outside any autocast: its float32 products stay float32."""

    @functools.wraps(method)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(self.relevance_weight.device.type, enabled=False):
            return method(self, *args, **kwargs)

    return cast(_Method, run)
