"""Training scenes with words: every phrase comes with the exact tokens it names.

A `World` holds the concepts that training may show (seen emoji in four artworks, shapes, digits) and their
words. `sample` draws a scene: one to sixteen items, natural or tinted, with blank cells, repeats and
augmentation, and phrases for names, keywords, groups, colours and places. A mask is a union: "red" names the
tokens of every red item.
"""

from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from arr_coc.training import items, scenes

GROUP_WORDS = {
    "smileys & emotion": ("smileys & emotion", "a smiley", "emotion", "face"),
    "people & body": ("people & body", "people", "a person", "body"),
    "animals & nature": ("animals & nature", "an animal or plant", "nature"),
    "food & drink": ("food & drink", "something to eat or drink", "food"),
    "travel & places": ("travel & places", "travel", "a place or vehicle"),
    "activities": ("activities", "an activity", "sport or game"),
    "objects": ("objects", "an object", "a thing"),
    "symbols": ("symbols", "a symbol", "a sign"),
    "flags": ("flags", "a flag", "the flag of a country"),
}
NAME_TEMPLATES = ("a photo of a {}", "a {}", "the {}", "a picture of a {}", "this is a {}")
COLOUR_TEMPLATES = ("the {} one", "something {}", "a {} thing", "the {} object", "what is {}")
PLACE_TEMPLATES = ("in the {}", "the {}", "the one in the {}", "at the {}", "what is in the {}")
_FLIPPABLE = {
    "smileys & emotion",
    "people & body",
    "animals & nature",
    "food & drink",
    "travel & places",
    "activities",
}


@dataclass
class Phrase:
    """A text and the tokens that it names. kind: name, colour, place or group; cell: the only one it names,
    or -1."""

    text: str
    mask: np.ndarray  # (144,) bool
    kind: str
    cell: int = -1


@dataclass
class Scene:
    """A drawn scene: the picture and everything that is true of it."""

    pixels: np.ndarray  # (96, 96, 3) uint8
    grid: int
    concepts: np.ndarray  # (grid^2,) concept per cell, -1 blank
    arts: np.ndarray  # (grid^2,) artwork per cell, for the picture teacher
    colours: list[str | None]
    masks: np.ndarray  # (grid^2, 144) bool
    thumbs: np.ndarray  # (grid^2, 100) float32, 10x10 grey of the very item shown
    phrases: list[Phrase] = field(default_factory=list)
    caption: str = ""
    wrong_caption: str = ""


