"""What relevance is taught by: masks, clicks, labels or rewards alone, and how many samples each takes.

    python -m arr_coc.eval.relevance_taught

On cued-clutter-novel six nonsense words come one after another, batch 1. After every fifth sample the map is
asked where the word's item is on held-out scenes; a word is learned when pointing is .9 there for the first
time. At the end what was learned of relevance is taken out again, the readout left as it is: every score must
then be what it was before anything was taught. Seed 0 is left out: the step of `point_out` was chosen on it.
Five seeds take about a quarter of an hour of a core.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arr_coc.adapters import attach, embedded
from arr_coc.config import ArrCocConfig
from arr_coc.eval import percepts, percepts_file
from arr_coc.eval import relevance_metrics as metrics
from arr_coc.eval.intervals import student_t
from arr_coc.eval.percepts import Batch, Plan, Store, TextBook
from arr_coc.learner import Learner
from arr_coc.training import streams

STREAM, GOAL, EVERY = "cued-clutter-novel", 0.9, 5
SCORES = ("pointing", "mass_accuracy", "rank_accuracy", "auroc")
Teach = Callable[[Learner, Batch, Store], object]


def _by_mask(learner: Learner, batch: Batch, store: Store) -> object:
    assert batch.mask is not None
    return learner.point_out(batch.percept, batch.mask.double() / batch.mask.sum(1, keepdim=True))


def _by_click(learner: Learner, batch: Batch, store: Store) -> object:
    """One token of the item, drawn from the learner's own generator."""
    assert batch.mask is not None
    token = torch.multinomial(batch.mask.float(), 1, generator=learner.generator)[:, 0]
    return learner.point_out(batch.percept, torch.nn.functional.one_hot(token, batch.mask.shape[1]).double())


def _by_label(learner: Learner, batch: Batch, store: Store) -> object:
    return learner.learn(batch.percept, batch.labels)


def _by_reward(learner: Learner, batch: Batch, store: Store) -> object:
    choice, left = learner.act(batch.percept, store.classes)
    good = [float(store.classes[c] == label) for c, label in zip(choice.tolist(), batch.labels, strict=True)]
    return learner.reward(left, torch.tensor(good))


WAYS: dict[str, Teach] = {
    "masks": _by_mask,
    "clicks": _by_click,
    "labels": _by_label,
    "rewards": _by_reward,
}


@dataclass(frozen=True)
class Taught:
    """One way on one seed.

    Args:
        needed: samples of each word until pointing was .9; the most there were where it never was.
        reached: for which words it was.
        before, after, out: SCORES on all words' held-out scenes: untaught, when the last word had been
            taught, and with what was learned of relevance taken out again.
    """

    needed: list[int]
    reached: list[bool]
    before: tuple[float, ...]
    after: tuple[float, ...]
    out: tuple[float, ...]


def pointing(learner: Learner, store: Store, rows: Tensor) -> float:
    """Mean share of the largest tokens that lie inside the truth."""
    return scores(learner, store, rows, SCORES[:1])[0]


def scores(learner: Learner, store: Store, rows: Tensor, names: Sequence[str] = SCORES) -> tuple[float, ...]:
    """Means over scenes of these scores of what a learner reads, those of `relevance_metrics`."""
    batch = store.batch(rows)
    assert batch.mask is not None
    read = learner.answer(batch.percept).reading.double().numpy()
    pairs = list(zip(read, batch.mask.numpy(), strict=True))
    return tuple(sum(getattr(metrics, name)(r, g) for r, g in pairs) / len(pairs) for name in names)


def take_out(learner: Learner) -> None:
    """What was learned of relevance, U and the own gain, is forgotten; the readout and all else stay."""
    learner.relevance_weight.zero_()
    learner.own_gain.weight.zero_()


@torch.no_grad()
def taught(way: str, store: Store, plan: Plan, config: ArrCocConfig | None = None) -> Taught:
    """One pass over a stream, by one kind of teaching signal alone."""
    learner = Learner(config or ArrCocConfig(), store.site_widths, store.context.shape[1])
    needed, reached, start = [], [], 0
    every = torch.cat(plan.probes)
    before = scores(learner, store, every)
    for probe, end in zip(plan.probes, plan.ends, strict=True):
        rows, start = plan.train[start:end], end
        count = len(rows)
        for place, row in enumerate(rows.split(1), 1):
            WAYS[way](learner, store.batch(row), store)
            last = place == len(rows)
            if count == len(rows) and (place % EVERY == 0 or last):
                if pointing(learner, store, probe) >= GOAL:
                    count = place
                    reached.append(True)
                elif last:
                    reached.append(False)
        needed.append(count)
    after = scores(learner, store, every)
    take_out(learner)
    return Taught(needed, reached, before, after, scores(learner, store, every))


def run(
    seeds: Sequence[int], n_train: int, n_test: int, ways: Sequence[str] = tuple(WAYS)
) -> dict[str, list[Taught]]:
    """Every way on the same scenes of every seed."""
    found: dict[str, list[Taught]] = {way: [] for way in ways}
    model, processor = embedded.load("dual")
    texts = TextBook(model, processor)
    for seed in seeds:
        stream = streams.load(STREAM, seed=seed, n_train=n_train, n_test=n_test)
        attached = attach(model)
        try:
            store = percepts_file.of_stream(attached, texts, stream, None)
        finally:
            attached.detach()
        plan = percepts.plan(stream, store)
        for way in ways:
            found[way].append(taught(way, store, plan))
            print(f"seed {seed}, {way}: {found[way][-1]}", flush=True)
    return found


def table(found: dict[str, list[Taught]]) -> str:
    """As markdown: means over words, then over seeds with the half-width of their 95 % interval."""
    lines = ["| taught by | samples a word until .9 | words that got there | pointing at the end % |"]
    lines.append("|---|---|---|---|")
    for way, runs in found.items():
        needed = student_t([sum(r.needed) / len(r.needed) for r in runs])
        final = student_t([100 * r.after[0] for r in runs])
        there, all_ = sum(sum(r.reached) for r in runs), sum(len(r.reached) for r in runs)
        least = "" if there == all_ else "at least "
        lines.append(
            f"| {way} alone | {least}{needed.mean:.0f} ± {needed.half:.0f} | {there} of {all_} | "
            f"{final.mean:.1f} ± {final.half:.1f} |"
        )
    lines += [
        "",
        f"| {', '.join(n.replace('_', ' ') for n in SCORES)} | before | at the end | taken out again |",
    ]
    lines.append("|---|---|---|---|")
    for way, runs in found.items():
        cells = []
        for when in ("before", "after", "out"):
            means = [student_t([getattr(r, when)[i] for r in runs]).mean for i in range(len(SCORES))]
            cells.append(" / ".join(f"{m:.3f}" for m in means))
        lines.append(f"| {way} alone | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--samples", type=int, default=200, help="of each word, at most")
    parser.add_argument("--held", type=int, default=30, help="held-out scenes of each word")
    given = parser.parse_args()
    print(table(run(given.seeds, 6 * given.samples, 6 * given.held)))


if __name__ == "__main__":
    main()
