"""Threads that share one attached model: how long predictions wait for learning, and learning for them.

    python -m arr_coc.eval.threads --threads 3 --steps 50

The built-in dual encoder; one thread learns, the others predict, each in a loop. Calls take turns in the
order in which they come, so beside N predicting threads a step waits for N predictions at most.
"""

import argparse
import threading
import time
from collections.abc import Callable

import torch

from arr_coc.adapters import attach, embedded
from arr_coc.config import ArrCocConfig


def measure(threads: int = 3, steps: int = 50) -> dict[str, tuple[float, float]]:
    """Median and longest time of a call in ms: "learn" and "predict", alone and beside the others.

    Raises:
        ValueError: for no thread or no step.
    """
    if threads < 1 or steps < 1:
        raise ValueError(f"threads={threads}, steps={steps}: at least one of each is needed")
    model, processor = embedded.load("dual")
    attached = attach(model, ArrCocConfig(), processor)
    draw = torch.Generator().manual_seed(0)
    size = model.config.vision_config.image_size
    inputs = dict(processor.tokenizer(["a red bag", "a blue coat"], return_tensors="pt", padding=True))
    inputs["pixel_values"] = torch.randn(1, 3, size, size, generator=draw)
    found: dict[str, tuple[float, float]] = {}

    def learn() -> None:
        attached.learn(**inputs, labels=torch.tensor([1]))

    def predict() -> None:
        attached(**inputs)

    def timed(call: Callable[[], None]) -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    def told(times: list[float]) -> tuple[float, float]:
        return sorted(times)[len(times) // 2], max(times)

    for name, call in (("learn", learn), ("predict", predict)):
        timed(call)
        found[f"{name} alone"] = told([timed(call) for _ in range(steps)])
    done, waited = threading.Event(), list[float]()

    def loop() -> None:
        while not done.is_set():
            waited.append(timed(predict))

    others = [threading.Thread(target=loop) for _ in range(threads)]
    for one in others:
        one.start()
    try:
        found["learn beside"] = told([timed(learn) for _ in range(steps)])
    finally:
        done.set()
        for one in others:
            one.join()
    found["predict beside"] = told(waited)
    attached.detach()
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--threads", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    given = parser.parse_args()
    try:
        for name, (median, longest) in measure(given.threads, given.steps).items():
            print(f"{name:15} {median:7.1f} ms, at most {longest:7.1f} ms")
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
