"""The seconds of one learning step beside two packages that have a rule of this one: predictive coding beside
torch-pc, feedback alignment beside biotorch.

Both sides of a comparison have as many rungs of the same width, a bias and a readout of ten classes, tanh,
float32, the same batch of noise on the CPU and plain SGD. They take turns in one process, on one thread, so
that whatever else the machine does falls on both; seconds are medians, a ratio is the median of the ratios
within a round. Seconds are of the processor, not of the wall: where the machine is busy, one of two short
steps that take turns may be the one that is interrupted in most rounds. Neither package is a dependency of
this one.

What is counted. Ours: `Network.learn`, that is the climb, the one-hot targets, the readout and its error, the
rule's step with what it sends to the drives (in predictive coding T = 8 steps of the states), and what is
added to W, b and R. torch-pc: one batch in its `train_pcn`, from when that gets the batch until it asks for
the next: the one-hot targets, the random first states, T = 8 steps of the states, one step of all weights,
the energies that it writes down after each of these, and CUDA's autocast, which it asks for on the CPU too
(where layers are small this is a good part of its time); its preparations, its progress bar and the loading
of samples are left out. biotorch: the one-hot targets, zero_grad, forward through its layers, squared error,
backward and a step of torch's SGD.
"""

import importlib
import io
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from statistics import median

import torch
from torch import Tensor

from arr_coc.eval.percepts import Progress
from arr_coc.eval.rules_tasks import Task
from arr_coc.eval.rules_train import Entry, Network
from arr_coc.eval.shown import Shown
from arr_coc.ladder import Ladder
from arr_coc.optimizer import Optimizer

CLASSES = 10
SETTLING_STEPS, SETTLING_RATE = 8, 0.1  # of predictive coding, on both sides
RATE = 1e-3  # of the weights
WARM_UP = 3  # rounds that do not count

Clock = Callable[[], float]


@dataclass(frozen=True)
class Shape:
    """Rungs, units of each and of the input, samples a step."""

    depth: int
    width: int
    batch: int

    def __str__(self) -> str:
        return f"depth {self.depth}, width {self.width}, batch {self.batch}"


SHAPES = (Shape(2, 256, 64), Shape(4, 64, 16), Shape(4, 256, 64), Shape(4, 512, 128))


@dataclass(frozen=True)
class Step:
    """One side of a comparison.

    Args:
        weights: what learns.
        take: takes one learning step and gives back the seconds that count.
    """

    weights: list[Tensor]
    take: Callable[[], float]


@dataclass(frozen=True)
class Peer:
    """A package, by its name in PEERS, and what it is compared with.

    Args:
        module: what is imported of it.
        rule: that both sides learn by.
        ours, theirs: the steps for a shape, timed by a clock.
    """

    module: str
    rule: str
    ours: Callable[[Shape, Clock], Step]
    theirs: Callable[[Shape, Clock], Step]


@dataclass(frozen=True)
class Row:
    """One peer at one shape.

    Args:
        peer: its name and version.
        ours, theirs: seconds of the processor, medians.
        ratio: ours over theirs, median over rounds.
    """

    peer: str
    rule: str
    shape: Shape
    ours: float
    theirs: float
    ratio: float


def noise(shape: Shape) -> tuple[Tensor, Tensor]:
    """A batch: what enters the lowest rung (batch, width) and labels (batch,)."""
    draw = torch.Generator().manual_seed(0)
    below = torch.randn(shape.batch, shape.width, generator=draw)
    return below, torch.randint(CLASSES, (shape.batch,), generator=draw)


def own_step(entry: Entry, shape: Shape, clock: Clock) -> Step:
    """One step of this package's rule."""
    below, label = noise(shape)
    task = Task("noise", shape.depth, CLASSES, below, None, label, below, None, label)
    net = Network(entry, task, shape.width, 0, RATE)
    # the table of rules learns with ReLU and Adam; the packages here with what both sides have
    net.ladder = Ladder(
        [shape.width] * shape.depth, shape.width, 0, shape.width, 0, 0, "top", "tanh", gain=1.0
    )
    net.optimizer = Optimizer("sgd")

    @torch.no_grad()
    def take() -> float:
        began = clock()
        net.learn(below, None, label)
        return clock() - began

    return Step([*net.ladder.weights().values(), net.readout], take)


