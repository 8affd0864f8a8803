"""emoji-vendors and emoji-groups: emoji that the built-in models were never taught, one to a picture.

`emoji-vendors` has the same concepts in one artwork after another: the domain shifts, the classes stay.
`emoji-groups` has one group of emoji after another: classes come with their group, in every artwork but one,
and are examined in that one, whose drawings the stream never shows.

There is one drawing of a concept in an artwork. Samples differ in the background, in the size, place and tilt
of the drawing; so the probes of `emoji-vendors` are new pictures of drawings that the stream has shown, those
of `emoji-groups` are new drawings.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from arr_coc.training.items import SHIPPED, Emoji, emoji
from arr_coc.training.scenes import background, compose
from arr_coc.training.streams import PROMPT, Rendered, Sample, Stream

OPTIONS = ("by", "concepts", "n_train", "n_test")
TILT = 20.0  # degrees, at most
EXAMINED = "fluent_3d"  # the artwork that emoji-groups keeps for its probes
MOST = {"artworks": 200, "groups": 9}  # concepts: in all, of a group


@dataclass(frozen=True)
class _Key:
    """One picture: whose turn it is, the concept (a row of the emoji files), the artwork, and its index."""

    split: str
    turn: int
    row: int
    artwork: str
    index: int


def make(
    name: str,
    seed: int,
    order: int,
    by: str = "artworks",
    concepts: int | None = None,
    n_train: int = 8_000,
    n_test: int = 1_600,
) -> Stream:
    """Experiences are artworks or groups, one after another, the same pictures in every order of a seed.

    While learning the candidates are the classes met so far (all of them, where experiences are artworks), on
    a probe all of them.

    Args:
        by: "artworks" or "groups".
        concepts: drawn from the seed among those that training held out, flags aside, and that every artwork
            has: in all (by artworks, 50 by default, at most 200), or of each of the eight groups (8 by
            default, at most 9).
        n_train, n_test: pictures, as many for every artwork or group as for any other.
    """
    if by not in MOST:
        raise ValueError(f"by={by!r}: possible are {', '.join(map(repr, MOST))}")
    concepts = (50 if by == "artworks" else 8) if concepts is None else concepts
    if isinstance(concepts, bool) or not isinstance(concepts, int) or not 2 <= concepts <= MOST[by]:
        raise ValueError(f"concepts={concepts!r}: 2 to {MOST[by]} are possible by {by}")
    art = emoji(SHIPPED[0])
    chosen = _chosen(art, by, concepts, seed)
    parts = len(SHIPPED) if by == "artworks" else len(chosen)
    for what, given in (("n_train", n_train), ("n_test", n_test)):
        if isinstance(given, bool) or not isinstance(given, int) or given < parts * concepts:
            raise ValueError(
                f"{what}={given!r}: at least one picture for each of {concepts} concepts in {parts} {by} is "
                f"needed, {parts * concepts}"
            )
    turn = np.random.default_rng([seed, order, 7]).permutation(parts).tolist()

    def said(row: int) -> str:
        return PROMPT.format(art.names[row])

    if by == "artworks":
        experiences = [[SHIPPED[part]] for part in turn]
        everything = [said(row) for row in chosen[0]]
        met = [everything] * parts
    else:
        experiences = [[said(row) for row in chosen[part]] for part in turn]
        met = [[text for e in experiences[: k + 1] for text in e] for k in range(parts)]
        everything = met[-1]

    def render(key: _Key) -> Sample:
        chance = np.random.default_rng([seed, 22, key.split == "test", key.index])
        image, _ = compose([_drawn(key.artwork, key.row, chance)], 1, background(chance), chance)
        return {
            "image": image,
            "candidates": met[key.turn] if key.split == "train" else everything,
            "label": said(key.row),
            "context": None,
            "experience": key.turn,
            "mask": None,
            "index": key.index,
        }

    def keys(split: str, count: int) -> list[list[_Key]]:
        """By turn. The index counts by artwork or group, not by turn: orders share their pictures."""
        each = count // parts
        return [
            [
                _Key(split, t, *_which(by, chosen, part, n, split), part * each + n)
                for n in np.random.default_rng([seed, 23, part]).permutation(each).tolist()
            ]
            for t, part in enumerate(turn)
        ]

    def told(key: _Key) -> str:
        return said(key.row)

    train = [key for part in keys("train", n_train) for key in part]
    probes = [Rendered(part, render, told) for part in keys("test", n_test)]
    return Stream(name, Rendered(train, render, told), experiences, everything, list(probes))


def _chosen(art: Emoji, by: str, concepts: int, seed: int) -> list[list[int]]:
    """Rows of the concepts: one list, or one for each group, in the groups' own order."""
    there = np.all([emoji(name).images[..., 3].any((1, 2)) for name in SHIPPED], axis=0)
    groups = np.array(art.groups)
    free = np.flatnonzero(art.held_out & there & (groups != "flags"))
    mixed = np.random.default_rng([seed, 24]).permutation(free)
    if by == "artworks":
        return [mixed[:concepts].tolist()]
    named = dict.fromkeys(art.groups)
    return [mixed[groups[mixed] == g][:concepts].tolist() for g in named if g != "flags"]


def _which(by: str, chosen: list[list[int]], part: int, number: int, split: str) -> tuple[int, str]:
    """Concept and artwork of the picture of that number; concepts go round, and then artworks."""
    if by == "artworks":
        return chosen[0][number % len(chosen[0])], SHIPPED[part]
    turn, concept = divmod(number, len(chosen[part]))
    shown = [EXAMINED] if split == "test" else [a for a in SHIPPED if a != EXAMINED]
    return chosen[part][concept], shown[turn % len(shown)]


def _drawn(artwork: str, row: int, chance: np.random.Generator) -> np.ndarray:
    """A drawing, tilted: RGBA."""
    upright = Image.fromarray(emoji(artwork).images[row])
    return np.asarray(upright.rotate(chance.uniform(-TILT, TILT), Image.Resampling.BILINEAR))
