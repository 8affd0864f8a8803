"""Is a mix of relevance and diversity that is learned from rewards better than a fixed one?

    python -m arr_coc.eval.selection_mix [--markdown] [--seeds 0-4] [--images 60] [--k 8]

Questions about mosaics and easy pictures of the training split come one by one in random order; for each a
mix is drawn (`Mixture`, of the kind of question), k of 144 visual tokens are kept by it, and the reward is 1
if the answer is right. Then questions of the test split are answered with the best mix of their kind. Beside
stand every mix held fixed, and who knows each kind's best one on the very questions that are scored: a bound.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arr_coc.eval.console import numbers
from arr_coc.eval.intervals import Interval, paired, student_t
from arr_coc.eval.selection import KINDS
from arr_coc.eval.selection_baselines import own
from arr_coc.eval.selection_exam import Examiner, scenes_of
from arr_coc.eval.shown import Shown, say
from arr_coc.relevance.mixture import GRID, START, Mixture

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """Questions of all kinds. kind: of each, a place in KINDS, (Q,). context: (Q, C).
    right: 1 where the answer is right with a mix of the grid, (Q, G)."""

    kind: NDArray[np.int64]
    context: Tensor
    right: Array


@dataclass(frozen=True)
class Scores:
    """Of one seed, over kinds and all of them together (K + 1): accuracy of what was learned, of every fixed
    mix, (G, K + 1), and of the bound; the learned best mix of each test question, (Q,)."""

    learned: Array
    fixed: Array
    bound: Array
    chosen: Array


def asked(examiner: Examiner, images: int, seed: int, split: str, k: int) -> Asked:
    """Every question about `images` pictures a kind, answered with every mix of the grid."""
    kinds, contexts, right = [], [], []
    for number, kind in enumerate(KINDS):
        samples = scenes_of(kind, images, seed, split)
        seen = examiner.evidence(samples)
        kinds += [number] * len(samples)
        contexts += [e.context for e in seen]
        right.append(
            np.stack([examiner.right(samples, seen, [own(e, k, mix) for e in seen]) for mix in GRID], 1)
        )
    return Asked(np.array(kinds), torch.stack(contexts), np.concatenate(right))


def taught(stream: Asked, seed: int, start: float = START) -> Mixture:
    """What a mixture has learned when it has tried one mix on each question, in random order."""
    mixture = Mixture(stream.context.shape[1], start)
    draw = torch.Generator().manual_seed(seed)
    for i in np.random.default_rng([seed, 71]).permutation(len(stream.right)).tolist():
        mix = mixture.draw(stream.context[i], draw)
        mixture.learn(stream.context[i], mix, float(stream.right[i, GRID.index(mix)]))
    return mixture


def scored(mixture: Mixture, probe: Asked) -> Scores:
    """Accuracy by kind and over all; a kind's own best mix on these questions is the bound."""
    chosen = np.array([mixture.best(c) for c in probe.context])
    right = probe.right[np.arange(len(chosen)), [GRID.index(m) for m in chosen]]
    each = [probe.kind == number for number in range(len(KINDS))]
    groups = [*each, np.ones(len(chosen), bool)]
    fixed = np.array([[probe.right[g, m].mean() for g in groups] for m in range(len(GRID))])
    best = [fixed[:, number].max() for number in range(len(KINDS))]
    bound = [*best, float(np.average(best, weights=[g.sum() for g in each]))]
    return Scores(np.array([right[g].mean() for g in groups]), fixed, np.array(bound), chosen)


def shown(found: Sequence[Scores], title: str) -> Shown:
    """A row what was done, a column a kind; what was learned less each other row, paired by seed."""

    def cell(i: Interval) -> str:
        return f"{100 * i.mean:.1f} ± {100 * i.half:.1f}"

    def row(name: str, of: list[Array]) -> list[str]:
        ahead = paired([float(s.learned[-1]) for s in found], [float(v[-1]) for v in of]).interval
        each = [cell(student_t([float(v[c]) for v in of])) for c in range(len(KINDS) + 1)]
        return [name, *each, "" if name == "learned" else f"{100 * ahead.mean:+.1f} ± {100 * ahead.half:.1f}"]

    rows = [row("learned", [s.learned for s in found])]
    rows += [row(f"fixed at {mix}", [s.fixed[g] for s in found]) for g, mix in enumerate(GRID)]
    rows.append(row("each kind's own best on the test questions", [s.bound for s in found]))
    return Shown(title, ["diversity", *KINDS, "all", "learned minus it"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the options and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--seeds", default="0-4", help="such as 0-4")
    parser.add_argument("--images", type=int, default=60, help="pictures a kind and split")
    parser.add_argument("--k", type=int, default=8, help="tokens kept")
    args = parser.parse_args(arguments)
    seeds = numbers(args.seeds)
    if len(seeds) < 2:
        parser.error(f"--seeds {args.seeds}: an interval over seeds needs at least two")
    if args.images < 1 or not 1 <= args.k <= 144:
        given = f"--images {args.images} --k {args.k}"
        parser.error(f"{given}: one picture or more, and 1 to 144 tokens are needed")
    examiner, found = Examiner(), list[Scores]()
    for seed in seeds:
        stream, probe = (asked(examiner, args.images, seed, split, args.k) for split in ("train", "test"))
        found.append(scored(taught(stream, seed), probe))
    title = (
        f"accuracy % from {args.k} of 144 tokens, {2 * args.images} questions a kind to learn from and to "
    )
    title += f"be scored on, {len(found)} seeds"
    told = shown(found, title)
    say([told], args.markdown)
    for mix in GRID:
        share = np.mean([np.mean(s.chosen == mix) for s in found])
        print(f"- {mix} was the best of what had been learned for {100 * share:.0f} % of the test questions")


if __name__ == "__main__":
    main()
