"""Where a generative model's visual tokens are: in the language model's own sequence, or in what its decoder
attends to beside that."""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.adapters.capture import Capture
from arr_coc.adapters.families import Family
from arr_coc.adapters.grid import grid_of, grids_of
from arr_coc.adapters.question_words import QuestionWords
from arr_coc.adapters.shortening import Rows
from arr_coc.adapters.structure import Tower, attention_in, is_cross

_STATES = ("encoder_hidden_states", "key_value_states", "cross_attention_states")
_TOKEN_IDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


@dataclass(frozen=True)
class Seen:
    """The visual tokens of one pass.

    Args:
        tokens: per site (B, N, d).
        place: (B, N), positions among the keys that the answer's attention row runs over.
        mask: (B, N) bool, which of them exist.
        words: (B, d) mean hidden state of the text beside them, or of the tokens where there is no text.
        length: of the sequence that they stand in.
        grid: rows and columns of the tokens, where they stand in one.
        grids: those of each sample's, (B, 2), where some do not exist; see `Percept.grids`.
        match: (B, N), how well each of them matches the question's words (see `question_words`); None where
            there are no such words, or no space that both are in.
        made: see `Percept.made`.
    """

    tokens: tuple[Tensor, ...]
    place: Tensor
    mask: Tensor
    words: Tensor
    length: int
    grid: tuple[int, int] | None = None
    grids: Tensor | None = None
    match: Tensor | None = None
    made: dict[Any, Any] = field(default_factory=dict)


def token_ids_of(config: Any, family: Family) -> list[int]:
    """The ids that stand for visual tokens in input_ids: named by the config, or by the family's table."""
    names = family.token_ids or _TOKEN_IDS
    found = {getattr(config, name, None) for name in names}
    found.add((getattr(config, "vocabulary_map", None) or {}).get("<image>"))  # images as words of a codebook
    return sorted(int(i) for i in found if i is not None)


def places(where: Tensor) -> tuple[Tensor, Tensor]:
    """Of (B, T) bool, the positions that are set, left-aligned, (B, N), and which of the N there are."""
    most = int(where.sum(1).max())
    place = (~where).long().argsort(dim=1, stable=True)[:, :most]  # chosen ones first, in their order
    return place, where.gather(1, place)


