"""How the methods of an attached model are called: one at a time, and so that what they learn lasts."""

import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

_Method = TypeVar("_Method", bound=Callable[..., Any])


class Turn:
    """A lock that the thread which holds it may take again, and that goes from thread to thread in the order
    in which they came; a copy is a lock of its own.

    What a pass leaves behind is heard by hooks of the one model, so two passes at a time would hear each
    other. threading's locks know no order: how often a thread that wants to learn is passed over by those
    that predict would have no bound.
    """

    def __init__(self) -> None:
        self._inside = threading.Lock()  # of the fields below, held for moments
        self._holder: int | None = None
        self._depth = 0
        self._waiting: deque[tuple[int, threading.Lock]] = deque()  # each with the gate that it waits at

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._inside:
            if self._holder in (None, me):
                self._holder, self._depth = me, self._depth + 1
                return
            gate = threading.Lock()
            gate.acquire()
            self._waiting.append((me, gate))
        try:
            gate.acquire()
        except BaseException:  # Ctrl-C: stand in nobody's way
            with self._inside:
                waits = (me, gate) in self._waiting
                if waits:
                    self._waiting.remove((me, gate))
            if not waits:
                self.__exit__()
            raise

    def __exit__(self, *_: Any) -> None:
        with self._inside:
            self._depth -= 1
            if self._depth:
                return
            self._holder = None
            if self._waiting:
                self._holder, gate = self._waiting.popleft()
                self._depth = 1
                gate.release()

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