class World:
    """The concepts of training: seen emoji, then shapes, then digits; with names, keywords and groups.

    Attributes:
        names: one per concept. told: text -> the concepts it is true of, for every name, keyword, template
            and group.
    """

    def __init__(self, seen_only: bool = True) -> None:
        art = [items.emoji(name) for name in items.SHIPPED]
        keep = np.flatnonzero(~art[0].held_out) if seen_only else np.arange(len(art[0].names))
        self.images = np.stack([a.images[keep] for a in art])  # (A, E, 48, 48, 4)
        there: np.ndarray = np.any(self.images[..., 3], axis=(2, 3))  # (A, E)
        self.drawn_by = [np.flatnonzero(arts) for arts in there.T]  # by concept
        self.emoji = len(keep)
        self.rows = keep  # row in the emoji files
        self.names = [art[0].names[i] for i in keep] + list(items.SHAPES) + list(items.DIGITS)
        self.groups = [art[0].groups[i] for i in keep] + ["shape"] * 3 + ["digit"] * 10
        self.keywords = [[k for k in art[0].keywords[i] if len(k) > 2] for i in keep]
        self.keywords += [["shape"]] * 3 + [["digit", "number", str(i)] for i in range(10)]
        weight = np.array([0.25 if g == "flags" else 1.0 for g in self.groups[: self.emoji]])
        self.weight = np.cumsum(weight / weight.sum())
        self.told: dict[str, set[int]] = {}
        for i, (name, words) in enumerate(zip(self.names, self.keywords, strict=True)):
            for text in (name, *words):
                self.told.setdefault(text, set()).add(i)
            if self.groups[i] in GROUP_WORDS:
                for text in GROUP_WORDS[self.groups[i]]:
                    self.told.setdefault(text, set()).add(i)
        self.plain = dict(self.told)
        for name in self.names:
            for template in NAME_TEMPLATES:
                self.told.setdefault(template.format(name), set()).update(self.plain[name])
        self.digits = items.digits()
        self.places = {g: list(scenes.place_phrases(g).items()) for g in (2, 3)}

    def _concept(self, rng: np.random.Generator, tinted: bool) -> int:
        kind = rng.random()
        if kind < (0.62 if tinted else 0.94):
            return int(np.searchsorted(self.weight, rng.random()))
        return self.emoji + int(
            rng.integers(3) if kind < (0.84 if tinted else 0.97) else 3 + rng.integers(10)
        )

    def _draw(self, concept: int, art: int, colour: str | None, rng: np.random.Generator) -> np.ndarray:
        """One item as RGBA, augmented: a flip, a blur to 28 px, a tilt, another manner of drawing."""
        if concept < self.emoji:
            rgba = self.images[art, concept]
            if self.groups[concept] in _FLIPPABLE and rng.random() < 0.4:
                rgba = rgba[:, ::-1]
            if colour is None:
                if rng.random() < 0.5:
                    rgba = _redrawn(rgba, rng)
            else:
                rgba = scenes.tint(self._grey(rgba, rng), colour)
        elif concept < self.emoji + 3:
            rgba = scenes.tint(items.shape(self.names[concept], rng), colour or "white")
            if rng.random() < 0.5:
                rgba[..., :3] = rgba[..., :3] * rng.uniform(0.6, 1.0)
        else:
            choice = rng.choice(np.flatnonzero(self.digits[1] == concept - self.emoji - 3))
            rgba = scenes.tint(self.digits[0][choice], colour or "white")
        if rng.random() < 0.3:
            small = Image.fromarray(np.ascontiguousarray(rgba)).resize((28, 28), Image.Resampling.BILINEAR)
            rgba = np.asarray(small)
        if rng.random() < 0.25:
            rgba = np.asarray(
                Image.fromarray(np.ascontiguousarray(rgba)).rotate(
                    rng.uniform(-20, 20), Image.Resampling.BILINEAR
                )
            )
        return np.ascontiguousarray(rgba)

    @staticmethod
    def _grey(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An emoji as intensities: its luminance, the inverse of it, or its silhouette. (48, 48) uint8."""
        luminance = rgba[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255
        kind = rng.random()
        if kind < 0.5:
            level = 0.25 + 0.75 * luminance
        elif kind < 0.75:
            level = 1.0 - 0.75 * luminance
        else:
            level = np.full_like(luminance, rng.uniform(0.4, 1.0))
        return (level * rgba[..., 3]).astype(np.uint8)

    def sample(self, rng: np.random.Generator, grid: int | None = None, tinted: bool | None = None) -> Scene:
        """A scene with its phrases and captions. Deterministic given rng."""
        if grid is None:
            grid = int(rng.choice([1, 2, 3, 4], p=[0.2, 0.33, 0.41, 0.06]))
        if tinted is None:
            tinted = bool(rng.random() < 0.4)
        cells = grid * grid
        concepts = np.full(cells, -1)
        filled = rng.random(cells) > (0.12 if grid > 1 else 0)
        if not filled.any():
            filled[rng.integers(cells)] = True
        repeat = grid > 1 and rng.random() < (0.35 if tinted else 0.08)
        stock = [self._concept(rng, tinted) for _ in range(2 if repeat else cells)]
        for cell in np.flatnonzero(filled):
            concepts[cell] = stock[rng.integers(len(stock))] if repeat else stock[cell]
        names = list(scenes.COLOURS)
        palette = [names[i] for i in rng.permutation(len(names))] if rng.random() < 0.5 else None
        colours: list[str | None] = [None] * cells
        for cell in np.flatnonzero(filled):
            if tinted:
                colours[cell] = (
                    palette[cell] if palette and cell < len(palette) else names[rng.integers(len(names))]
                )
            elif concepts[cell] >= self.emoji:
                colours[cell] = names[rng.integers(len(names))]
        arts = rng.integers(0, len(self.images), cells)
        for cell in np.flatnonzero(filled):
            if concepts[cell] < self.emoji:
                drawn_by = self.drawn_by[concepts[cell]]
                arts[cell] = drawn_by[arts[cell] % len(drawn_by)]
        drawn = [
            self._draw(int(concepts[c]), int(arts[c]), colours[c], rng) if filled[c] else None
            for c in range(cells)
        ]
        ground = (int(rng.integers(5, 40)),) * 3 if rng.random() < 0.25 else None
        image, masks = scenes.compose(drawn, grid, scenes.background(rng, ground), rng)
        thumbs = np.stack([_thumb(d) for d in drawn])
        masks = masks.reshape(cells, -1)
        scene = Scene(np.asarray(image), grid, concepts, arts, colours, masks, thumbs)
        self._say(scene, tinted, rng)
        self._caption(scene, rng)
        return scene

    def name(self, concept: int, rng: np.random.Generator) -> str:
        """A text for a concept: its name, a keyword, or its name in a template."""
        draw = rng.random()
        words = self.keywords[concept]
        if draw < 0.28 and words:
            return words[rng.integers(len(words))]
        if draw < 0.5:
            return NAME_TEMPLATES[rng.integers(len(NAME_TEMPLATES))].format(self.names[concept])
        return self.names[concept]

    def _say(self, scene: Scene, tinted: bool, rng: np.random.Generator) -> None:
        present = [int(c) for c in dict.fromkeys(scene.concepts[scene.concepts >= 0].tolist())]
        for concept in present:
            text = self.name(concept, rng)
            true = np.array([c in self.told[text] for c in scene.concepts.tolist()])
            self._add(scene, text, true, "name")
            cell = int(rng.choice(np.flatnonzero(scene.concepts == concept)))
            colour = scene.colours[cell]
            if colour and rng.random() < (0.7 if (scene.concepts == concept).sum() > 1 else 0.2):
                plain = self.names[concept]
                both = np.array([c in self.plain[plain] for c in scene.concepts.tolist()])
                both &= np.array([c == colour for c in scene.colours])
                lead = ("", "the ", "a ")[rng.integers(3)]
                self._add(scene, f"{lead}{colour} {plain}", both, "both")
        if rng.random() < 0.35:
            group = self.groups[present[rng.integers(len(present))]]
            if group in GROUP_WORDS:
                text = GROUP_WORDS[group][rng.integers(len(GROUP_WORDS[group]))]
                self._add(
                    scene, text, np.array([c in self.told[text] for c in scene.concepts.tolist()]), "group"
                )
        if tinted:
            shown = [c for c in dict.fromkeys(scene.colours) if c]
            for colour in [shown[i] for i in rng.permutation(len(shown))[:3]]:
                text = colour if rng.random() < 0.55 else COLOUR_TEMPLATES[rng.integers(5)].format(colour)
                self._add(scene, text, np.array([c == colour for c in scene.colours]), "colour")
        if scene.grid in self.places:
            for i in rng.permutation(len(self.places[scene.grid]))[:3]:
                place, mask = self.places[scene.grid][i]
                text = place if rng.random() < 0.6 else PLACE_TEMPLATES[rng.integers(5)].format(place)
                inside = np.flatnonzero((scene.masks & mask.reshape(-1)).any(1))
                one = int(inside[0]) if len(inside) == 1 and mask.sum() == 144 // scene.grid**2 else -1
                scene.phrases.append(Phrase(text, mask.reshape(-1), "place", one))

    @staticmethod
    def _add(scene: Scene, text: str, true: np.ndarray, kind: str) -> None:
        cells = np.flatnonzero(true)
        one = int(cells[0]) if len(cells) == 1 else -1
        scene.phrases.append(Phrase(text, np.asarray(scene.masks[cells].any(0)), kind, one))

    def _caption(self, scene: Scene, rng: np.random.Generator) -> None:
        """Up to three items with colour and place; the wrong caption exchanges two places, colours or
        names."""
        cells = np.flatnonzero(scene.concepts >= 0)
        if scene.grid == 1:
            concept, colour = int(scene.concepts[0]), scene.colours[0]
            text = self.name(concept, rng)
            scene.caption = f"a {colour} {self.names[concept]}" if colour and rng.random() < 0.5 else text
            return
        chosen = rng.permutation(cells)[: 2 if scene.grid < 4 else 1]
        parts = [
            [scene.colours[c] or "", self.names[scene.concepts[c]], self._place(scene.grid, int(c))]
            for c in chosen
        ]
        wrong = [list(p) for p in parts]
        which = (2, 0, 1)[rng.integers(3)]
        if len(parts) == 2 and parts[0][which] != parts[1][which]:
            wrong[0][which], wrong[1][which] = parts[1][which], parts[0][which]
        elif scene.grid < 4:
            wrong[0][2] = self._place(
                scene.grid, int((chosen[0] + 1 + rng.integers(scene.grid**2 - 1)) % scene.grid**2)
            )
        else:
            wrong[0][1] = self.names[rng.integers(len(self.names))]
        scene.caption, scene.wrong_caption = (
            " and ".join(_part(*p) for p in said) for said in (parts, wrong)
        )

    @staticmethod
    def _place(grid: int, cell: int) -> str:
        return scenes.PLACES[grid][cell][0] if grid in scenes.PLACES else ""


def _part(colour: str, name: str, place: str) -> str:
    text = f"{colour} {name}" if colour else name
    return f"the {text} in the {place}" if place else f"the {text}"


def _redrawn(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same drawing in another manner: brightness and saturation change, a dark outline may be drawn."""
    rgba = rgba.copy()
    body = rgba[..., :3].astype(np.float32)
    if rng.random() < 0.5:
        grey = body.mean(-1, keepdims=True)
        body = grey + rng.uniform(0.4, 1.5) * (body - grey)
    body = body * rng.uniform(0.75, 1.2) + rng.uniform(-20, 20)
    if rng.random() < 0.4:  # along the silhouette, inwards, 2 px
        alpha = Image.fromarray(np.ascontiguousarray(rgba[..., 3]))
        edge = np.asarray(alpha, np.float32) - np.asarray(alpha.filter(ImageFilter.MinFilter(5)))
        body *= 1 - 0.85 * edge[..., None] / 255
    rgba[..., :3] = body.clip(0, 255)
    return rgba


def _thumb(item: np.ndarray | None) -> np.ndarray:
    """10x10 grey intensities of an item (alpha times luminance), flattened, zero where there is none."""
    if item is None:
        return np.zeros(100, np.float32)
    small = np.asarray(Image.fromarray(item).resize((10, 10), Image.Resampling.BOX), np.float32) / 255
    return ((0.3 + 0.7 * small[..., :3].mean(-1)) * small[..., 3]).reshape(-1)
