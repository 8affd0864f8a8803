"""The head of a dual encoder's image tower: from tokens to the space that it shares with texts."""

from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.adapters.offloaded import device_of, weight_of
from arr_coc.adapters.structure import Tower, attention_in, path_of

_PROJECTIONS = ("visual_projection", "vision_projection", "vision_proj")
_SCALE = 1 / 0.07  # the temperature that CLIP starts from, for a model that keeps none


class Head:
    """Whatever follows the blocks, applied to one token at a time as if the picture had no other.

    A class token's way, a pooling head that sees one token and so attends to it fully, or a mean over one:
    the parts of the tower that stand behind its blocks in order, then the model's projection.

    Args:
        model: a dual encoder.
        tower: its image tower.
    """

    def __init__(self, model: Any, tower: Tower) -> None:
        self.model, self.tower = model, tower
        children = list(tower.module.children())
        holds = [any(m is tower.blocks for m in child.modules()) for child in children]
        place = max((i for i, held in enumerate(holds) if held), default=len(children) - 1)
        self.parts = [c for c in children[place + 1 :] if not isinstance(c, nn.Dropout | nn.Identity)]
        named = [getattr(model, name, None) for name in _PROJECTIONS]
        self.projection = next((m for m in named if isinstance(m, nn.Module)), None)
        self.pool, self.pool_path, self.tapped = self._pooling()
        self.why = ""
        self.projects = self._try()

    def _pooling(self) -> tuple[Any, str, list[tuple[str, nn.Module]]]:
        """The attention by which the head pools: a torch module to hook, its path, or one to tap."""
        for part in self.parts:
            for module in part.modules():
                if isinstance(module, nn.MultiheadAttention):
                    return module, path_of(self.model, module), []
            for path, module in attention_in(part):
                return None, "", [(f"{path_of(self.model, part)}.{path}", module)]
        return None, "", []

    def _try(self) -> bool:
        """Whether a token goes through; then its width is known."""
        kinds = [p.dtype for p in self.tower.module.parameters() if p.is_floating_point()]
        where = device_of(self.tower.module)
        token = torch.zeros(1, 1, self.tower.width, dtype=kinds[0] if kinds else None, device=where)
        config = self.model.config
        self.width = int(
            getattr(config, "image_text_hidden_size", 0)
            or getattr(config, "projection_dim", 0)
            or self.tower.width
        )
        try:
            with torch.inference_mode():
                width = self(token).shape[-1]
        except (RuntimeError, TypeError, AttributeError, IndexError, ValueError) as error:
            self.why = f"its head does not take a single one ({str(error).splitlines()[0]})"
            return False
        if hasattr(self.model, "qformer"):
            self.why = "learned queries stand between them and the shared space"
            return False
        self.width = int(width)
        return True

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, N, d) -> unit length, (B, N, P)."""
        b, n, d = tokens.shape
        convolutional = any(isinstance(part, nn.AvgPool2d | nn.AdaptiveAvgPool2d) for part in self.parts)
        one = tokens.reshape(b * n, d, 1, 1) if convolutional else tokens.reshape(b * n, 1, d)
        for part in self.parts:
            one = part(one)
            one = one[0] if isinstance(one, tuple) else one
        one = one.reshape(b * n, -1)
        if self.projection is not None:
            one = self.projection(one)
        return torch.nn.functional.normalize(one.reshape(b, n, -1).float(), dim=-1)

    @property
    def scale(self) -> float | Tensor:
        """What the model multiplies cosines by."""
        log = weight_of(self.model, "logit_scale")
        if log is not None:
            return log.detach().exp().float()
        temperature = weight_of(self.model, "temperature")
        return _SCALE if temperature is None else 1 / temperature.detach().float()
