"""Unlearning: what each source has added to the readout's sums is kept, so that it can be taken back exactly.

    A = sum_s A_s,   B = sum_s B_s,   and for what is familiar of scenes likewise

Without source s, A and B are the sums of all others, and P and R are solved from them: to rounding the
readout of a learner that never met the samples of s, in whatever order they came and however they were
batched (phi and the samples' weights being the same: with U, W and the own gains fixed, or as they were).
Nothing is subtracted from a total, so a source of huge values leaves no rounding error of its size behind.

Source: Cao & Yang (2015), machine unlearning in summation form.
"""

import difflib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from arr_coc.familiarity import leverage_of, moments

if TYPE_CHECKING:
    from arr_coc.learner import Learner

UNNAMED = ""  # samples that came with no source, which cannot be asked for


class Sources(nn.Module):
    """Sums by source, float64: (D^2 + W^2 + C_s D + K_s D^2) numbers each, C_s the classes that the source
    taught, K_s those of them that it rewarded on their own.

    Args:
        width: D, of phi.
        scene_width: W, of the statistics of a scene.
    """

    per_source = ("gram", "scene_gram", "watched")
    per_pair = ("pairs", "cross", "class_count")
    per_partial = ("partial_pairs", "partial")
    state_names = (*per_source, *per_pair, *per_partial)

    def __init__(self, width: int, scene_width: int) -> None:
        super().__init__()
        self.names: list[str] = []
        self.gram: Tensor  # A_s, (S, D, D)
        self.scene_gram: Tensor  # (S, W, W)
        self.watched: Tensor  # (S, 2, 6): moments of the leverage, of phi and of scenes
        self.pairs: Tensor  # (E, 2): which source has something for which row of the readout
        self.cross: Tensor  # B_s', (E, D)
        self.class_count: Tensor  # (E,)
        self.partial_pairs: Tensor  # (K, 2): for rows rewarded on their own
        self.partial: Tensor  # (K, D, D)
        floats = {
            "gram": (width, width),
            "scene_gram": (scene_width, scene_width),
            "watched": (2, 6),
            "cross": (width,),
            "class_count": (),
            "partial": (width, width),
        }
        for name, shape in floats.items():
            self.register_buffer(name, torch.zeros(0, *shape, dtype=torch.float64))
        for name in ("pairs", "partial_pairs"):
            self.register_buffer(name, torch.zeros(0, 2, dtype=torch.int64))

    # -- counting --------------------------------------------------------------------------------------------

    def add(
        self,
        source: str,
        phi: Tensor,
        scene: Tensor,
        rows: Tensor,
        weight: Tensor | None,
        outcomes: Tensor | None,
        watched: Tensor,
    ) -> None:
        """Count samples in as `PrecisionReadout.learn` does, or, with outcomes, `learn_outcomes`.

        Args:
            source: UNNAMED for none. phi: (B, D). scene: (B, W). rows: of their classes, (B,). weight: (B,).
            outcomes: (B,). watched: what they added to the moments of the leverage, (2, 6).
        """
        place, p, look = self._place(source), phi.to(self.gram), scene.to(self.gram)
        w = p.new_ones(len(p)) if weight is None else weight.to(p)
        worth = p.new_ones(len(p)) if outcomes is None else outcomes.to(p)
        whole = worth == 1  # what else was right is known: nothing
        some = p[whole]
        self.gram[place].addmm_((some * w[whole].unsqueeze(1)).T, some)
        self.scene_gram[place].addmm_(look.T, look)
        self.watched[place] += watched.to(self.watched)
        at = torch.tensor(self._pairs(place, rows.tolist()), device=p.device)
        self.cross.index_add_(0, at, p * (w * worth).unsqueeze(1))
        self.class_count.index_add_(0, at, whole.to(p))
        for row in rows.to(p.device)[~whole].unique().tolist():
            mine = p[(rows.to(p.device) == row) & ~whole]
            own = self._partial(place, row)
            self.partial[own].addmm_(mine.T, mine)

    def touch(self, rows: Tensor) -> None:
        """Note that these rows are there whatever is taught: they could have been chosen in an action."""
        self._pairs(self._place(UNNAMED), rows.tolist())

    def _place(self, source: str) -> int:
        if source not in self.names:
            self.names.append(source)
            for name in self.per_source:
                old = getattr(self, name)
                setattr(self, name, torch.cat([old, old.new_zeros(1, *old.shape[1:])]))
        return self.names.index(source)

    def _pairs(self, place: int, rows: list[int]) -> list[int]:
        have = {(s, r): k for k, (s, r) in enumerate(self.pairs.tolist())}
        new = [row for row in dict.fromkeys(rows) if (place, row) not in have]
        if new:
            have |= {(place, row): len(have) + k for k, row in enumerate(new)}
            said = self.pairs.new_tensor([[place, row] for row in new])
            self.pairs = torch.cat([self.pairs, said])
            self.cross = torch.cat([self.cross, self.cross.new_zeros(len(new), self.cross.shape[1])])
            self.class_count = torch.cat([self.class_count, self.class_count.new_zeros(len(new))])
        return [have[place, row] for row in rows]

    def _partial(self, place: int, row: int) -> int:
        pairs = self.partial_pairs.tolist()
        if [place, row] not in pairs:
            pairs.append([place, row])
            said = self.partial_pairs.new_tensor([[place, row]])
            self.partial_pairs = torch.cat([self.partial_pairs, said])
            self.partial = torch.cat([self.partial, self.partial.new_zeros(1, *self.partial.shape[1:])])
        return pairs.index([place, row])

    def merge(self, other: "Sources", rows: Tensor) -> None:
        """Add another one's sums; sources of one name are one. `rows` are where its rows are here, (C,)."""
        for k, name in enumerate(other.names):
            place = self._place(name)
            for sums in self.per_source:
                getattr(self, sums)[place] += getattr(other, sums)[k]
        for k, (source, row) in enumerate(other.pairs.tolist()):
            (at,) = self._pairs(self._place(other.names[source]), [int(rows[row])])
            self.cross[at] += other.cross[k]
            self.class_count[at] += other.class_count[k]
        for k, (source, row) in enumerate(other.partial_pairs.tolist()):
            at = self._partial(self._place(other.names[source]), int(rows[row]))
            self.partial[at] += other.partial[k]

    # -- taking back -----------------------------------------------------------------------------------------

    @property
    def known(self) -> dict[str, int]:
        """Which sources there are, and how many samples each has taught."""
        samples = self.watched[:, 1, 5].long().tolist()  # of scenes: phi's leave out what was partly right
        return {name: n for name, n in zip(self.names, samples, strict=True) if name != UNNAMED}

    def find(self, source: str) -> int:
        """Place of a source.

        Raises:
            ValueError: for one that is not there; those that are are named.
        """
        if source == UNNAMED or source not in self.names:
            raise ValueError(unknown(source, list(self.known)))
        return self.names.index(source)

    def drop(self, place: int) -> None:
        """Let go of one source's sums."""
        others = torch.arange(len(self.names), device=self.gram.device) != place
        pairs, partial = self.pairs[:, 0] != place, self.partial_pairs[:, 0] != place
        for names, which in (
            (self.per_source, others),
            (self.per_pair, pairs),
            (self.per_partial, partial),
        ):
            for name in names:
                setattr(self, name, getattr(self, name)[which])
        for table in (self.pairs, self.partial_pairs):
            table[:, 0] -= (table[:, 0] > place).to(table)
        del self.names[place]