def torch_pc_step(shape: Shape, clock: Clock) -> Step:
    """One batch of torch-pc's `train_pcn`."""
    import torch_pc

    batch = noise(shape)
    sizes = [shape.width] * (shape.depth + 1)
    net = torch_pc.PCNetwork(sizes, CLASSES, torch.tanh, lambda a: 1 - torch.tanh(a) ** 2, use_bias=True)

    def take() -> float:
        marks: list[float] = []

        def loader() -> Iterator[tuple[Tensor, Tensor]]:
            # the clock is read where the batch is handed over and where the next one is asked for, so that
            # what `train_pcn` does once a call is not charged to the step
            marks.append(clock())
            yield batch
            marks.append(clock())

        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks for CUDA's autocast on the CPU too
            torch_pc.train_pcn(
                net,
                loader(),
                num_epochs=1,
                eta_infer=SETTLING_RATE,
                eta_learn=RATE,
                infer_steps=SETTLING_STEPS,
                T_learn=1,
                device="cpu",
            )
        return marks[1] - marks[0]

    return Step(list(net.parameters()), take)


def biotorch_step(shape: Shape, clock: Clock) -> Step:
    """One step of torch's SGD on biotorch's layers with feedback weights."""
    from biotorch.layers.fa import Linear

    below, label = noise(shape)
    layers: list[torch.nn.Module] = []
    for _ in range(shape.depth):
        layers += [Linear(shape.width, shape.width), torch.nn.Tanh()]
    net = torch.nn.Sequential(*layers, Linear(shape.width, CLASSES))
    weights = [p for p in net.parameters() if p.requires_grad]  # feedback weights stay
    optimizer = torch.optim.SGD(weights, lr=RATE)

    def take() -> float:
        began = clock()
        target = torch.nn.functional.one_hot(label, CLASSES).to(below)
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(below), target).backward()
        optimizer.step()
        return clock() - began

    return Step(list(weights), take)


_PC = Entry("predictive coding", "predictive_coding", {"steps": SETTLING_STEPS, "eta": SETTLING_RATE})
_FA = Entry("feedback alignment", "feedback_alignment", {"mode": "fa"})
PEERS = {
    "torch-pc": Peer("torch_pc", _PC.name, partial(own_step, _PC), torch_pc_step),
    "biotorch": Peer("biotorch.layers.fa", _FA.name, partial(own_step, _FA), biotorch_step),
}


def importable() -> tuple[dict[str, Peer], list[str]]:
    """The peers that are there, and a line for each that is not.

    Raises:
        ImportError: if none is there; all are named.
    """
    there, lines = {}, []
    for name, peer in PEERS.items():
        try:
            importlib.import_module(peer.module)
        except ImportError as error:
            absent = isinstance(error, ModuleNotFoundError) and error.name == peer.module.split(".")[0]
            said = "is not installed" if absent else f"cannot be imported ({error})"
            lines.append(f"{name} {said}: pip install {name}")
        else:
            there[name] = peer
    if not there:
        raise ImportError(f"there is nothing to compare with; {'; '.join(lines)}")
    return there, lines


def compare(
    peers: dict[str, Peer],
    shapes: Sequence[Shape] = SHAPES,
    rounds: int = 100,
    progress: Progress | None = None,
    clock: Clock = time.process_time,
) -> list[Row]:
    """Steps of both sides in turn, for every peer and shape, on one thread.

    Args:
        peers: by name, as from `importable`.
        rounds: that count, after WARM_UP others.
        progress: called with (what, done, of).
        clock: in seconds.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name, peer in peers.items():
                for shape in shapes:
                    ours, theirs = peer.ours(shape, clock), peer.theirs(shape, clock)
                    spent: list[tuple[float, float]] = []
                    for turn in range(WARM_UP + rounds):
                        spent.append((ours.take(), theirs.take()))
                        if progress is not None:
                            progress(f"{name}, {shape}", turn + 1, WARM_UP + rounds)
                    rows.append(_row(name, peer.rule, shape, spent[WARM_UP:]))
    finally:
        torch.set_num_threads(before)
    return rows


def _row(name: str, rule: str, shape: Shape, spent: list[tuple[float, float]]) -> Row:
    ours, theirs = (median(side) for side in zip(*spent, strict=True))
    return Row(_version(name), rule, shape, ours, theirs, median(o / t for o, t in spent))


def _version(name: str) -> str:
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:  # a copy that stands on the path alone
        return name


def table(rows: Sequence[Row], rounds: int) -> Shown:
    """The rows ready to be printed."""
    cells = [
        [r.peer, r.rule, str(r.shape), f"{1e3 * r.ours:.3f}", f"{1e3 * r.theirs:.3f}", f"{r.ratio:.2f}"]
        for r in rows
    ]
    return Shown(
        f"one learning step beside other packages, medians of {rounds}, one thread",
        ["peer", "rule", "shape", "ours ms", "theirs ms", "ours/theirs"],
        cells,
        "Processor time of forward, settling, weights and readout; steps taken in turn in one process. "
        "ours/theirs is the median of the ratios within a round, below 1 where ours is faster. Predictive "
        f"coding settles for {SETTLING_STEPS} steps on both sides; torch-pc's step has the energies that it "
        "writes down and CUDA's autocast, which it asks for on the CPU too.",
    )
