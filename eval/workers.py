"""Tasks spread over processes that are started afresh (spawn), with what they find as they find it.

What goes to a process is told in plain values: it builds the models and percepts that it needs itself. Where
a task fails, or whoever waits for it is interrupted, all processes are ended; what was written then stays.
"""

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from arr_coc.eval.percepts import Progress

TELL_EVERY = 0.2  # seconds between two words of one process about how far it is
PATIENCE = 10.0  # seconds for a process to end when it is told to


class Task(Protocol):
    """Something to be done with a bench, which is what a process keeps from task to task."""

    @property
    def what(self) -> str:
        """A few words for progress and errors."""
        ...

    def do(self, bench: Any, progress: "Progress | None") -> Iterator[Any]:
        """What is found, piece by piece; said of a process's progress: (what, done, of)."""
        ...


class Worker:
    """One process and the pipe to it."""

    def __init__(self, bench: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, bench), daemon=True)
        with one_thread(), deaf():
            self.process.start()
        theirs.close()  # with its end open here too, nobody would notice that it ended

    def end(self) -> None:
        self.process.terminate()
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes started in here calculate with one thread, where OMP_NUM_THREADS does not say otherwise."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # read when the libraries are loaded, before any of our code runs
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


@contextmanager
def deaf() -> Iterator[None]:
    """Processes started in here do not hear Ctrl-C, which reaches all: who waits for the tasks ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is ignored stays so in a new process
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def serve(pipe: Any, bench: Any) -> None:
    """Do the tasks that come through a pipe until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    last = 0.0

    def tell(what: str, done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > TELL_EVERY:
            last = time.monotonic()
            pipe.send(("progress", (what, done, of)))

    try:
        while True:
            task = pipe.recv()
            try:
                for found in task.do(bench, tell):
                    pipe.send(("found", found))
                pipe.send(("over", None))
            except (BrokenPipeError, ConnectionResetError):
                raise
            except Exception as error:
                pipe.send(("failed", (sendable(error), traceback.format_exc())))
    except (EOFError, OSError):  # nobody waits any more
        return


def sendable(error: Exception) -> Exception:
    """The error, or one that says the same where it cannot go through a pipe."""
    try:
        return error if type(pickle.loads(pickle.dumps(error))) is type(error) else RuntimeError(repr(error))
    except Exception:  # whatever its class does there
        return RuntimeError(f"{type(error).__name__}: {error}")


class InWorker(Exception):
    """The traceback of an error, as it stood in the process where it happened."""

    def __str__(self) -> str:
        return "\n" + str(self.args[0])


class Pool:
    """At most `jobs` processes, kept from one lot of tasks to the next; with one job, this one.

    Args:
        bench: what tasks work with; a process gets a copy, which has to be of plain values.
        jobs: tasks at the same time.
    """

    def __init__(self, bench: Any, jobs: int = 1) -> None:
        if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
            raise ValueError(f"jobs={jobs!r}: a whole number of at least 1 is needed")
        self.bench, self.jobs = bench, jobs
        self._workers: list[Worker] = []

    def __enter__(self) -> "Pool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.process.terminate()
        for worker in self._workers:
            worker.end()
            worker.pipe.close()
        self._workers.clear()

    def each(self, tasks: Sequence[Task], progress: "Progress | None" = None) -> Iterator[tuple[int, Any]]:
        """(place of the task, what it found) as it comes; of one task in its order.

        Raises:
            Exception: what a task raised, with a note on which one; with several jobs the other process's
                traceback is its cause.
            ChildProcessError: where a process ended without a word.
        """
        if self.jobs == 1:
            for place, task in enumerate(tasks):
                with noted(task):
                    for found in task.do(self.bench, progress):
                        yield place, found
            return
        waiting = deque(enumerate(tasks))
        while len(self._workers) < min(self.jobs, len(tasks)):
            self._workers.append(Worker(self.bench))
        busy: dict[Any, int] = {}
        while waiting or busy:
            for worker in self._workers:
                if waiting and worker.pipe not in busy:
                    place, task = waiting.popleft()
                    worker.pipe.send(task)
                    busy[worker.pipe] = place
            for pipe in connection.wait(list(busy)):
                task = tasks[busy[pipe]]
                said, found = self._heard(pipe, task)
                if said == "progress" and progress is not None:
                    what, done, of = found
                    progress(f"{task.what}: {what}", done, of)
                elif said == "found":
                    yield busy[pipe], found
                elif said == "over":
                    del busy[pipe]
                elif said == "failed":
                    error, where = found
                    with noted(task):
                        raise error from InWorker(where)

    def _heard(self, pipe: Any, task: Task) -> tuple[str, Any]:
        try:
            said: tuple[str, Any] = pipe.recv()
            return said
        except (EOFError, ConnectionResetError):
            process = next(w.process for w in self._workers if w.pipe is pipe)
            process.join(PATIENCE)
            raise ChildProcessError(
                f"the process at {task.what} ended with exit code {process.exitcode} and without a word (a "
                "negative code is a signal; -9 is often for want of memory: fewer jobs need less)"
            ) from None


@contextmanager
def noted(task: Task) -> Iterator[None]:
    """An error from in here says at which task it happened."""
    try:
        yield
    except Exception as error:
        error.add_note(f"at {task.what}")
        raise
