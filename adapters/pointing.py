"""Pointing out: a click, a box, a gaze map or a mask says where in the picture what was asked for is.

attached.point_out(click=(0.25, 0.7), pixel_values=pixels, **texts, context_ids=cue)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from arr_coc.adapters.answers import behind, labels_for
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.perceived import Perceived
from arr_coc.answer import Answer
from arr_coc.relevance import box_target, click_target, map_target

if TYPE_CHECKING:
    from arr_coc.adapters.attached import ArrCocModel

_TARGETS = {"click": click_target, "box": box_target, "mask": map_target}
_SHAPES = {"click": "(x, y), (B, 2)", "box": "(x0, y0, x1, y1), (B, 4)", "mask": "(B, H, W)"}


@dataclass(frozen=True)
class Pointed:
    """Where somebody points, checked.

    Args:
        kind: "click", "box" or "mask" (gaze maps too).
        given: (B, 2), (B, 4) as shares of the picture's width and height, or (B, H, W) not negative; float64.
    """

    kind: str
    given: Tensor

    def target(self, grid: tuple[int, int] | None) -> Tensor:
        """The distribution over the tokens of a grid, (B, N), float64.

        Raises:
            ValueError: where the tokens stand in none.
        """
        if grid is None:
            raise ValueError("the visual tokens stand in no grid, so a place in the picture is none of them")
        return _TARGETS[self.kind](self.given, grid)


def checked(
    ways: Mapping[str, Any], in_pixels: bool, inputs: Mapping[str, Any], batch: int
) -> Pointed | None:
    """The one way of `ways` (click, box, mask) that was used; None where none was.

    Args:
        in_pixels: points and boxes are in pixels of the model's picture, not shares of it.
        inputs: of the model: a picture's size is that of `pixel_values`.
        batch: samples; one place for all of them will do.

    Raises:
        TypeError, ValueError: for more than one way, and for places that are none in the picture.
    """
    used = [name for name, value in ways.items() if value is not None]
    if len(used) > 1:
        raise ValueError(f"{' and '.join(used)} were given; one of {', '.join(ways)} is needed")
    if not used:
        return None
    (kind,) = used
    given, rank = torch.as_tensor(ways[kind]), 3 if kind == "mask" else 2
    if given.is_complex():
        raise TypeError(f"{kind} has dtype {given.dtype}; real numbers are needed")
    given = given.double()
    given = given.unsqueeze(0) if given.dim() == rank - 1 else given
    width = {"click": 2, "box": 4}.get(kind)
    if given.dim() != rank or 0 in given.shape or width not in (None, given.shape[-1]):
        raise ValueError(f"{kind} has shape {tuple(given.shape)}; {_SHAPES[kind]} is needed")
    if len(given) not in (1, batch):
        raise ValueError(f"{kind} has {len(given)} rows for a batch of {batch}; 1 or {batch} are needed")
    if kind != "mask" and in_pixels:
        given = given / _size(inputs).repeat(given.shape[1] // 2).to(given.device)
    wrong, needed = _wrong(kind, given)
    if wrong.any():
        where = wrong.nonzero().flatten().tolist()
        raise ValueError(f"{kind} is no place in the picture for samples {where}: {needed}")
    return Pointed(kind, given.expand(batch, *given.shape[1:]))


def _wrong(kind: str, given: Tensor) -> tuple[Tensor, str]:
    """Which samples point nowhere, (B,) bool, and what is needed."""
    flat = given.flatten(1)
    finite = torch.isfinite(flat).all(1)
    if kind == "mask":
        good = (flat >= 0).all(1) & (flat.sum(1) > 0)
        return ~(finite & good), "finite numbers of at least 0, some of them above 0, are needed"
    inside = ((flat >= 0) & (flat <= 1)).all(1)
    if kind == "click":
        return ~(finite & inside), "0 <= x <= 1 and 0 <= y <= 1 (or in_pixels=True) are needed"
    open_ = (flat[:, 0] < flat[:, 2]) & (flat[:, 1] < flat[:, 3])
    return ~(
        finite & inside & open_
    ), "0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1 (or in_pixels=True) are needed"


def _size(inputs: Mapping[str, Any]) -> Tensor:
    """Width and height of the pictures in pixels, (2,)."""
    pixels = inputs.get("pixel_values")
    if not isinstance(pixels, Tensor) or pixels.dim() != 4:
        given = tuple(pixels.shape) if isinstance(pixels, Tensor) else type(pixels).__name__
        raise ValueError(
            f"in_pixels=True needs pixel_values (B, channels, H, W), which are {given} here: give shares of "
            "the picture, 0 to 1"
        )
    return torch.tensor([pixels.shape[-1], pixels.shape[-2]], dtype=torch.float64)


def batch_of(body: DualEncoderBody | GenerativeBody, inputs: Mapping[str, Any]) -> int:
    """How many samples these inputs hold."""
    if isinstance(body, DualEncoderBody):
        return body.batch(dict(inputs))
    ids = inputs.get("input_ids")
    named = [inputs[n] for n in body.senses if isinstance(inputs.get(n), Tensor)]
    return len(ids) if isinstance(ids, Tensor) else len(named[0])


def at_prompts_end(attached: "ArrCocModel", inputs: dict[str, Any]) -> Perceived:
    """The percept of every sample at one position: of a generative model, where its answer begins."""
    body = attached.body
    if isinstance(body, DualEncoderBody):
        return attached.perceive(**inputs)
    body.check(inputs)
    some = next(v for v in inputs.values() if isinstance(v, Tensor))
    # any word will do: its place is perceived before it is read
    word = next(i for i in range(some.numel() + len(body.source.ids) + 1) if i not in body.source.ids)
    answer = torch.full((batch_of(body, inputs), 1), word, device=some.device)
    if body.encoder_decoder:
        return attached.perceive(labels=answer, **inputs)
    labels = labels_for(inputs, answer, None, body.family)
    return attached.perceive(labels=labels, **behind(inputs, answer, body.family))


def point_out(
    attached: "ArrCocModel", ways: Mapping[str, Any], in_pixels: bool, inputs: dict[str, Any]
) -> Answer:
    """See `ArrCocModel.point_out`: one frozen pass, then a local step of U and the own gain."""
    body = attached.body
    for name in attached.plastic:
        if not attached.adapter(name).config.learn_relevance:
            raise ValueError(f"learn_relevance is off for the adapter {name!r}: no place can be pointed out")
    body.check(inputs)
    pointed = checked(ways, in_pixels, inputs, batch_of(body, inputs))
    if pointed is None:
        raise ValueError(f"nothing was pointed out; one of {', '.join(ways)} is needed")
    percept = at_prompts_end(attached, inputs).percept
    target = pointed.target(percept.grid).to(percept.attention.device)
    with torch.no_grad():
        return attached._teach(lambda learner: learner.point_out(percept, target))
