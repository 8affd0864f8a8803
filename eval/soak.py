"""A long life of the learner alone, on synthetic percepts: memory, drift and the cost of a step.

    python -m arr_coc.eval.soak --steps 100000

A step is one sample of a class drawn at random (50 of them): its tokens are noise with the class's pattern in
some, U and the own gain move as by default, and now and then an action is rewarded. Beside the learner, the
sums A and B of the very phi that it learned from are kept; the largest difference between R and the ridge
solution B' (A + rho I)^-1 is looked for ten times on the way. Rewarded rows keep sums of their own; that
difference is of the others.
"""

import argparse
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from arr_coc import state
from arr_coc.config import ArrCocConfig
from arr_coc.learner import Learner
from arr_coc.percept import Percept

STEPS, CLASSES, TOKENS, SITE, CONTEXT = 1_000_000, 50, 16, 32, 16
WINDOW = 100  # steps that a time per step is the median of
CONFIG = ArrCocConfig(width=32, expansion=64, evidence="uniform", spread=0)


@dataclass(frozen=True)
class Soaked:
    """What a soak run has found; memory in MB of the process and of the learner's state, times in ms."""

    steps: int
    memory: tuple[float, float]
    state: tuple[float, float]
    step_time: tuple[float, float]
    drift: float
    width: int

    def __str__(self) -> str:
        return "\n".join(
            (
                f"{self.steps:,} steps, D = {self.width}, {CLASSES} classes",
                f"memory of the process   {self.memory[0]:.1f} MB after step {WINDOW}, "
                f"{self.memory[1]:.1f} MB at the end",
                f"state of the learner    {self.state[0]:.3f} MB and {self.state[1]:.3f} MB",
                f"time per step           {self.step_time[0]:.2f} ms at step {WINDOW}, "
                f"{self.step_time[1]:.2f} ms at the end (medians of {WINDOW})",
                f"recursive against direct solution: at most {self.drift:.1e}",
            )
        )


def resident() -> float:
    """Memory that this process has in use, MB (Linux)."""
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS:"))
    return int(line.split()[1]) / 1024


def soak(steps: int = STEPS, seed: int = 0, rewards: int = 50) -> Soaked:
    """Live for so many steps; every `rewards`-th one besides acts and is told how good that was.

    Raises:
        ValueError: for fewer than two windows of steps.
    """
    if steps < 2 * WINDOW:
        raise ValueError(f"steps={steps}: at least {2 * WINDOW} are needed")
    draw = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, SITE, generator=draw)
    keys = [f"class {k}" for k in range(CLASSES)]
    learner = Learner(CONFIG, [SITE, SITE], CONTEXT)
    learner.readout.rows(keys, grow=True)  # all classes are there from the start: a new one takes memory
    width = learner.readout.width
    gram = torch.zeros(width, width, dtype=torch.float64)
    cross = torch.zeros(CLASSES, width, dtype=torch.float64)
    alone = torch.tensor([k % 10 == 0 for k in range(CLASSES)])  # these classes are rewarded
    drift, times, found = 0.0, [], []

    def rewarded(percept: Percept, label: int) -> None:
        """Neither right nor wrong: it tells of that one class alone."""
        _, left = learner.act(percept, keys, torch.tensor([label // 10 * 10]))
        learner.reward(left, torch.tensor([0.5]))

    for label in range(CLASSES) if rewards else ():  # first rewards, and texts met first, take memory too
        rewarded(_sample(draw, patterns)[0], label)
    looks = {steps * k // 10 for k in range(1, 11)}
    for step in range(1, steps + 1):
        percept, label = _sample(draw, patterns)
        start = time.perf_counter()
        answer = learner.learn(percept, [keys[label]])
        times.append(time.perf_counter() - start)
        phi = answer.climb.phi.double()
        gram.addmm_(phi.T, phi)
        cross[label] += phi[0]
        if rewards and step % rewards == 0:
            rewarded(percept, label)
        if step in looks:
            prior = CONFIG.ridge * torch.eye(width, dtype=torch.float64)
            direct = torch.linalg.solve(gram + prior, cross.T).T
            drift = max(drift, float((direct - learner.readout.weight)[~alone].abs().max()))
        if step in (WINDOW, steps):
            found.append((resident(), state.size(learner) / 2**20, 1000 * sorted(times)[len(times) // 2]))
        if step in (WINDOW, steps - WINDOW) or len(times) > WINDOW:
            times.clear()
    memory, sizes, cost = zip(*found, strict=True)
    return Soaked(steps, memory, sizes, cost, drift, width)


def _sample(draw: torch.Generator, patterns: Tensor) -> tuple[Percept, int]:
    label = int(torch.randint(CLASSES, (1,), generator=draw))
    tokens = [torch.randn(1, TOKENS, SITE, generator=draw) for _ in range(2)]
    for site in tokens:
        site[0, :4] += patterns[label]
    attention = torch.rand(1, TOKENS, generator=draw) + 0.1
    own = torch.randn(1, TOKENS, generator=draw)
    context = patterns[label : label + 1, :CONTEXT]  # one of as many texts
    return Percept(tuple(tokens), attention / attention.sum(), context, own=own), label


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    try:
        print(soak(given.steps, given.seed))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
