"""Shorten: rows of the language model's sequence are dropped before its first block, and their positions stay
dropped.

The sequence (B, T, d) becomes (B, S, d): each sample's kept rows in their order, at the right, with their own
position ids, and padding before them where another sample keeps more. A cache then holds S entries, while
`generate` goes on counting T; so every later pass has its attention mask shortened as well. What is read of
the blocks is put back to where it stood (`restored`).
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.adapters.rows import Bias

CACHES = ("cache", "past_key_values")
_TOO_MUCH = ("cross_attention_states", "encoder_hidden_states")
_DEEP = "deepstack_visual_embeds"  # added to the visual rows of later blocks, a tensor of all of them a block


class Rows:
    """Which rows of a sequence are kept, and where they go.

    Args:
        keep: (B, T) bool; every sample keeps at least one row.
    """

    def __init__(self, keep: Tensor) -> None:
        self.keep, self.length = keep, keep.shape[1]
        count = keep.sum(1)
        self.short = int(count.max())
        self.padding = self.short - count  # (B,)
        # stable: what is dropped first, then what is kept, in its order; the last S of these
        order = keep.long().argsort(dim=1, stable=True)
        self.source = order[:, self.length - self.short :]  # (B, S): where each row comes from
        there = torch.arange(self.short, device=keep.device)
        self.real = there >= self.padding[:, None]  # (B, S): no padding
        self.target = (keep.long().cumsum(1) - 1 + self.padding[:, None]).clamp_min(
            0
        )  # (B, T): where it goes

    def spread(self, batch: int) -> "Rows":
        """The same for `batch` rows of beams or returned sequences, as many of each sample."""
        each = batch // len(self.keep)
        return self if each == 1 else Rows(self.keep.repeat_interleave(each, 0))

    def longer(self, length: int) -> "Rows":
        """The same with further rows behind, all of them kept."""
        more = self.keep.new_ones(len(self.keep), length - self.length)
        return self if length == self.length else Rows(torch.cat([self.keep, more], 1))

    def taken(self, tensor: Tensor, dim: int = 1) -> Tensor:
        """Of a tensor whose axis `dim` is the sequence and whose axis before it is the batch (of one, or of
        all), the rows kept."""
        batch = len(self.source)
        shape = list(tensor.shape)
        if shape[dim - 1] != batch:
            shape[dim - 1] = batch
            tensor = tensor.expand(shape)
        index = self.source.reshape(*([1] * (dim - 1)), batch, -1, *([1] * (tensor.dim() - dim - 1)))
        shape[dim] = self.short
        return tensor.gather(dim, index.to(tensor.device).expand(shape))

    def restored(self, tensor: Tensor) -> Tensor:
        """(B, S, ...) as (B, T, ...), zeros where rows were dropped."""
        rows = self.spread(len(tensor))
        index = rows.target.reshape(*rows.target.shape, *([1] * (tensor.dim() - 2)))
        full = tensor.gather(1, index.expand(*rows.target.shape, *tensor.shape[2:]))
        there = rows.keep.reshape(*rows.keep.shape, *([1] * (tensor.dim() - 2)))
        return full.masked_fill(~there, 0)

    def bias(self, bias: Bias) -> Bias:
        """What steers rows, said of the short sequence."""
        if bias.place is None or bias.last is None:
            return bias
        rows = self.spread(len(bias.added))
        there = rows.keep.gather(1, bias.place)
        up_to = torch.arange(self.length, device=self.keep.device) <= bias.last[:, None]
        last = (rows.keep & up_to).sum(1) - 1 + rows.padding
        place = rows.target.gather(1, bias.place).masked_fill(~there, 0)
        return Bias(bias.added.masked_fill(~there, 0.0), place, last, self.short)


class Shortening:
    """While it is: the language model's passes are shortened.

    Args:
        model: the language model's stack, whose forward takes `inputs_embeds` and `position_ids`.
        choose: given the keyword arguments of its first pass, which rows are kept, (B, T) bool.
        name: of the whole model, for errors.
        begun: told of the rows of a pass that shows the whole prompt.

    Raises:
        ValueError: where the stack takes no such arguments; and in a pass that is given others, which cannot
            be shortened.
    """

    def __init__(
        self,
        model: Any,
        choose: Callable[[Mapping[str, Any]], Tensor],
        name: str,
        begun: Callable[[Rows], None],
    ) -> None:
        takes = inspect.signature(model.forward).parameters
        lacking = [n for n in ("inputs_embeds", "position_ids", "attention_mask") if n not in takes]
        if lacking:
            raise ValueError(
                f"keep_tokens does not work for {name}: its language model takes no "
                + " and no ".join(lacking)
            )
        self._choose, self._name, self._begun = choose, name, begun
        self._busy = False
        self.rows: Rows | None = None
        self._last: Tensor | None = None  # position ids of the last row, (..., B, 1)
        self._since = 0  # rows behind the prompt so far
        self._front: Tensor | None = None  # which of the short prompt's rows are seen by later ones, (B, S)
        self._window = float(getattr(model.config, "sliding_window", None) or "inf")
        self._hook = model.register_forward_pre_hook(self._shorten, with_kwargs=True)

    def remove(self) -> None:
        self._hook.remove()

    def _shorten(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._busy:  # the pass that says what is relevant
            return None
        shown = kwargs.get("inputs_embeds")
        if args or not isinstance(shown, Tensor):
            raise ValueError(f"keep_tokens does not work for {self._name}: no inputs_embeds are given")
        self._check(kwargs)
        if (
            self.rows is None or shown.shape[1] >= self.rows.length
        ):  # the prompt, once more where none is kept
            return args, self._whole(kwargs, shown)
        return args, self._further(kwargs, shown)

    def _check(self, kwargs: Mapping[str, Any]) -> None:
        unfit = [n for n in _TOO_MUCH if kwargs.get(n) is not None]
        if unfit:
            raise ValueError(f"keep_tokens does not work for {self._name}: it is given {', '.join(unfit)}")

    def _whole(self, kwargs: dict[str, Any], shown: Tensor) -> dict[str, Any]:
        batch, length = shown.shape[:2]
        mask, position = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if position is None:
            position = torch.arange(length, device=shown.device).expand(batch, length)
            if isinstance(mask, Tensor) and mask.dim() == 2:
                position = (mask.long().cumsum(1) - 1).clamp_min(0)
        if self.rows is None:
            self._busy = True
            try:
                self.rows = Rows(self._choose({**kwargs, "position_ids": position}))
            finally:
                self._busy = False
        rows = self.rows.spread(batch).longer(length)
        self._begun(rows)
        self._last, self._since = position[..., -1:], length - self.rows.length
        short = dict(kwargs)
        for key, value in kwargs.items():
            whole = (
                isinstance(value, Tensor) and value.dim() >= 2 and tuple(value.shape[:2]) == (batch, length)
            )
            if whole and key not in ("position_ids", "attention_mask"):
                short[key] = rows.taken(value)
        marked = kwargs.get("visual_pos_masks")
        if kwargs.get(_DEEP) is not None:
            if not isinstance(marked, Tensor) or tuple(marked.shape) != (batch, length):
                raise ValueError(f"keep_tokens does not work for {self._name}: its {_DEEP} stand nowhere")
            short[_DEEP] = [deep[rows.keep[marked.bool()]] for deep in kwargs[_DEEP]]
        if isinstance(marked, Tensor):
            short["visual_pos_masks"] = rows.taken(marked) & rows.real
        short["position_ids"] = rows.taken(position, position.dim() - 1)
        short["attention_mask"] = self._masks(kwargs, batch, True)
        if isinstance(kwargs.get("cache_position"), Tensor):
            short["cache_position"] = kwargs["cache_position"][: rows.short]
        return short

    def _further(self, kwargs: dict[str, Any], shown: Tensor) -> dict[str, Any]:
        assert self.rows is not None
        assert self._last is not None
        batch, more = shown.shape[:2]
        short = dict(kwargs)
        # some models count them from the cache, which is short
        position = self._last + torch.arange(1, more + 1, device=self._last.device)
        short["position_ids"] = position
        self._last = position[..., -1:]
        self._since += more
        short["attention_mask"] = self._masks(kwargs, batch, False)
        if isinstance(kwargs.get("cache_position"), Tensor):
            short["cache_position"] = kwargs["cache_position"] - self.rows.length + self.rows.short
        return short

    def _masks(self, kwargs: Mapping[str, Any], batch: int, whole: bool) -> Any:
        """The mask of a pass, or those of every kind of block, shortened."""
        assert self.rows is not None
        rows = self.rows.spread(batch)
        mask = kwargs.get("attention_mask")
        # a static cache hands over all the keys that it has room for
        static = any(getattr(kwargs.get(name), "is_compileable", False) for name in CACHES)
        if not isinstance(mask, dict):
            return self._mask(mask, rows, whole, static)
        if not whole and rows.short + self._since > self._window:
            raise ValueError(
                f"keep_tokens does not work for {self._name} beyond its sliding window of {self._window}"
            )
        queries = kwargs["inputs_embeds"].shape[1]
        if whole or bool(rows.padding.any()):  # blocks that are given masks by kind take none that is (B, T)
            mask = {k: self._even(queries, rows.length) if m is None else m for k, m in mask.items()}
        return {kind: self._mask(one, rows, whole, static) for kind, one in mask.items()}

    def _even(self, queries: int, length: int) -> Tensor:
        """A mask by which every row sees all up to itself, (1, 1, Q, T + A)."""
        assert self.rows is not None
        keys = length + self._since
        return torch.ones(queries, keys, dtype=torch.bool, device=self.rows.real.device).tril(keys - queries)[
            None, None
        ]

    def _mask(self, mask: Any, rows: Rows, whole: bool, static: bool) -> Tensor | None:
        """(B, T + A) -> (B, S + A), or (B, 1, Q, T + A) likewise; none where there was none (`generate` lets
        one of ones go) and nothing is padded."""
        if mask is None:
            # positions with gaps and no mask would be taken for several sequences in one row
            if not whole and not bool(rows.padding.any()):
                return None
            mask = torch.ones(len(rows.real), rows.length + self._since, device=rows.real.device).long()
        if not isinstance(mask, Tensor) or mask.dim() not in (2, 4):
            raise ValueError(
                f"keep_tokens does not work for {self._name}: its mask is no (B, T) or (B, 1, Q, T)"
            )
        if mask.dim() == 2:
            front = rows.taken(mask[:, : rows.length]).masked_fill(~rows.real, 0)
            return torch.cat([front, mask[:, rows.length :]], 1)
        if whole:
            short = first_mask(mask, rows.longer(mask.shape[2]), static)
            self._front = seen(short[:, 0, -1, : rows.short])
            return short
        # such a mask was made for a cache of T rows, and it has S
        assert self._front is not None
        width = mask.shape[3] if static else rows.short + self._since
        return later_mask(mask, self._front.expand(len(rows.real), -1), width, rows.short + self._since)


def seen(mask: Tensor) -> Tensor:
    """Which keys a boolean or additive mask shows."""
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def first_mask(mask: Tensor, rows: Rows, static: bool) -> Tensor:
    """A prompt's mask (B, 1, T, T + A), boolean or additive, as (B, 1, S, S + A); with a static cache as wide
    as it was."""
    boolean = mask.dtype == torch.bool
    hidden: Any = False if boolean else torch.finfo(mask.dtype).min
    mask = mask.expand(len(rows.real), *mask.shape[1:])
    mask = rows.taken(mask.transpose(0, 1), 2).transpose(0, 1)
    front = rows.taken(mask[..., : rows.length].permute(1, 2, 0, 3), 3).permute(2, 0, 1, 3)
    front = front.masked_fill(~rows.real[:, None, None], hidden)
    # padding sees itself, so that no row of attention is empty
    own = torch.eye(rows.short, dtype=torch.bool, device=mask.device) & ~rows.real[:, None]  # (B, S, S)
    front = front.masked_fill(own[:, None], True if boolean else 0.0)
    parts = [front, mask[..., rows.length :]]
    if static:
        parts.append(mask.new_full((*front.shape[:3], rows.length - rows.short), hidden))
    return torch.cat(parts, 3)


def later_mask(mask: Tensor, front: Tensor, width: int, end: int) -> Tensor:
    """The mask of the last Q of `end` rows, (B, 1, Q, width) of the kind of `mask`: they see what is shown of
    the prompt, `front` (B, S), and all rows behind it up to themselves."""
    batch, queries = len(front), mask.shape[2]
    place = torch.arange(width, device=front.device)
    row = torch.arange(end - queries, end, device=front.device)
    shown = (place <= row[:, None]).expand(batch, queries, width).clone()
    shown[..., : front.shape[1]] &= front[:, None]
    if mask.dtype == torch.bool:
        return shown[:, None]
    return torch.zeros(shown.shape, dtype=mask.dtype, device=mask.device).masked_fill(
        ~shown, torch.finfo(mask.dtype).min
    )[:, None]
