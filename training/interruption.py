"""Ctrl-C that ends between two steps; a second one ends at once."""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from typing import Any

logger = logging.getLogger(__name__)


class Interruption:
    """Whether somebody has asked to stop, while `watch` runs. Outside the main thread nobody can."""

    def __init__(self) -> None:
        self.asked = False

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Inside, the first Ctrl-C is noted, the second raises KeyboardInterrupt; then it is as before."""
        self.asked = False
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return

        def note(number: int, frame: Any) -> None:
            if self.asked:
                raise KeyboardInterrupt("stopped at once; nothing was saved")
            self.asked = True
            logger.warning("stopping after this step, with a checkpoint; again to stop at once without one")

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
