"""Capture: block outputs by hooks, and rows of attention recomputed beside whatever kernel the model uses.

One function is registered with transformers' `AttentionInterface` while any model is attached. A tapped
attention module gets a copy of its config that names this function; masks are still made from the tower's own
config, so the kernel that the model had sees exactly what it saw before, and only the rows asked for are
computed again.
"""

import copy
import functools
import sys
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from arr_coc.adapters.rows import Bias, attention_rows, steered_rows

_NAME = "arr_coc_row"
TEXT = -1  # what stands for the site of a text tower's last block
_taps: "weakref.WeakKeyDictionary[nn.Module, RowTap]" = weakref.WeakKeyDictionary()


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    return _taps[module].attend(module, query, key, value, attention_mask, **kwargs)


def tap_of(module: nn.Module) -> "RowTap | None":
    """The tap on an attention module, if there is one."""
    return _taps.get(module)


class RowTap:
    """Listens to one attention module: `rows` asks for query rows, `result` has them after a forward pass.

    They are heard without the `bias` that steers rows, so that what is steered does not confirm itself.

    Args:
        module: an attention module of transformers, with a `config`.
        rows: query rows to recompute, (R,); None to listen to nothing.
    """

    def __init__(self, module: Any) -> None:
        if module in _taps:
            raise ValueError(f"{type(module).__name__} is tapped already")
        self.original = module.config
        self.rows: Tensor | None = None
        self.result: Tensor | None = None
        self.bias: Bias | None = None
        self._module = weakref.ref(module)
        self._tap(module)
        config = copy.copy(self.original)
        config._attn_implementation_internal = _NAME  # the setter would walk and change the sub-configs
        module.config = config

    def _tap(self, module: Any) -> None:
        if not _taps:
            AttentionInterface.register(_NAME, _attend)
        _taps[module] = self
        # a model that is let go of without `remove` takes the registered function with it as well
        weakref.finalize(module, _release).atexit = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "RowTap":
        """A copy of a tapped model is tapped itself, and heard by the copy of who listens."""
        other = object.__new__(type(self))
        memo[id(self)] = other
        module = copy.deepcopy(self._module(), memo)
        other.original = copy.deepcopy(self.original, memo)
        other.rows = other.result = other.bias = None  # of a pass that is running, if any
        other._module = weakref.ref(module)
        other._tap(module)
        return other

    def attend(
        self,
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        implementation = self.original._attn_implementation

        eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
        scaling = kwargs.get("scaling") or query.shape[-1] ** -0.5
        causal = kwargs.get("is_causal")
        causal = bool(getattr(module, "is_causal", False)) if causal is None else bool(causal)
        how = (scaling, causal, kwargs.get("softcap"))
        if self.rows is not None:
            rows = self.rows[self.rows >= -query.shape[2]]
            self.result = attention_rows(query, key, attention_mask, rows, *how)
        tapped, module.config = module.config, self.original
        try:
            output, weights = kernel(module, query, key, value, attention_mask, **kwargs)
        finally:
            module.config = tapped
        if self.bias is None:
            return output, weights
        if kwargs.get("s_aux") is not None:
            raise ValueError(f"{type(module).__name__} attends to a sink as well, and cannot be steered")
        return steered_rows(self.bias, output, weights, query, key, value, attention_mask, *how)

    def remove(self) -> None:
        """Give the module its config back; the last tap takes the registered function with it."""
        module: Any = self._module()
        if module is not None and _taps.get(module) is self:
            module.config = self.original
            del _taps[module]
        _release()


def _release() -> None:
    """Take the registered function back once nothing is tapped any more."""
    if not any(module() is not None for module in _taps.keyrefs()):  # the dead may still be listed
        AttentionInterface._global_mapping.pop(_NAME, None)


class Capture:
    """Hooks on blocks and taps on their attention, all removed by `remove`.

    Args:
        blocks: by site number, the modules whose outputs are read.
        attention: the attention modules whose rows are read.
    """

    def __init__(self, blocks: dict[int, nn.Module], attention: list[nn.Module]) -> None:
        self.listening = False
        self.tokens: dict[int, Tensor] = {}
        self.embedded: Tensor | None = None  # what a language model is given, where somebody wants that
        self.taps: list[RowTap] = []
        self.hears_texts = False  # see `text_tokens.listen`
        self.text_tap: RowTap | None = None
        self._hooks: list[Any] = []
        try:
            for site, block in blocks.items():
                self._hooks.append(block.register_forward_hook(functools.partial(self._keep, site)))
            for module in attention:
                self.taps.append(RowTap(module))
        except BaseException:
            self.remove()
            raise

    # a method and no closure, here and wherever else a hook is made: a copy of the model then has hooks that
    # speak to the copy of who listens, not to the one that it was copied from
    def _keep(self, site: int, module: nn.Module, args: Any, output: Any) -> None:
        if self.listening:
            self.tokens[site] = output[0] if isinstance(output, tuple) else output

    def listen(self, rows: Tensor | None) -> None:
        """Start listening, for these query rows (None: block outputs only)."""
        self.clear()
        self.listening = True
        for tap in self.taps:
            tap.rows = rows

    def add_hook(self, handle: Any) -> None:
        """Take care of a further hook, so that it goes with the others."""
        self._hooks.append(handle)

    def rows(self) -> Tensor | None:
        """The rows heard of every tap, (L, B, R, K); None where nothing was heard."""
        heard = [tap.result for tap in self.taps if tap.result is not None]
        return torch.stack(heard) if heard else None

    def clear(self) -> None:
        """Stop listening and let go of every activation."""
        self.listening = False
        self.tokens, self.embedded = {}, None
        for tap in self._every_tap():
            tap.rows = tap.result = None

    def remove(self) -> None:
        self.clear()
        for hook in self._hooks:
            hook.remove()
        for tap in self._every_tap():
            tap.remove()
        self._hooks, self.taps, self.text_tap, self.hears_texts = [], [], None, False

    def _every_tap(self) -> list[RowTap]:
        return self.taps if self.text_tap is None else [*self.taps, self.text_tap]