def check(learner: "Learner", source: str | None) -> None:
    """Whether samples of this source can be learned.

    Raises:
        ValueError: if it is no text, or no sums are kept by source.
    """
    if source is None:
        return
    if not isinstance(source, str) or source == UNNAMED:
        raise ValueError(f"source={source!r}: a text that is not empty is needed, or None")
    if learner.sources is None:
        raise ValueError(
            f"source={source!r}: sums by source are kept with ArrCocConfig(sources=True), which this adapter "
            "was not made with"
        )


def count(
    learner: "Learner",
    phi: Tensor,
    scene: Tensor,
    rows: Tensor,
    source: str | None,
    weight: Tensor | None = None,
    outcomes: Tensor | None = None,
) -> None:
    """Count samples into the readout and what is familiar and, where those are kept, into the sums of their
    source; arguments as in `Sources.add`."""
    before = watched(learner)
    if outcomes is None:
        learner.readout.learn(phi, rows, weight)
    else:
        learner.readout.learn_outcomes(phi, rows, outcomes)
    counted = learner.scenes.counted()
    learner.scenes.learn(scene)
    learner.scenes.repair(counted)
    if learner.sources is not None:
        said = (phi, scene, rows, weight, outcomes)
        learner.sources.add(source or UNNAMED, *said, watched(learner) - before)


