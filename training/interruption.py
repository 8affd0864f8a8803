"""Ctrl-C that ends between two steps; a second one ends at once."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)
_ECHO = 1.0  # seconds: a launcher passes on the Ctrl-C that the terminal has given to its processes already


class Interruption:
    """Whether somebody has asked to stop, while `watch` runs. Outside the main thread nobody can."""

    def __init__(self) -> None:
        self.asked, self._when = False, 0.0

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Inside, the first Ctrl-C is noted, the second raises KeyboardInterrupt; then it is as before.

        Under a launcher of several processes (torchrun, `accelerate launch`) one Ctrl-C comes twice: what
        follows within a second is the same one.
        """
        self.asked = False
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return

        def note(number: int, frame: Any) -> None:
            if self.asked and "LOCAL_RANK" in os.environ and time.monotonic() - self._when < _ECHO:
                return
            if self.asked:
                raise KeyboardInterrupt("stopped at once; nothing was saved")
            self.asked, self._when = True, time.monotonic()
            logger.warning("stopping after this step, with a checkpoint; again to stop at once without one")

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
