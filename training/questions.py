"""Questions about scenes, and several questions on one image packed so that none sees another.

A packed row is prefix (with the image) + turn 1 + turn 2 ...; every turn attends to the prefix and to itself
only and its positions go on where the prefix ends, so its outputs are those of a row of its own.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from arr_coc.training import items, scenes

PROMPT = "USER: <image>\n{question} ASSISTANT:"
CHAT = (  # PROMPT and its answer as turns of a conversation
    "{% for message in messages %}{% if message['role'] == 'user' %}USER: {% else %} ASSISTANT: {% endif %}"
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{% if message['role'] != 'user' %}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = tuple(scenes.COLOURS)
KINDS = ("place", "colour", "where", "by colour", "yes or no", "count", "beside")


@dataclass(frozen=True)
class Turn:
    """A question, its answer, what kind it is, and, where a scene has it, which cells tell.

    `cells` are read for the answer; `first` has to be found before them ("beside the cat": the cat's).
    """

    question: str
    answer: str
    kind: str
    grid: int = 1
    cells: tuple[int, ...] = ()
    first: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scene:
    """A picture, questions about it, and the name of what is in each cell (None: blank), row by row."""

    image: Image.Image
    turns: list[Turn]
    grid: int
    names: tuple[str | None, ...]


@dataclass(frozen=True)
class _Item:
    name: str
    colour: str | None  # None: an emoji in its own colours
    picture: np.ndarray  # (h, w, 4) uint8


@cache
def emoji_names(held_out: bool) -> tuple[tuple[str, int], ...]:
    """Emoji whose name is one word and no garment's, with their rows: seen or held-out concepts."""
    art = items.emoji("noto")
    taken = {*items.SHAPES, *items.DIGITS, *COLOURS, *items.FASHION_CLASSES}
    return tuple(
        (name, row)
        for row, name in enumerate(art.names)
        if name.isalpha() and name.lower() == name and name not in taken and art.held_out[row] == held_out
    )


def plural(name: str) -> str:
    """shape -> shapes, dress -> dresses; a name that already ends in one s stays."""
    if name.endswith("s") and not name.endswith("ss"):
        return name
    return f"{name}es" if name.endswith(("ss", "x", "ch", "sh")) else f"{name}s"


class Composer:
    """Draws scenes with questions; deterministic from the generator.

    Args:
        rng: draws everything. held_out: emoji of concepts that training never shows.
        only_emoji: no shapes and digits.
    """

    def __init__(self, rng: np.random.Generator, held_out: bool = False, only_emoji: bool = False) -> None:
        self.rng, self.only_emoji = rng, only_emoji
        self.emoji = emoji_names(held_out)
        self.arts = [items.emoji("noto").images, items.emoji("twemoji").images]

    def _item(self, name: str | None, tinted: bool) -> _Item:
        """A shape, digit or emoji; of this name where one is given."""
        rng = self.rng
        kind = 1.0 if self.only_emoji else rng.random()
        if name is None:
            if kind < 0.3:
                name = items.SHAPES[rng.integers(3)]
            elif kind < 0.5:
                name = items.DIGITS[rng.integers(10)]
            else:
                name = self.emoji[rng.integers(len(self.emoji))][0]
        colour = COLOURS[rng.integers(len(COLOURS))]
        if name in items.SHAPES:
            return _Item(name, colour, scenes.tint(items.shape(name, rng), colour))
        if name in items.DIGITS:
            pictures, labels = items.digits()
            rows = np.flatnonzero(labels == items.DIGITS.index(name))
            return _Item(name, colour, scenes.tint(pictures[rng.choice(rows)], colour))
        art = self.arts[rng.integers(2)][dict(self.emoji)[name]]
        if not tinted:
            return _Item(name, None, art)
        grey = (art[..., :3].mean(2) * 0.75 + 64) * (art[..., 3] / 255)
        return _Item(name, colour, scenes.tint(grey.astype(np.uint8), colour))

    def draw(self, grid: int) -> Scene:
        """A scene of grid x grid cells (some blank, some of one name) and one question of every kind that
        has one answer."""
        rng = self.rng
        tinted = bool(rng.random() < 0.6)
        cells: list[_Item | None] = []
        for _ in range(grid * grid):
            there = [c for c in cells if c is not None]
            again = there[rng.integers(len(there))].name if there and rng.random() < 0.15 else None
            blank = grid > 1 and rng.random() < 0.12
            cells.append(None if blank else self._item(again, tinted))
        if not any(cells):
            cells[0] = self._item(None, tinted)
        pictures = [None if c is None else c.picture for c in cells]
        image, _ = scenes.compose(pictures, grid, scenes.background(rng), rng)
        names = tuple(None if c is None else c.name for c in cells)
        return Scene(image, self._ask(cells, grid, tinted), grid, names)

    def _ask(self, cells: list[_Item | None], grid: int, tinted: bool) -> list[Turn]:
        rng = self.rng
        turns: list[Turn] = []
        there = [(i, c) for i, c in enumerate(cells) if c is not None]
        order = [there[i] for i in rng.permutation(len(there))]
        names = [c.name for _, c in there]
        colours = [c.colour for _, c in there]
        pairs = [(c.name, c.colour) for _, c in there]
        alone = [(i, c) for i, c in order if names.count(c.name) == 1]

        def ask(question: str, answer: str, kind: str, *cells: int, first: tuple[int, ...] = ()) -> None:
            turns.append(Turn(question, answer, kind, grid, cells, first or cells))

        if grid > 1:
            for i, c in order[:2]:
                place = scenes.PLACES[grid][i]
                said = place[0] if rng.random() < 0.7 else place[rng.integers(len(place))]
                ask(f"what is in the {said}?", c.name, "place", i)
            if alone:
                i, c = alone[-1]
                ask(f"where is the {c.name}?", scenes.PLACES[grid][i][0], "where", i)
            i, c = order[0]
            if c.colour and pairs.count((c.name, c.colour)) == 1:
                ask(f"where is the {c.colour} {c.name}?", scenes.PLACES[grid][i][0], "where", i)
        else:
            ask("what is this?", there[0][1].name, "place", 0)
        if coloured := [(i, c) for i, c in alone if c.colour]:
            i, c = coloured[0]
            ask(f"what colour is the {c.name}?", str(c.colour), "colour", i)
        once = [(i, c) for i, c in order if colours.count(c.colour) == 1]
        if tinted and once:
            i, c = once[0]
            ask(f"what is the {c.colour} item?", c.name, "by colour", i)
        turns.append(self._yes_or_no(order, grid, tinted))
        if grid > 1:
            asked = names[rng.integers(len(names))]
            if rng.random() < 0.3:
                ask("how many items are there?", COUNTS[len(names)], "count", *(i for i, _ in there))
            else:
                them = [i for i, c in there if c.name == asked]
                ask(f"how many {plural(asked)} are there?", COUNTS[len(them)], "count", *them)
        if grid == 2:
            for i, c in alone:
                if (other := cells[i ^ 1]) is not None:
                    ask(f"which item is beside the {c.name}?", other.name, "beside", i ^ 1, first=(i,))
                    break
        return turns

    def _yes_or_no(self, order: list[tuple[int, _Item]], grid: int, tinted: bool) -> Turn:
        """Half yes; where colours are asked, no is a pair whose colour and name are both there, if one is."""
        rng, (_, c) = self.rng, order[0]
        pairs = [(k.name, k.colour) for _, k in order]
        yes = rng.random() < 0.5
        if tinted and rng.random() < 0.6:
            colour = c.colour
            if not yes:
                other = order[-1][1].colour
                free = [k for k in COLOURS if (c.name, k) not in pairs]
                colour = other if other in free else free[rng.integers(len(free))]
            asked = f"{colour} {c.name}"
            cells = tuple(i for i, k in order if (k.name, k.colour) == (c.name, colour))
        else:
            asked = c.name if yes else self._item(None, tinted).name
            cells = tuple(i for i, k in order if k.name == asked)
        return Turn(f"is there a {asked}?", "yes" if cells else "no", "yes or no", grid, cells, cells)


def easy_vqa(split: str) -> tuple[list[Image.Image], list[list[Turn]]]:
    """easy-VQA's images at 96 px and the questions on each. split: "train" (4,000) or "test" (1,000)."""
    asked = easy_vqa_turns(split)
    return [easy_vqa_picture(split, i) for i in asked], list(asked.values())


@cache
def easy_vqa_turns(split: str) -> dict[int, list[Turn]]:
    """The questions on each of easy-VQA's images, by its number.

    Raises:
        ValueError: for an unknown split. ImportError: the package easy-vqa is not installed.
    """
    turns: dict[int, list[Turn]] = {i: [] for i in sorted(_easy_vqa(split, "image_paths"))}
    for question, answer, image in zip(*_easy_vqa(split, "questions"), strict=True):
        open_kind = "shape" if answer in items.SHAPES else "colour"
        kind = "yes or no" if answer in ("yes", "no") else open_kind
        turns[image].append(Turn(question, answer, kind))
    return turns


def easy_vqa_picture(split: str, number: int) -> Image.Image:
    """One of easy-VQA's images at 96 px."""
    with Image.open(Path(_easy_vqa(split, "image_paths")[number])) as picture:
        return picture.convert("RGB").resize((96, 96), Image.Resampling.BILINEAR)


@cache
def _easy_vqa(split: str, what: str) -> Any:
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r}; there are train and test")
    try:
        import easy_vqa as package  # a dev dependency
    except ImportError as error:
        raise ImportError("easy-VQA comes with the package easy-vqa: pip install easy-vqa") from error
    return getattr(package, f"get_{split}_{what}")()


