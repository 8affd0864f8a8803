"""How the plugin stands on each stream: beside the best other that stores no sample, and beside replay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arr_coc.eval import table
from arr_coc.eval.intervals import Interval

Record = dict[str, Any]
REPLAY = ("head-er", "head-derpp")
LOSS = 0.005  # half a point: what an interval should exclude for "at or above"


@dataclass(frozen=True)
class Standing:
    """The plugin minus another method on one stream, final accuracy, paired by seed.

    Args:
        kind: "best other without replay" (the highest mean on the seeds that are reported, which is in its
            favour), or "replay".
        difference: NaN as its half-width with one seed.
    """

    stream: str
    kind: str
    other: str
    difference: Interval

    @property
    def holds(self) -> bool | None:
        """Whether the interval excludes a loss of more than `LOSS`; None where there is no interval."""
        return None if self.difference.n < 2 else self.difference.low >= -LOSS

    def __str__(self) -> str:
        verdict = {
            True: "a loss of more than half a point is excluded",
            False: "a loss of more than half a point is not excluded",
            None: "one seed: no interval",
        }[self.holds]
        what = f"{self.other} (the best other without replay)" if self.kind != "replay" else self.other
        return f"{self.stream}: arr-coc - {what} = {table.signed(self.difference)}, {verdict}"


def standings(runs: Sequence[Record]) -> list[Standing]:
    """Per stream: against the best other replay-free method (role "method", no stored samples), and against
    each of `REPLAY` that ran on the same seeds."""
    out = []
    for stream, rows in table.by_stream(table.summary(runs)).items():
        rivals = [r for r in rows if r["role"] == "method" and "vs_plugin" in r]
        free = [r for r in rivals if not r.get("stored_samples")]
        if free:
            best = max(free, key=lambda r: r["final_accuracy"].mean)
            out.append(_one(stream, "best other without replay", best))
        out += [_one(stream, "replay", r) for r in rivals if r["method"] in REPLAY]
    return out


def _one(stream: str, kind: str, row: table.Row) -> Standing:
    d: Interval = row["vs_plugin"]
    return Standing(stream, kind, row["method"], Interval(-d.mean, d.half, d.sd, d.n))
