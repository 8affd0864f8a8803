"""Steer: relevance added to the attention logits of a frozen model, so that it attends accordingly.

    logits + strength log(N r_n)    at the keys of the visual tokens

Attention is a precision, and log N r_n is what relevance adds to a log-precision that is even; even relevance
adds 0. Relevance is read at late blocks and steers earlier ones, so a steered call is two passes: a bare one
says what is relevant (where an answer begins), the second is steered by it. Where a person says what is
relevant there is one pass. A decoding step goes on from its prompt's relevance.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from arr_coc.adapters import pointing
from arr_coc.adapters.capture import RowTap, tap_of
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.adapters.generative import GenerativeBody, goes_on
from arr_coc.adapters.grid import grid_of
from arr_coc.adapters.rows import Bias
from arr_coc.adapters.shortening import Rows
from arr_coc.adapters.structure import attention_in, choose_sites, is_cross
from arr_coc.adapters.visual_tokens import InSequence, places

if TYPE_CHECKING:
    from arr_coc.adapters.attached import ArrCocModel

LEAST = -10.0  # nats: what is that far below even relevance is as good as gone


def log_relevance(relevance: Tensor, mask: Tensor | None = None) -> Tensor:
    """log(N r_n), at least -10 nats, (B, N); 0 where no token is."""
    count = relevance.shape[1] if mask is None else mask.sum(1, keepdim=True)
    added = (count * relevance.float()).log().clamp_min(LEAST)
    return added if mask is None else added.masked_fill(~mask, 0.0)


class Steering:
    """What is steered, while it is: attention modules that take a `Bias`.

    Args:
        body: of the attached model.
        strength: what log(N r_n) is multiplied with; below 0 the model looks away.
        layers: blocks of the image tower (of its class token's row) or of the language model (of the rows
            behind the image); negative ones count from the top; empty for all that can be. Where a head of
            its own pools, that is steered.
        ways, in_pixels: where a person says that it should look, as in `point_out`; none: what is relevant.

    Raises:
        ValueError: where nothing can be steered; then nothing was changed.
    """

    def __init__(
        self,
        body: DualEncoderBody | GenerativeBody,
        strength: float,
        layers: tuple[int, ...],
        ways: Mapping[str, Any],
        in_pixels: bool,
    ) -> None:
        if not math.isfinite(strength):
            raise ValueError(f"strength={strength!r}: a finite number is needed")
        self.body, self.strength, self.ways, self.in_pixels = body, strength, ways, in_pixels
        self.pool = body.head.pool if isinstance(body, DualEncoderBody) else None
        modules = _steerable(body, layers)
        self.last: Bias | None = None  # of the prompt that decoding goes on from
        self._bias: Bias | None = None
        self._own: list[RowTap] = []
        self._hook: Any = None
        self.taps: list[RowTap] = []
        if self.pool is not None:
            self._hook = self.pool.register_forward_pre_hook(self._pooling, with_kwargs=True)
        for module in modules:
            tap = tap_of(module)
            if tap is None:
                tap = RowTap(module)
                self._own.append(tap)
            self.taps.append(tap)

    @contextlib.contextmanager
    def during(self, bias: Bias | None) -> Iterator[None]:
        """Steer by this; whatever happens, nothing is steered afterwards."""
        before = self._bias
        self._set(bias)
        try:
            yield
        finally:
            self._set(before)

    def shorten(self, rows: Rows) -> None:
        """Of the sequence that is steered, only these rows are left."""
        if self._bias is not None:
            self.last = rows.bias(self._bias)
            self._set(self.last)

    def _set(self, bias: Bias | None) -> None:
        self._bias = bias
        for tap in self.taps:
            tap.bias = bias

    def _pooling(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The bias as a mask of a pooling head, which is torch's own attention: (B heads, 1, N)."""
        keys = args[1] if len(args) > 1 else kwargs["key"]
        if self._bias is None or keys.shape[:2] != self._bias.added.shape:
            return None  # single tokens on their way to the shared space
        added = self._bias.added.to(keys).repeat_interleave(module.num_heads, 0).unsqueeze(1)
        given = kwargs.get("attn_mask")
        if given is not None:
            given = (
                torch.zeros_like(added).masked_fill(given, -torch.inf)
                if not given.is_floating_point()
                else given
            )
            added = added + given
        return args, {**kwargs, "attn_mask": added}

    def remove(self) -> None:
        """Give every module back as it was. Safe to call twice."""
        self._set(None)
        for tap in self._own:
            tap.remove()
        if self._hook is not None:
            self._hook.remove()
        self._own, self._hook, self.taps = [], None, []


