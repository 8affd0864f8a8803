"""What may be asked of any stream: fewer samples, another order, other labels; said behind its name.

    split-fashion?blurry=0.1&noise=0.2

- `shots=5`: so many samples of each class in each experience.
- `imbalance=100`: the largest class has so many times the samples of the smallest; between them it falls
  exponentially (Cao et al. 2019), in an order of classes drawn from the seed.
- `repeat=0.3`: this share of each experience's samples comes back in the experiences after it.
- `blurry=0.1`: this share of all samples comes in another experience than its own, earlier or later.
- `drift=1`: the stream has its experiences twice, half of the samples each time, and the second time every
  label is the one so many places on among the sorted classes; the first meaning is outdated at the end.
- `noise=0.2`: this share of all samples has a wrong label, drawn evenly from the others.
- `delay=20`: the label of a sample comes so many steps after it (`eval.exam.one` waits for it).

They are applied in this order, whatever the order in which they are said. Which samples are there, and what
they are called, depends on the seed alone, so that percepts hold for every order; what comes when depends on
the order too. Probes stay as they are, but for the second meaning after a drift, which has probes of its own.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from arr_coc.training import stream_changes
from arr_coc.training.streams import Stream, outline


@dataclass(frozen=True)
class Option:
    """One option: what makes a value of a text, the value that changes nothing, and what is possible."""

    of: Callable[[str], float]
    nothing: float | None
    possible: str
    good: Callable[[float], bool]

    def value(self, name: str, said: Any) -> float:
        """Raises:
        ValueError: for what is no value of this option."""
        try:
            value = self.of(str(said))
        except ValueError:
            value = math.nan
        if isinstance(said, bool) or not (value == self.nothing or self.good(value)):
            raise ValueError(f"{name}={said}: {self.possible} is needed")
        return value


def _ratio(said: str) -> float:
    value = float(said.removesuffix(":1"))
    return int(value) if value.is_integer() else value


def _share() -> Option:
    return Option(float, 0.0, "a share from 0 to 1", lambda v: 0 < v <= 1)


def _count(nothing: float | None, what: str) -> Option:
    return Option(int, nothing, f"a whole number of {what}, at least 1", lambda v: v >= 1)


OPTIONS: dict[str, Option] = {
    "shots": _count(None, "samples"),
    "imbalance": Option(_ratio, 1, "a ratio of at least 1, such as 100 or 100:1", lambda v: 1 < v < math.inf),
    "repeat": _share(),
    "blurry": _share(),
    "drift": _count(0, "places"),
    "noise": _share(),
    "delay": _count(0, "steps"),
}


def split_name(name: str) -> tuple[str, dict[str, str]]:
    """A stream's name and what is said behind it: "a?x=1&y=2" -> ("a", {"x": "1", "y": "2"}).

    Raises:
        ValueError: for a part without a value, or one that is there twice.
    """
    plain, mark, rest = name.partition("?")
    found: dict[str, str] = {}
    for part in rest.split("&") if mark else ():
        option, equals, value = part.partition("=")
        if not (option and equals and value):
            raise ValueError(f"{part!r} in {name!r}: options are written name=value, with & between them")
        if option in found:
            raise ValueError(f"{option} is said twice in {name!r}")
        found[option] = value
    return plain, found


def checked(said: dict[str, Any], others: Sequence[str] = ()) -> dict[str, float]:
    """The options of these that change something, as values, in the order in which they are applied.

    Args:
        others: names that are possible beside OPTIONS, for the error.

    Raises:
        ValueError: for an unknown name (the nearest is named) or a value that is none.
    """
    possible = [*OPTIONS, *others]
    for name in said:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, possible, n=1, cutoff=0.0)[0]
            raise ValueError(f"no option {name!r}; the nearest is {near!r}. There are {', '.join(possible)}")
    values = {name: OPTIONS[name].value(name, said[name]) for name in OPTIONS if name in said}
    return {name: value for name, value in values.items() if value != OPTIONS[name].nothing}


def written(name: str) -> str:
    """A stream's name with its options in one order and form: names that mean the same are the same.

    Raises:
        ValueError: for a value of one of OPTIONS that is none.
    """
    plain, said = split_name(name)
    values = checked({k: v for k, v in said.items() if k in OPTIONS})
    parts = [f"{k}={said[k]}" for k in sorted(said) if k not in OPTIONS]
    parts += [f"{k}={value}" for k, value in values.items()]
    return f"{plain}?{'&'.join(parts)}" if parts else plain


def apply(stream: Stream, seed: int, order: int, **options: Any) -> Stream:
    """The stream with these options; the stream that is given stays as it is.

    Raises:
        ValueError: for an unknown option or value, or one that this stream has too few samples,
            experiences or answers for.
    """
    values = checked(options)
    for name, value in values.items():
        stream = getattr(stream_changes, name)(stream, value, seed, order)
    turns = set(outline(stream.samples)[1]) if values else set(range(len(stream.experiences)))
    missing = [e for e in range(len(stream.experiences)) if e not in turns]
    if missing:
        raise ValueError(f"{stream.name} with {values}: nothing is left of experiences {missing}")
    return stream
