"""A training that is killed (SIGKILL) again and again, and resumed each time: is it the one never stopped?

    python tests/kill_and_resume.py FOLDER KILLS SEED

Every life is a fork of this process, so that torch is imported once. Half of the kills come at a random
moment of a life, half within a checkpoint's writing. Prints one line of JSON.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from arr_coc import state
from arr_coc.training import checkpoint
from training_data import Noisy, trainer


def live(out: Path) -> None:
    """Train from the last good checkpoint, or from the start, to the end; leave the end's state."""
    one = trainer(
        out, data=Noisy(24), num_train_epochs=2, save_strategy="steps", save_steps=2, save_total_limit=2
    )
    try:
        last = str(checkpoint.last_complete(out))
    except FileNotFoundError:
        last = None
    one.train(resume_from_checkpoint=last)
    learner = one.attached.learner
    tensors = {k: t.clone().contiguous() for k, t in state.tensors(learner).items()}
    save_file(tensors, out / "end.safetensors")
    (out / "end.json").write_text(json.dumps(state.meta(learner)))


def begin(out: Path) -> int:
    """A life of its own process; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            live(out)
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> bool:
    """Whether a life has ended by itself.

    Raises:
        RuntimeError: if it failed.
    """
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid and os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"a life ended with {os.waitstatus_to_exitcode(status)}")
    return bool(pid)


def saving(out: Path, before: set[str]) -> bool:
    """Whether a checkpoint is being written that was not there before."""
    try:
        names = set(os.listdir(out)) - before
    except FileNotFoundError:
        return False
    return any(
        name.startswith(".checkpoint-")
        or (name.startswith("checkpoint-") and not (out / name / "trainer_state.json").exists())
        for name in names
    )


def halted(child: int) -> bool:
    """Stop a life where it is; False where it has ended meanwhile, which `ended` is still to be told."""
    os.kill(child, signal.SIGSTOP)
    seen = os.waitid(os.P_PID, child, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    return seen is not None and seen.si_code == os.CLD_STOPPED


def whole_there(out: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return any(checkpoint.complete(p) for p in out.glob("checkpoint-*"))


def same_end(one: Path, two: Path) -> bool:
    return all((one / f).read_bytes() == (two / f).read_bytes() for f in ("end.safetensors", "end.json"))


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)  # no thread is lost in a fork
    draw, whole, cut = random.Random(seed), folder / "whole", folder / "cut"
    start = time.monotonic()
    first = begin(whole)
    while not ended(first):
        time.sleep(0.01)
    length = time.monotonic() - start
    told = {"kills": 0, "while_saving": 0, "resumed": 0, "ends": 0, "same": 0, "seconds": round(length, 2)}

    def finished() -> None:
        told["ends"] += 1
        told["same"] += same_end(whole, cut)
        shutil.rmtree(cut)

    while told["kills"] < kills:
        before = set(os.listdir(cut)) if cut.exists() else set()
        told["resumed"] += whole_there(cut)
        child, began, due = begin(cut), time.monotonic(), draw.uniform(0, length)
        wait_for_save, delay = told["kills"] % 2 == 0, draw.uniform(0, 0.02)
        wait_for_whole = told["kills"] == 1  # however slow the machine is, somebody goes on from a checkpoint
        while not (over := ended(child)):
            if wait_for_save and saving(cut, before):
                time.sleep(delay)
                if halted(child) and saving(cut, before):  # still: nothing can end between look and kill
                    break
                delay /= 2
                os.kill(child, signal.SIGCONT)
            late = not wait_for_save and time.monotonic() - began > due
            if late and (not wait_for_whole or whole_there(cut)):
                break
            time.sleep(0.0005)
        if over:
            finished()
            continue
        told["while_saving"] += saving(cut, before)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told["kills"] += 1
        left = sorted(cut.glob(".checkpoint-*")) if cut.exists() else []
        told["scratch"] = max(told.get("scratch", 0), len(left))
    last = begin(cut)
    while not ended(last):
        time.sleep(0.01)
    finished()
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