def unknown(source: str, known: list[str]) -> str:
    """Why a source cannot be found, and which ones can."""
    near = difflib.get_close_matches(str(source), known, n=1, cutoff=0.5)
    there = f"there are {', '.join(map(repr, known))}" if known else "none has taught anything"
    return f"no source is called {source!r}: {there}" + (f"; did you mean {near[0]!r}?" if near else "")


def watched(learner: "Learner") -> Tensor:
    """The moments of the leverage of phi and of scenes, which add up, (2, 6)."""
    return torch.stack([moments(f.leverage) for f in (learner.readout.familiarity, learner.scenes)])


def forget(learner: "Learner", source: str) -> int:
    """Make the readout, and what is familiar, what they would be without a source; returns its samples.

    A class that only this source has taught is gone. How unusual samples were before they were learned
    (`Familiarity.leverage`) is of those that stay, as it was when they came. How sure probabilities are
    (`confidence`) stays as it is, as do U, W, b and all else that is no sum. How high values are
    (`unlearned`) is counted anew: they are another readout's.

    Raises:
        ValueError: for a source that is not there, or where none are kept; nothing has changed.
    """
    sources = learner.sources
    if sources is None:
        raise ValueError("sources=False keeps no sums by source: attach with ArrCocConfig(sources=True)")
    place = sources.find(source)
    samples = sources.known[source]
    sources.drop(place)
    left = sources.pairs[:, 1].unique()  # sorted
    _keep(learner, left)
    readout, scenes = learner.readout, learner.scenes
    at, partial = sources.pairs[:, 1], sources.partial_pairs[:, 1]
    readout.cross = torch.zeros_like(readout.cross).index_add_(0, at, sources.cross)
    readout.class_count = torch.zeros_like(readout.class_count).index_add_(0, at, sources.class_count)
    rows, which = partial.unique(return_inverse=True)
    readout.partial_rows = rows
    readout.partial = readout.partial.new_zeros(len(rows), *readout.partial.shape[1:])
    readout.partial.index_add_(0, which, sources.partial)
    readout.partial_precision = torch.zeros_like(readout.partial)
    readout.familiarity.gram.copy_(sources.gram.sum(0))
    scenes.gram.copy_(sources.scene_gram.sum(0))
    for familiar, seen in zip((readout.familiarity, scenes), sources.watched.sum(0), strict=True):
        familiar.leverage.copy_(leverage_of(seen))
    readout.solve()
    scenes.solve()
    learner.unlearned.moments.zero_()
    return samples


def _keep(learner: "Learner", rows: Tensor) -> None:
    """Leave only these rows (ascending) of all that has one per class."""
    sources, old = learner.sources, len(learner.classes)
    assert sources is not None
    if len(rows) == old:
        return
    new = torch.full((old,), -1, dtype=torch.int64, device=rows.device)
    new[rows] = torch.arange(len(rows), device=rows.device)
    for table in (sources.pairs, sources.partial_pairs):
        table[:, 1] = new[table[:, 1]]
    learner.readout.keep(rows)
    if learner.answers is not None:
        learner.answers.keep(rows)
    learner.rule.keep(rows, old)
    learner.optimizer.keep([f"rule.{name}" for name in learner.rule.per_class], rows)
    moved = new.tolist()  # a class that waits for a reward was touched, and stays
    for groups in learner.pending.groups.values():
        for group in groups:
            group[:] = [e.at(moved[e.row]) for e in group]
