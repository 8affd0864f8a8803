"""moving: scenes of garments that move over the token grid, frame after frame; the context names one of them
by its colour, the answer is its class.

Frames of a scene come in order, so where the cued item will be follows from where it was and how it moved;
the truth for relevance is exact, the tokens that its box covers by half or more. Boxes may overlap: the mask
says where the cued item is, whether or not another one hides it.

With a lead, time tells more: the cued item comes late and stays for a few frames. So many frames before it a
sign comes, so many after it an afterthought, and each colour has one sign and one afterthought of its own,
drawn from the seed: emoji that the tower was taught, in their own colours (in white they look alike to it).
Before and after, the mask is empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from arr_coc.training.items import FASHION_CLASSES, emoji, fashion
from arr_coc.training.scenes import CUE_COLOURS, SIDE, TOKENS, background, tint
from arr_coc.training.streams import PROMPT, Rendered, Sample, Stream

OPTIONS = ("edge", "items", "frames", "lead", "colours", "n_train", "n_test")
EDGES = ("bounce", "wrap")
BOX = 32  # px: four tokens
SLOWEST, FASTEST = 4.0, 14.0  # px in a frame
STAY = 2  # frames for which a sign, the cued item of a scene with a lead, or an afterthought is there
_PATCH = SIDE // TOKENS


@dataclass(frozen=True)
class Scene:
    """What moves, and where it is at every frame.

    Args:
        field: the background, (96, 96, 3) uint8.
        pictures: RGBA of each item; the first is the cued one, with a lead the last two are the sign and the
            afterthought.
        corners: upper left corner (y, x) of each box in px, (frames, items, 2).
        there: which items are there, (frames, items) bool.
        depth: the items in the order in which they are drawn.
        colour: of the cued item, its place in CUE_COLOURS.
        label: its class, a place in FASHION_CLASSES.
    """

    field: np.ndarray
    pictures: tuple[np.ndarray, ...]
    corners: np.ndarray
    there: np.ndarray
    depth: tuple[int, ...]
    colour: int
    label: int


@dataclass(frozen=True)
class Key:
    """One frame: the scene that it belongs to, by its number, and its own number in there."""

    split: str
    turn: int  # of the experience: there is one
    scene: int
    frame: int
    index: int


def make(
    name: str,
    seed: int,
    order: int,
    edge: str = "bounce",
    items: int = 3,
    frames: int = 16,
    lead: int = 0,
    colours: int = len(CUE_COLOURS),
    n_train: int = 4_800,
    n_test: int = 480,
) -> Stream:
    """One experience; an order of a seed is an order of the same scenes, never of their frames.

    Args:
        edge: what an item does where the picture ends: "bounce", or "wrap" (come in on the other side).
        items: garments in a scene, of different colours.
        frames: of a scene.
        lead: frames from the sign to the cued item, and from that to the afterthought; 0: no such things,
            and the cued item is always there.
        colours: how many colours are asked for.
        n_train, n_test: frames, of whole scenes, the same number for every colour.
    """
    if edge not in EDGES:
        raise ValueError(f"edge={edge!r}: possible are {', '.join(map(repr, EDGES))}")
    most = len(CUE_COLOURS)
    for what, given, least, top in (
        ("items", items, 2, most),
        ("colours", colours, 1, most),
        ("lead", lead, 0, frames),
        ("frames", frames, max(2, 2 * lead + STAY) if lead else 2, None),
    ):
        if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= (top or given):
            raise ValueError(f"{what}={given!r}: a whole number from {least} {f'to {top}' if top else 'on'}")
    for what, given in (("n_train", n_train), ("n_test", n_test)):
        if given < frames * colours:
            raise ValueError(
                f"{what}={given!r}: at least one scene of {frames} frames for each of the {colours} colours "
                f"is needed, {frames * colours}"
            )
    texts = [PROMPT.format(c) for c in FASHION_CLASSES]

    def shown(key: Key) -> Scene:
        return scene(seed, key.split, key.scene, edge, items, frames, lead, colours)

    def render(key: Key) -> Sample:
        moving = shown(key)
        return {
            "image": picture(moving, key.frame),
            "candidates": texts,
            "label": texts[moving.label],
            "context": CUE_COLOURS[moving.colour],
            "experience": key.turn,
            "mask": covered(moving, key.frame)[0],
            "index": key.index,
        }

    def told(key: Key) -> str:
        return texts[shown(key).label]

    def keys(split: str, count: int, turns: Sequence[int]) -> list[Key]:
        return [Key(split, 0, s, f, s * frames + f) for s in turns for f in range(frames)]

    def scenes(count: int) -> int:
        return count // (frames * colours) * colours

    shuffle = np.random.default_rng([seed, order, 8]).permutation(scenes(n_train)).tolist()
    train, test = keys("train", n_train, shuffle), keys("test", n_test, range(scenes(n_test)))
    return Stream(name, Rendered(train, render, told), [texts], texts, [Rendered(test, render, told)])


@lru_cache(maxsize=32)
def scene(
    seed: int,
    split: str,
    number: int,
    edge: str = "bounce",
    items: int = 3,
    frames: int = 16,
    lead: int = 0,
    colours: int = len(CUE_COLOURS),
) -> Scene:
    """The scene of that number of a seed and split; its colour is `number` modulo `colours`. See `make`."""
    chance = np.random.default_rng([seed, split == "test", number, 12])
    colour = number % colours
    others = chance.choice([c for c in range(len(CUE_COLOURS)) if c != colour], items - 1, replace=False)
    images, labels, _ = fashion(split)
    picked = chance.integers(len(labels), size=items)
    tints = [colour, *others.tolist()]
    shown = [tint(images[i], CUE_COLOURS[c]) for i, c in zip(picked, tints, strict=True)]
    if lead:
        shown += [symbol(seed, colour), symbol(seed, colour, after=True)]
    there = np.ones((frames, len(shown)), bool)
    if lead:
        comes = int(chance.integers(lead, frames - lead - STAY + 1))
        for item, since in ((0, comes), (items, comes - lead), (items + 1, comes + lead)):
            there[:, item] = False
            there[since : since + STAY, item] = True
    pictures = tuple(
        np.asarray(Image.fromarray(p).resize((BOX, BOX), Image.Resampling.BILINEAR)) for p in shown
    )
    speed, angle = chance.uniform(SLOWEST, FASTEST, len(shown)), chance.uniform(0, 2 * np.pi, len(shown))
    velocity = speed[:, None] * np.stack([np.sin(angle), np.cos(angle)], 1)
    start = chance.uniform(0, SIDE - BOX, (len(shown), 2))
    straight = start + np.arange(frames)[:, None, None] * velocity  # (frames, items, 2)
    corners = bounced(straight, SIDE - BOX) if edge == "bounce" else np.mod(straight, SIDE)
    depth = tuple(chance.permutation(len(shown)).tolist())
    field = background(chance)
    return Scene(field, pictures, np.floor(corners).astype(int), there, depth, colour, int(labels[picked[0]]))


def bounced(straight: np.ndarray, most: float) -> np.ndarray:
    """Where something is that would be at `straight`, but is thrown back at 0 and at `most`: a triangle
    wave."""
    return most - np.abs(np.mod(straight, 2 * most) - most)


def symbol(seed: int, colour: int, after: bool = False) -> np.ndarray:
    """The sign of a colour, or its afterthought: an emoji as it is drawn, (48, 48, 4), none of which is used
    twice."""
    art = emoji("noto")
    taught = np.flatnonzero(~art.held_out)
    which = np.random.default_rng([seed, 13]).permutation(taught)[2 * colour + after]
    return art.images[which]


def picture(moving: Scene, frame: int) -> Image.Image:
    """The 96 px RGB picture of a frame."""
    canvas = Image.fromarray(moving.field)
    for item in moving.depth:
        if not moving.there[frame, item]:
            continue
        art = Image.fromarray(moving.pictures[item])
        y, x = moving.corners[frame, item].tolist()
        for dy in (0, -SIDE):  # what leaves on one side comes in on the other
            for dx in (0, -SIDE):
                if y + dy > -BOX and x + dx > -BOX:
                    canvas.paste(art, (x + dx, y + dy), art)
    return canvas


def covered(moving: Scene, frame: int) -> np.ndarray:
    """The tokens that each item's box covers by half or more, (items, 12, 12) bool; none where it is not
    there."""
    masks = np.zeros((len(moving.pictures), TOKENS, TOKENS), bool)
    for item, corner in enumerate(moving.corners[frame]):
        if moving.there[frame, item]:
            rows, columns = (_share(int(at)) for at in corner)
            masks[item] = np.outer(rows, columns) >= 0.5
    return masks


def _share(start: int) -> np.ndarray:
    """Of each token along a side, the share that lies in the box from `start` on, (12,)."""
    inside = np.zeros(SIDE)
    inside[np.arange(start, start + BOX) % SIDE] = 1
    return inside.reshape(TOKENS, _PATCH).mean(1)
