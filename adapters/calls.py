"""How the methods of an attached model are called: one at a time, and so that what they learn lasts."""

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

_Method = TypeVar("_Method", bound=Callable[..., Any])


class Turn:
    """A lock that the thread which holds it may take again; a copy is a lock of its own.

    What a pass leaves behind is heard by hooks of the one model, so two passes at a time would hear each
    other.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: Any) -> None:
        self._lock.release()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Turn":
        return Turn()


def alone(method: _Method) -> _Method:
    """A method that other threads' calls wait for; the object has its `Turn` as `_turn`."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._turn:
            return method(self, *args, **kwargs)

    return cast(_Method, call)


def lasting(method: _Method) -> _Method:
    """`alone`, and outside of the caller's `torch.inference_mode`: a state that was made or grown inside it
    could never be changed again."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._turn, torch.inference_mode(False):
            return method(self, *args, **kwargs)

    return cast(_Method, call)