def _spell(tokenizer: Any, token: int, apart: bool) -> list[int]:
    """A whole word's token as the tokens of its characters; any other token as it is."""
    word = tokenizer.convert_ids_to_tokens(token) if apart else ""
    if not word.isalpha() or len(word) < 2:
        return [token]
    return tokenizer.convert_tokens_to_ids([word[0], *("##" + c for c in word[1:])])


def pack(
    tokenizer: Any,
    rows: list[list[Turn]],
    image_tokens: int = 144,
    spelled: float = 0.0,
    rng: np.random.Generator | None = None,
) -> dict[str, Tensor]:
    """Rows of turns on one image each -> one padded batch in which no turn sees another.

    Args:
        tokenizer: with `<image>` as one token; eos ends an answer.
        rows: B lists of turns.
        spelled: share of the questions' words that are given character by character, as words that the
            vocabulary lacks will be; drawn from `rng`.
    Returns:
        input_ids, position_ids, labels (B, T) with -100 where nothing is taught, turn (B, T): 0 prefix,
        k the k-th turn, -1 padding; attention_mask (B, 1, T, T) additive float.
    """
    before, after = PROMPT.split("\n")
    image = tokenizer.convert_tokens_to_ids("<image>")
    head: list[int] = []
    for i in tokenizer(before)["input_ids"]:
        head += [image] * image_tokens if i == image else [i]
    made = []
    for turns in rows:
        ids, positions = list(head), list(range(len(head)))
        labels, turn = [-100] * len(head), [0] * len(head)
        for k, t in enumerate(turns, 1):
            asked = after.format(question=t.question)
            question = tokenizer(asked)["input_ids"]
            if rng is not None and spelled:
                question = [p for i in question for p in _spell(tokenizer, i, rng.random() < spelled)]
            answer = [*tokenizer(t.answer)["input_ids"], tokenizer.eos_token_id]
            n = len(question) + len(answer)
            ids += question + answer
            labels += [-100] * len(question) + answer
            positions += range(len(head), len(head) + n)
            turn += [k] * n
        made.append((ids, positions, labels, turn))
    length = max(len(m[0]) for m in made)
    fills = (tokenizer.pad_token_id, 0, -100, -1)
    input_ids, position_ids, targets, turns_of = (
        torch.tensor([m[j] + [fill] * (length - len(m[j])) for m in made]) for j, fill in enumerate(fills)
    )
    query, key = turns_of[:, :, None], turns_of[:, None, :]  # (B, T, 1), (B, 1, T)
    open_ = ((query == key) | ((key == 0) & (query > 0))) & torch.ones(length, length).tril().bool()
    mask = torch.zeros(open_.shape).masked_fill(~open_, -1e4)[:, None]  # (B, 1, T, T)
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "labels": targets,
        "turn": turns_of,
        "attention_mask": mask,
    }