def gather(hidden: Tensor, where: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of (B, T, d) where (B, T) says so, left-aligned: (B, N, d), and `places`."""
    place, mask = places(where)
    return hidden.gather(1, place.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])), place, mask


def mean_where(hidden: Tensor, where: Tensor) -> Tensor:
    """Mean over the chosen rows, (B, d), in float32; zeros where none is chosen."""
    chosen = hidden.float() * where.unsqueeze(-1)
    return chosen.sum(1) / where.sum(1, keepdim=True).clamp_min(1)


def grown(where: Tensor, length: int, family: Family) -> Tensor:
    """A mask over input_ids as one over a sequence that the model has made longer, for its images alone."""
    more = length - where.shape[1]
    if more <= 0:
        return where[:, :length]
    ones = where.new_ones(len(where), more)
    return torch.cat([where, ones] if family.appended else [ones, where], 1)


def among(seen: Seen, rows: Rows) -> Seen:
    """The same tokens, of which only the kept rows' exist, at their places in the short sequence."""
    rows = rows.spread(len(seen.place))
    there = seen.mask & rows.keep.gather(1, seen.place)
    place = rows.target.gather(1, seen.place).masked_fill(~there, 0)
    return replace(seen, mask=there, place=place, length=rows.short)


def standing(seen: Seen, there: Tensor, model: Any, asked: Mapping[str, Any]) -> Seen:
    """The same tokens, with the grid that they stand in, or each sample its own.

    Args:
        there: (B, N) bool, which tokens there were before any were dropped.
    """
    seen = replace(seen, grid=None, grids=None)
    shows = there.any(1)  # of the others nothing is ever asked
    if bool(seen.mask[shows].all()):
        seen = replace(seen, grid=grid_of(model, asked, *seen.mask[shows].shape))
    some = None if seen.grid is not None else grids_of(model, asked, seen.mask[shows], there[shows])
    if some is None:
        return seen
    grids = some.new_zeros(len(shows), 2)
    grids[shows] = some
    return replace(seen, grids=grids)


class InSequence:
    """Visual tokens stand in the language model's sequence, where input_ids has their placeholder (or where
    an input says so, or in front of the words).

    Args:
        model: the vision-language model.
        family: its table entry.
        tower: the language model's blocks.
        sites: numbers of the blocks that are read.
        processor: of the model, whose tokenizer tells words; or None.
    """

    def __init__(
        self, model: Any, family: Family, tower: Tower, sites: tuple[int, ...], processor: Any = None
    ) -> None:
        self.ids = token_ids_of(model.config, family)
        self.family, self.sites = family, sites
        self.stack: Any = tower.module
        self.words = QuestionWords(model.get_input_embeddings, processor)
        self.widths = [tower.width] * len(sites)
        if not self.ids and not family.marker and not family.in_front:
            raise TypeError(
                f"{type(model).__name__}: its config names no image token (none of "
                f"{', '.join(_TOKEN_IDS)} is set), so its visual tokens cannot be told from words"
            )

    def __str__(self) -> str:
        if self.family.marker:
            return f"where {self.family.marker} is set"
        if self.family.in_front:
            return "in front of the words"
        return "input_ids == " + " or ".join(map(str, self.ids))

    @property
    def own(self) -> str:
        """What the model's own score of its tokens is, for `inspect`."""
        if self.words.tokenizer is None:
            return "none: no processor says which words a question has; attention alone"
        return "match of visual tokens with the question's words of content, as both are given to the blocks"

    def hook(self, capture: Capture) -> None:
        """What the language model is given is heard too."""
        keep = functools.partial(self._keep, capture)
        capture.add_hook(self.stack.register_forward_pre_hook(keep, with_kwargs=True))

    def _keep(self, capture: Capture, module: nn.Module, args: Any, kwargs: Any) -> None:
        if capture.listening and capture.embedded is None:  # `keep_tokens` runs the first blocks once more
            capture.embedded = kwargs.get("inputs_embeds")

    def where(self, asked: Mapping[str, Any], length: int) -> Tensor | None:
        """Which positions of the sequence are visual, (B, length) bool; None where it cannot be known."""
        marker = asked.get(self.family.marker) if self.family.marker else None
        ids = asked.get("input_ids")
        if marker is not None:
            found = marker.bool()
        elif isinstance(ids, Tensor):
            found = torch.isin(ids, torch.tensor(self.ids, device=ids.device, dtype=ids.dtype))
        elif self.ids and isinstance(asked.get("inputs_embeds"), Tensor):  # as transformers finds them there
            words = asked["inputs_embeds"]
            marks = self.words.embeddings()(torch.tensor(self.ids, device=words.device))
            found = (words.unsqueeze(2) == marks).all(-1).any(2)
        else:
            return None
        return grown(found, length, self.family) if self.family.in_front else found

    def missing(self, asked: Mapping[str, Any]) -> list[int]:
        """The samples that show nothing."""
        if self.family.in_front:
            return []
        found = self.where(asked, asked["input_ids"].shape[1])
        return [] if found is None else (~found.any(1)).nonzero().flatten().tolist()

    def read(
        self, capture: Capture, asked: Mapping[str, Any], hidden: Tensor, text: Tensor | None
    ) -> Seen | None:
        """The visual tokens of a pass that shows images; None if it has none.

        Args:
            hidden: of the first site, (B, T, d).
            text: which of the T positions may count as the question, (B, T) bool, or None for all.
        """
        where = self.where(asked, hidden.shape[1])
        if where is None or where.shape != hidden.shape[:2] or not where.any():
            return None
        rows = [gather(capture.tokens[site], where) for site in self.sites]
        words = ~where if text is None else ~where & text
        return Seen(
            tuple(r[0] for r in rows), rows[0][1], rows[0][2], mean_where(hidden, words), hidden.shape[1]
        )

    def matched(self, seen: Seen, capture: Capture, asked: Mapping[str, Any], text: Tensor | None) -> Seen:
        """The same with how well each token matches the question's words; `text` as in `read`."""
        shown, ids = capture.embedded, asked.get("input_ids")
        fits = isinstance(ids, Tensor) and ids.shape == (len(seen.place), seen.length)
        if shown is None or not fits or shown.shape[1] != seen.length:
            return seen
        assert isinstance(ids, Tensor)
        visual = torch.zeros_like(ids, dtype=torch.bool).scatter(1, seen.place, seen.mask)
        words = self.words.content(ids) & ~visual
        words = words if text is None else words & text
        # beams of one sample are given alike
        shown = shown.repeat_interleave(len(ids) // len(shown), 0)
        tokens = shown.gather(1, seen.place.unsqueeze(2).expand(-1, -1, shown.shape[2]))
        grid = seen.grids if seen.grid is None else seen.grid
        return replace(seen, match=self.words.evidence(ids, words, tokens, seen.mask, grid))


class Attended:
    """Visual tokens are what the decoder's cross-attention runs over: an encoder's output, or a vision
    tower's.

    Args:
        model: the vision-language model.
        family: its table entry.
        tower: the decoder's blocks.
        crossing: the cross-attention modules, by path.
    """

    def __init__(
        self, model: Any, family: Family, tower: Tower, crossing: list[tuple[str, nn.Module]]
    ) -> None:
        self.ids, self.family = token_ids_of(model.config, family), family
        self.path, self.module = crossing[0]
        keys = [
            m
            for n, m in self.module.named_modules()
            if isinstance(m, nn.Linear) and n.split(".")[-1][0] == "k"
        ]
        if not keys:
            raise TypeError(
                f"{type(model).__name__}: {self.path} has no key projection, so its width is unknown"
            )
        self.widths = [keys[0].in_features]
        forward = inspect.signature(model.forward).parameters
        beside = "input_ids" in forward and "decoder_input_ids" in forward
        self.reads_text = beside and bool(self.ids or family.appended)
        self.states: Tensor | None = None
        self.own = "none: there is no space that words and visual tokens share; attention alone"

    def __str__(self) -> str:
        if self.reads_text:
            ids = "input_ids == " + " or ".join(map(str, self.ids))
            return "the encoder's output where " + (ids if self.ids else "it goes on behind the words")
        return f"all that {self.path} attends to"

    def hook(self, capture: Capture) -> None:
        keep = functools.partial(self._keep, capture, inspect.signature(self.module.forward))
        capture.add_hook(self.module.register_forward_pre_hook(keep, with_kwargs=True))

    def _keep(
        self, capture: Capture, signature: inspect.Signature, module: nn.Module, args: Any, kwargs: Any
    ) -> None:
        if capture.listening:
            bound = signature.bind_partial(*args, **kwargs).arguments
            bound = {**bound, **bound.get("kwargs", {})}
            self.states = next((bound[n] for n in _STATES if bound.get(n) is not None), self.states)

    def missing(self, asked: Mapping[str, Any]) -> list[int]:
        if not (self.reads_text and self.ids):
            return []
        ids = asked["input_ids"]
        shown = torch.isin(ids, torch.tensor(self.ids, dtype=ids.dtype, device=ids.device))
        return (~shown.any(1)).nonzero().flatten().tolist()

    def read(
        self, capture: Capture, asked: Mapping[str, Any], hidden: Tensor, text: Tensor | None
    ) -> Seen | None:
        """What the decoder attended to in this pass; `hidden` and `text` are the decoder's."""
        states, self.states = self.states, None
        if states is None:
            return None
        if not self.reads_text and len(states) > len(hidden):  # a row per tile: a sample looks at all of its
            states = states.reshape(len(hidden), -1, states.shape[-1])
        everything = torch.ones(states.shape[:2], dtype=torch.bool, device=states.device)
        ids = asked.get("input_ids")
        if not self.reads_text:
            tiles = asked.get("cross_attention_mask")  # (B, T, pictures, tiles), of those that are there
            if isinstance(tiles, Tensor) and tiles.dim() == 4:
                there = tiles.bool().any(1).flatten(1)
                if len(there) == len(states) and there.any() and states.shape[1] % there.shape[1] == 0:
                    everything = there.repeat_interleave(states.shape[1] // there.shape[1], 1)
            words = mean_where(
                hidden, torch.ones_like(hidden[..., 0], dtype=torch.bool) if text is None else text
            )
            if words.shape[1] != self.widths[0] or "decoder_input_ids" in asked:
                words = mean_where(states, everything)
            if bool(everything.all()):
                place = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
                return Seen((states,), place, everything, words, states.shape[1])
            tokens, place, exist = gather(states, everything)
            return Seen((tokens,), place, exist, words, states.shape[1])
        assert isinstance(ids, Tensor)
        where = torch.isin(ids, torch.tensor(self.ids, dtype=ids.dtype, device=ids.device))
        where = grown(where, states.shape[1], self.family)
        mask = asked.get("attention_mask")
        there = everything if mask is None else ~grown(~mask.bool(), states.shape[1], self.family)
        tokens, place, exist = gather(states, where)
        return Seen((tokens,), place, exist, mean_where(states, ~where & there), states.shape[1])

    def matched(self, seen: Seen, capture: Capture, asked: Mapping[str, Any], text: Tensor | None) -> Seen:
        """The same: no space is known that words and visual tokens are both in."""
        return seen


def crossing_of(model: Any, tower: Tower) -> list[tuple[str, nn.Module]]:
    """Path and module of every cross-attention of a decoder; empty where the images stand in its sequence."""
    found = [(p, m) for p, m in tower.module.named_modules() if is_cross(p, m) and hasattr(m, "forward")]
    found = [(p, m) for p, m in found if any(isinstance(c, nn.Linear) for c in m.children())]
    root = f"{tower.path}." if tower.path else ""
    tapped = {id(m) for _, m in attention_in(tower.module)}
    found = [(p, m) for p, m in found if _takes_states(m)]
    best = [(p, m) for p, m in found if id(m) in tapped] or found
    return [(root + p, m) for p, m in best]


def _takes_states(module: Any) -> bool:
    return any(name in inspect.signature(module.forward).parameters for name in _STATES)
