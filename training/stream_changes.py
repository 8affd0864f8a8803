"""How a stream is changed: fewer samples, another order, other labels (see `stream_options`).

Each takes a stream, a value, the seed and the order, and returns a new stream over the samples of the old
one, which stays as it is. Nothing is rendered until it is looked at; where a class has to be known, it is
asked of `Rendered.told`.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from arr_coc.training.streams import Rendered, Sample, Stream, answers_met, labels, outline


@dataclass(frozen=True)
class _Key:
    """A sample: its place in the stream before, its index, the experience in which it comes, and its own.

    `reach` is the last experience of which a sample has come by now.
    """

    place: int
    index: int
    turn: int
    own: int
    reach: int


# -- the samples of a stream as keys, and back ---------------------------------------------------------------


def _keys(samples: Sequence[Sample]) -> list[_Key]:
    index, turn = outline(samples)
    made = getattr(samples, "keys", [])
    own = [k.own for k in made] if len(made) and isinstance(made[0], _Key) else turn
    rows = zip(index, turn, own, strict=True)
    return [_Key(place, i, t, o, o) for place, (i, t, o) in enumerate(rows)]


def _ranks(keys: Sequence[_Key], *code: int) -> dict[int, int]:
    """A place in a random order for every index, the same whatever the order of the keys."""
    index = sorted(k.index for k in keys)
    places = np.random.default_rng(code).permutation(len(index)).tolist()
    return dict(zip(index, places, strict=True))


def _with(
    stream: Stream,
    keys: Sequence[_Key],
    change: Callable[[Sample, _Key], dict[str, Any]] = lambda sample, key: {},
    told: Callable[[str, _Key], str] = lambda label, key: label,
) -> Rendered:
    """These samples of a stream, changed as they are looked at; `told` is the same for the label alone."""
    before = stream.samples

    def render(key: _Key) -> Sample:
        sample = before[key.place]
        return {**sample, **change(sample, key), "experience": key.turn}

    inner = before.told if isinstance(before, Rendered) else None
    if not isinstance(before, Rendered) or inner is None:
        return Rendered(keys, render)
    known, places = inner, before.keys

    def label(key: _Key) -> Any:
        found = known(places[key.place])
        return None if found is None else told(found, key)

    return Rendered(keys, render, label)


def _changed(stream: Stream, samples: Rendered, **fields: Any) -> Stream:
    return replace(stream, samples=samples, skipped=Counter(), **fields)


# -- fewer samples -------------------------------------------------------------------------------------------


def shots(stream: Stream, count: float, seed: int, order: int) -> Stream:
    keys, called = _keys(stream.samples), labels(stream.samples)
    ranks = _ranks(keys, seed, 50)
    groups: dict[tuple[int, str], list[_Key]] = {}
    for key, label in zip(keys, called, strict=True):
        if label is not None:
            groups.setdefault((key.turn, label), []).append(key)
    for (turn, label), some in groups.items():
        if len(some) < count:
            raise ValueError(f"shots={count:g}: experience {turn} has {len(some)} samples of {label!r}")
    kept = {k.place for g in groups.values() for k in sorted(g, key=lambda k: ranks[k.index])[: int(count)]}
    return _subset(stream, keys, called, kept)


def imbalance(stream: Stream, ratio: float, seed: int, order: int) -> Stream:
    """n_k = n_min ratio^(1 - k / (K - 1)) for the k-th of K classes, n_min the largest that there is for."""
    keys, called = _keys(stream.samples), labels(stream.samples)
    there = Counter(label for label in called if label is not None)
    if len(there) < 2:
        raise ValueError(f"imbalance={ratio:g}: {stream.name} has one class only")
    classes = sorted(there)
    mixed = [classes[i] for i in np.random.default_rng([seed, 51]).permutation(len(classes))]
    wide = {c: ratio ** (1 - k / (len(mixed) - 1)) for k, c in enumerate(mixed)}
    least = min(int(there[c] / wide[c] + 1e-9) for c in mixed)
    if least < 1:
        short = min(mixed, key=lambda c: there[c] / wide[c])
        raise ValueError(
            f"imbalance={ratio:g}: {short!r} has {there[short]} samples, {math.ceil(wide[short] - 1e-9)} are "
            "needed; more samples (n_train) or a smaller ratio"
        )
    left = {c: min(round(least * wide[c]), there[c]) for c in mixed}
    ranks, kept = _ranks(keys, seed, 52), set()
    for place in sorted(range(len(keys)), key=lambda p: ranks[keys[p].index]):
        label = called[place]
        if label is not None and left[label] > 0:
            left[label] -= 1
            kept.add(place)
    return _subset(stream, keys, called, kept)


def _subset(stream: Stream, keys: list[_Key], called: Sequence[str | None], kept: set[int]) -> Stream:
    """What is kept; rows without a label stay, to be skipped and counted."""
    some = [k for k, label in zip(keys, called, strict=True) if label is None or k.place in kept]
    return _changed(stream, _with(stream, some))


# -- another order -------------------------------------------------------------------------------------------


def _moved(stream: Stream, keys: Sequence[_Key]) -> Stream:
    """The samples in a new order; where candidates were the answers met so far, they are so again."""
    met, furthest, arranged = answers_met(stream), -1, []
    for key in keys:
        furthest = max(furthest, key.own)
        arranged.append(replace(key, reach=furthest))

    def candidates(sample: Sample, key: _Key) -> dict[str, Any]:
        if stream.asked or len(sample["candidates"]) == len(stream.classes):
            return {}
        return {"candidates": met[key.reach]}

    return _changed(stream, _with(stream, arranged, candidates))


def _in_turn(stream: Stream, what: str) -> list[_Key]:
    """The samples of a stream whose experiences come one after another."""
    keys = _keys(stream.samples)
    turns = [k.turn for k in keys]
    if len(set(turns)) < 2:
        raise ValueError(f"{what}: {stream.name} has one experience only, so nothing can come in another")
    if turns != sorted(turns):
        raise ValueError(f"{what}: the experiences of {stream.name} are mixed already")
    return keys


def repeat(stream: Stream, share: float, seed: int, order: int) -> Stream:
    """round(share n_e) of the samples of each experience but the last come in later ones, evenly spread."""
    keys = _in_turn(stream, f"repeat={share}")
    count, chance = len(stream.experiences), np.random.default_rng([seed, order, 53])
    stay: list[list[_Key]] = [[k for k in keys if k.turn == e] for e in range(count)]
    come: list[list[_Key]] = [[] for _ in range(count)]
    for e in range(count - 1):
        mine = stay[e]
        leaving = sorted(chance.permutation(len(mine))[: round(share * len(mine))].tolist())
        later = chance.permutation(np.arange(len(leaving)) % (count - 1 - e) + e + 1).tolist()
        for place, turn in zip(leaving, later, strict=True):
            come[turn].append(replace(mine[place], turn=turn))
        gone = set(leaving)
        stay[e] = [k for place, k in enumerate(mine) if place not in gone]
    arranged = []
    for own, back in zip(stay, come, strict=True):
        total = len(own) + len(back)
        guests = set(chance.permutation(total)[: len(back)].tolist())
        some, others = iter(own), iter([back[i] for i in chance.permutation(len(back))])
        arranged += [next(others if place in guests else some) for place in range(total)]
    return _moved(stream, arranged)


def blurry(stream: Stream, share: float, seed: int, order: int) -> Stream:
    """round(share n) samples change places, each with a place in another experience; one less where two
    experiences would have to share an odd number."""
    keys = _in_turn(stream, f"blurry={share}")
    chance = np.random.default_rng([seed, order, 54])
    slot = np.array([k.turn for k in keys])
    sizes = np.bincount(slot, minlength=len(stream.experiences))
    quota = _quotas(sizes, round(share * len(keys)))
    if quota is None:
        most = 2 * (len(keys) - int(sizes.max())) / len(keys)
        raise ValueError(
            f"blurry={share}: experience {sizes.argmax()} of {stream.name} has {sizes.max()} of {len(keys)} "
            f"samples, so {most:.3g} at most can come outside their own"
        )
    drawn = [chance.permutation(np.flatnonzero(slot == e))[:q] for e, q in enumerate(quota)]
    arranged = list(keys)
    places = np.concatenate(drawn)  # sorted by experience
    for place, sample in zip(places.tolist(), _deranged(places, slot, chance).tolist(), strict=True):
        arranged[place] = replace(keys[sample], turn=keys[place].turn)
    return _moved(stream, arranged)


def _quotas(sizes: np.ndarray, total: int) -> list[int] | None:
    """How many of each experience change places: in proportion, none more than half of them all; or None."""
    if total == 1 or np.count_nonzero(sizes) == 2:  # who changes places needs a partner
        total -= total % 2
    most = np.minimum(sizes, total // 2)
    if most.sum() < total:
        return None
    quota = np.minimum(total * sizes // max(sizes.sum(), 1), most)
    while quota.sum() < total:  # the rest to where most is missing
        wanting = np.where(quota < most, total * sizes / sizes.sum() - quota, -np.inf)
        quota[int(wanting.argmax())] += 1
    return quota.tolist()


def _deranged(placed: np.ndarray, slot: np.ndarray, chance: np.random.Generator) -> np.ndarray:
    """Which of these samples takes each of their places, so that none is in its experience.

    Sorted by experience and turned by the size of the largest, all are outside; exchanges that keep them so
    then mix who goes where.
    """
    given = np.roll(placed, int(np.bincount(slot[placed]).max())) if len(placed) else placed
    for one, two in chance.integers(len(given), size=(8 * len(given), 2)).tolist() if len(given) else ():
        if slot[given[two]] != slot[placed[one]] and slot[given[one]] != slot[placed[two]]:
            given[[one, two]] = given[[two, one]]
    return given


# -- other labels --------------------------------------------------------------------------------------------


def _rivals(stream: Stream) -> list[list[str]]:
    """By experience, sorted: the same in every order."""
    every = sorted(stream.classes)
    return [sorted(r) for r in stream.rivals] if stream.rivals else [every] * len(stream.experiences)


def drift(stream: Stream, places: float, seed: int, order: int) -> Stream:
    count, rivals = len(stream.experiences), _rivals(stream)
    for answers in rivals:
        if places % len(answers) == 0:
            raise ValueError(f"drift={places:g}: turned so far, {len(answers)} answers are what they were")

    def turned(label: str, own: int) -> str:
        answers = rivals[own]
        return answers[(answers.index(label) + int(places)) % len(answers)]

    keys = _keys(stream.samples)
    ranks = _ranks(keys, seed, 55)
    first = len(keys) - len(keys) // 2
    halves = [[k for k in keys if (ranks[k.index] >= first) == late] for late in (False, True)]
    arranged = [*halves[0], *(replace(k, turn=count + k.turn) for k in halves[1])]

    def change(sample: Sample, key: _Key) -> dict[str, Any]:
        if key.turn < count:
            return {}
        known = stream.asked[key.own] if stream.asked else stream.classes
        return {"label": turned(sample["label"], key.own), "candidates": known}

    def told(label: str, key: _Key) -> str:
        return label if key.turn < count else turned(label, key.own)

    shift = 1 + max(i for probe in stream.probes for i in outline(probe)[0]) if stream.probes else 0
    probes = [*stream.probes]
    for e, probe in enumerate(stream.probes):
        again = [replace(k, index=k.index + shift, turn=count + e) for k in _keys(probe)]
        probes.append(Rendered(again, _second(probe, e, turned)))
    outdated = (*range(count), *(count + e for e in stream.outdated))
    return _changed(
        stream,
        _with(stream, arranged, change, told),
        experiences=stream.experiences * 2,
        met=[*answers_met(stream), *[stream.classes] * count],
        rivals=stream.rivals * 2,
        asked=stream.asked * 2,
        probes=probes,
        outdated=outdated,
    )


def _second(probe: Sequence[Sample], own: int, turned: Callable[[str, int], str]) -> Callable[[_Key], Sample]:
    def render(key: _Key) -> Sample:
        sample = probe[key.place]
        label = turned(sample["label"], own)
        return {**sample, "label": label, "experience": key.turn, "index": key.index}

    return render


def noise(stream: Stream, share: float, seed: int, order: int) -> Stream:
    keys, rivals = _keys(stream.samples), _rivals(stream)
    for answers in rivals:
        if len(answers) < 2:
            raise ValueError(f"noise={share:g}: there is no other answer than {answers[0]!r}")
    ranks, most = _ranks(keys, seed, 56), round(share * len(keys))

    def told(label: str, key: _Key) -> str:
        if ranks[key.index] >= most:
            return label
        others = [a for a in rivals[key.own] if a != label]
        return others[int(np.random.default_rng([seed, 57, key.index]).integers(len(others)))]

    def change(sample: Sample, key: _Key) -> dict[str, Any]:
        label, known = told(sample["label"], key), sample["candidates"]
        return {"label": label, "candidates": known if label in known else [*known, label]}

    return _changed(stream, _with(stream, keys, change, told))


def delay(stream: Stream, steps: float, seed: int, order: int) -> Stream:
    return replace(stream, delay=int(steps), skipped=Counter())