def _steerable(body: DualEncoderBody | GenerativeBody, layers: tuple[int, ...]) -> list[nn.Module]:
    """The attention modules of the layers asked for."""
    name = type(body.model).__name__
    depth = len(body.tower.blocks)
    if isinstance(body, DualEncoderBody) and (body.head.pool is not None or body.head.tapped):
        if layers:
            raise ValueError(
                f"layers={layers} were asked for, but a head of its own pools {name}'s tokens: that is "
                "steered; leave layers empty"
            )
        return [module for _, module in body.head.tapped]
    if isinstance(body, GenerativeBody) and not isinstance(body.source, InSequence):
        raise ValueError(f"{name} attends to its visual tokens from beside its blocks: it cannot be steered")
    found = []
    for number in choose_sites(layers, depth, tuple(range(depth))):
        inside = attention_in(body.tower.blocks[number])
        module: Any = next((m for path, m in inside if not is_cross(path, m)), None)
        slides = getattr(module, "is_sliding", False) or getattr(module, "sliding_window", None)
        if module is None or slides:
            why = "sees a part of the sequence only" if slides else "hands over no query and key"
            if not layers:
                continue
            raise ValueError(f"layer {number} of {name} cannot be steered: its attention {why}")
        found.append(module)
    if not found:
        raise ValueError(f"{name} has no attention that can be steered")
    return found


@contextlib.contextmanager
def steer(
    attached: "ArrCocModel",
    strength: float,
    layers: tuple[int, ...],
    click: Any = None,
    box: Any = None,
    mask: Any = None,
    in_pixels: bool = False,
) -> Iterator["ArrCocModel"]:
    """See `ArrCocModel.steer`."""
    attached._on()
    if attached._steering is not None:
        raise RuntimeError("this model is steered already; leave that `with` block first")
    ways = {"click": click, "box": box, "mask": mask}
    steering = attached._steering = Steering(attached.body, strength, layers, ways, in_pixels)
    try:
        yield attached
    finally:
        steering.remove()
        attached._steering = None


@contextlib.contextmanager
def steered(
    attached: "ArrCocModel",
    inputs: dict[str, Any],
    context_ids: Tensor | None = None,
    context_attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
) -> Iterator[None]:
    """Where the attached model is steered, the passes inside see a bias for these inputs."""
    steering = attached._steering
    if steering is None or not attached._enabled:
        yield
        return
    shown = {k: v for k, v in inputs.items() if v is not None}
    bias: Bias | None
    if isinstance(steering.body, DualEncoderBody):
        said = {"context_ids": context_ids, "context_attention_mask": context_attention_mask}
        bias = _of_pictures(attached, steering, steering.body, shown, said)
    elif goes_on(shown):
        bias = steering.last
    else:
        prompt = {k: v for k, v in shown.items() if isinstance(v, Tensor)}
        taught = prompt.pop("labels", labels)
        bias = steering.last = _of_prompts(attached, steering, steering.body, prompt, taught)
    with steering.during(bias):
        yield


def _of_pictures(
    attached: "ArrCocModel",
    steering: Steering,
    body: DualEncoderBody,
    inputs: dict[str, Any],
    said: dict[str, Tensor | None],
) -> Bias:
    body.check(inputs)
    batch = body.batch(inputs)
    pointed = pointing.checked(steering.ways, steering.in_pixels, inputs, batch)
    if pointed is None:
        with steering.during(None), _unsteered(attached):
            percept = attached.perceive(**inputs, **said).percept
            relevance = _relevance(attached, percept)
    else:
        count = body.patches(inputs)
        relevance = pointed.target(None if count is None else grid_of(body.model, inputs, batch, count))
    return Bias(steering.strength * log_relevance(relevance))


def _of_prompts(
    attached: "ArrCocModel",
    steering: Steering,
    body: GenerativeBody,
    inputs: dict[str, Any],
    labels: Tensor | None,
) -> Bias:
    body.check(inputs)
    batch, length = inputs["input_ids"].shape
    assert isinstance(body.source, InSequence)
    where = body.source.where(inputs, length)
    if where is None or where.shape[1] != length or not where.any():
        raise ValueError("where the visual tokens stand is not known before the pass: it cannot be steered")
    place, mask = places(where)
    pointed = pointing.checked(steering.ways, steering.in_pixels, inputs, batch)
    if pointed is not None:
        grid = grid_of(body.model, inputs, *mask.shape) if bool(mask.all()) else None
        relevance = pointed.target(grid)
    else:
        with steering.during(None), _unsteered(attached):
            if labels is None:
                seen, sample = pointing.at_prompts_end(attached, inputs), torch.arange(batch)
            else:
                seen, sample = attached.perceive(labels=labels, **inputs), body.taught(labels)[0].cpu()
            each = _relevance(attached, seen.percept)
        relevance = mask / mask.sum(1, keepdim=True)  # a sample that is not asked anything is not steered
        for row in range(len(sample) - 1, -1, -1):  # the first of an answer's places says what is relevant
            relevance[sample[row]] = each[row].to(relevance)
    last = torch.arange(length, device=where.device).expand_as(where).masked_fill(~where, -1).amax(1)
    return Bias(steering.strength * log_relevance(relevance.to(where.device), mask), place, last, length)


def _relevance(attached: "ArrCocModel", percept: Any) -> Tensor:
    with torch.no_grad():
        return attached.who_answers().answer(percept).relevance


@contextlib.contextmanager
def _unsteered(attached: "ArrCocModel") -> Iterator[None]:
    before, attached._steering = attached._steering, None
    try:
        yield
    finally:
        attached._steering = before
