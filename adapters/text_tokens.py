"""The language side's own tokens, as the frozen pass that runs anyway leaves them: no second pass is made."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from arr_coc.adapters.answers import IGNORE
from arr_coc.adapters.capture import TEXT, Capture, RowTap
from arr_coc.adapters.families import family_of
from arr_coc.adapters.generative import GenerativeBody, goes_on
from arr_coc.adapters.rows import agreed
from arr_coc.adapters.structure import Tower, attention_in, find_tower, is_cross
from arr_coc.adapters.visual_tokens import InSequence, gather
from arr_coc.learner import Learner
from arr_coc.sequence import Text

if TYPE_CHECKING:
    from arr_coc.adapters.attached import ArrCocModel
    from arr_coc.adapters.dual_encoder import DualEncoderBody

SAID = ("relevance", "surprise", "text_relevance", "text_surprise")  # what an output is given
_MARKERS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id")


@dataclass(frozen=True)
class Heard:
    """The texts of one pass, and where their tokens stand.

    Args:
        text: B texts.
        place: of each token in `input_ids`, (B, T'); None: they stand as in `input_ids`.
        length: T, of `input_ids`.
    """

    text: Text
    place: Tensor | None
    length: int

    def aligned(self, values: Tensor) -> Tensor:
        """A value per token, (B, T'), as one per place in `input_ids`, (B, T); 0 where no word stands."""
        values = values * self.text.mask
        if self.place is None:
            return values
        return values.new_zeros(len(values), self.length).scatter_add(1, self.place, values)


def text_tower(model: Any) -> Tower | None:
    """A dual encoder's text tower; None where it has none of its own."""
    try:
        return find_tower(model, "text_config")
    except ValueError:
        return None


def text_width(body: "DualEncoderBody | GenerativeBody") -> int:
    """d of the states that a text is read from; 0 where none can be read."""
    if isinstance(body, GenerativeBody):
        return 0 if body.encoder_decoder else body.tower.width
    tower = text_tower(body.model)
    return 0 if tower is None else tower.width


def readers(learners: Iterable[Any]) -> list[Learner]:
    """Those that read texts."""
    return [one for one in learners if getattr(one, "sequence", None) is not None]


def listen(attached: "ArrCocModel", inputs: dict[str, Any]) -> None:
    """Have the pass that begins leave its texts, where some adapter reads them.

    Hook and tap are made at the first time, and go with the others. A generative model's last hidden states
    and rows are captured in any case.
    """
    body, capture, ids = attached.body, attached._capture, inputs.get("input_ids")
    if not attached.reads_texts or isinstance(body, GenerativeBody):
        return
    if not isinstance(ids, Tensor) or ids.dim() != 2:
        return
    if not capture.hears_texts:
        tower = text_tower(body.model)
        if tower is None:
            return
        last = tower.blocks[-1]
        capture.add_hook(last.register_forward_hook(functools.partial(capture._keep, TEXT)))
        capture.hears_texts = True
        own = [m for path, m in attention_in(last) if not is_cross(path, m)]
        capture.text_tap = RowTap(own[0]) if own else None
    if capture.text_tap is not None:
        capture.text_tap.rows = pooled_place(body.model, ids).unique()


def pooled_place(model: Any, ids: Tensor) -> Tensor:
    """Where a text tower sums its texts up, (C,): at the end token as CLIP finds it, at the last place where
    padding is read as well, else at the first, a class token's."""
    count, length = ids.shape
    if family_of(model).padded:
        return torch.full((count,), length - 1, device=ids.device)
    tower = text_tower(model)
    assert tower is not None
    ends = [
        m.eos_token_id for m in tower.module.modules() if isinstance(getattr(m, "eos_token_id", None), int)
    ]
    if not ends:
        return torch.zeros(count, dtype=torch.long, device=ids.device)
    # CLIP's first configs name a wrong end token, 2: there the largest id is the end
    return ids.int().argmax(1) if ends[0] == 2 else (ids == ends[0]).int().argmax(1)


def dual_texts(body: "DualEncoderBody", capture: Capture, inputs: dict[str, Any]) -> Heard | None:
    """The candidates of the pass, (C, T)."""
    states, ids = capture.tokens.get(TEXT), inputs.get("input_ids")
    if states is None or not isinstance(ids, Tensor) or states.shape[:2] != ids.shape:
        return None
    given = inputs.get("attention_mask")
    mask = given.bool() if isinstance(given, Tensor) else _unpadded(body.model, ids)
    place = pooled_place(body.model, ids)
    attention = torch.ones_like(states[..., 0], dtype=torch.float32)
    heard = None if capture.text_tap is None else capture.text_tap.result
    if heard is not None and heard.shape[-1] == ids.shape[1]:
        row = torch.searchsorted(place.unique(), place)
        attention = heard[torch.arange(len(ids), device=ids.device), row]
    return Heard(_text(body.model, ids, states, mask, attention, place), None, ids.shape[1])


def generative_texts(body: GenerativeBody, capture: Capture, labels: Tensor | None = None) -> Heard | None:
    """The words of the pass, with those of the answer where labels teach it; summed up at the last position,
    or at the first one that answers a label. None for a step that goes on from a cache."""
    asked, ids = body.now.asked, body.now.asked.get("input_ids")
    hidden = capture.tokens.get(len(body.tower.blocks) - 1)
    if body.encoder_decoder or hidden is None or not isinstance(ids, Tensor) or goes_on(asked):
        return None
    batch, length = hidden.shape[:2]
    front = length - ids.shape[1]
    if front < 0 or len(ids) != batch:
        return None
    words = body._question(asked, hidden, None)
    if isinstance(body.source, InSequence):
        where = body.source.where(asked, length)
        words = words if where is None or where.shape != words.shape else words & ~where
    words[:, :front] = False
    if not words.any():
        return None
    row, place = torch.full((batch,), -1), torch.full((batch,), -1)
    if labels is not None:
        taught = labels[:, 1:] != IGNORE
        rows = taught.any(0).nonzero().flatten()
        first = taught.int().argmax(1)
        row, place = torch.searchsorted(rows, first), first - labels.shape[1]
    heard, attention = capture.rows(), torch.ones_like(hidden[..., 0], dtype=torch.float32)
    if heard is not None and heard.shape[-1] >= length:
        attention = agreed(heard[:, torch.arange(batch, device=heard.device), row.to(heard.device), :length])
    states, at, mask = gather(hidden, words)
    every = (place + length).to(hidden.device)
    whole = torch.cat([ids.new_full((batch, front), -1), ids], 1)
    pooled = hidden[torch.arange(batch, device=hidden.device), every]
    spoken = _words(body.model, whole).gather(1, at) & (at != every.unsqueeze(1))
    text = Text(states, mask, attention.gather(1, at) * mask, spoken & mask, pooled)
    return Heard(text, (at - front).clamp_min(0), ids.shape[1])


def texts(attached: "ArrCocModel", inputs: dict[str, Any], labels: Tensor | None = None) -> Heard | None:
    """The texts of the pass, where some adapter reads them."""
    if not attached.reads_texts:
        return None
    body, capture = attached.body, attached._capture
    if isinstance(body, GenerativeBody):
        return generative_texts(body, capture, labels)
    return dual_texts(body, capture, inputs)


def say(attached: "ArrCocModel", output: Any, inputs: dict[str, Any]) -> Any:
    """The output, with `.text_relevance` and `.text_surprise`, (B, T), means over the active adapters that
    read texts; as it is, where none does."""
    learners = readers([attached.adapter(name) for name in attached.active])
    heard = texts(attached, inputs) if learners else None
    if heard is None:
        return output
    readings = [one.sequence.read(heard.text) for one in learners if one.sequence is not None]
    output.text_relevance = heard.aligned(torch.stack([r.relevance for r in readings]).mean(0))
    output.text_surprise = heard.aligned(torch.stack([r.surprise for r in readings]).mean(0))
    return output


def ordinary_text(text: Text) -> Text:
    """A copy whose tensors are no inference tensors."""
    return Text(*(getattr(text, n).clone() for n in ("states", "mask", "attention", "words", "pooled")))


def _text(model: Any, ids: Tensor, states: Tensor, mask: Tensor, attention: Tensor, place: Tensor) -> Text:
    row = torch.arange(len(ids), device=ids.device)
    words = _words(model, ids) & mask
    words[row, place] = False
    return Text(states, mask, attention * mask, words, states[row, place])


def _words(model: Any, ids: Tensor) -> Tensor:
    """Which ids are no markers, (B, T) bool."""
    config = model.config
    known = [config, getattr(config, "text_config", None), getattr(model, "generation_config", None)]
    found = [getattr(c, name, None) for c in known if c is not None for name in _MARKERS]
    marks = {int(i) for f in found if f is not None for i in (f if isinstance(f, list) else [f])}
    return ~torch.isin(ids, torch.tensor(sorted(marks), device=ids.device, dtype=ids.dtype))


def _unpadded(model: Any, ids: Tensor) -> Tensor:
    """Which tokens there are where no mask says so: padding at the end is none, but for one that ends."""
    pad = getattr(getattr(model.config, "text_config", None), "pad_token_id", None)
    if pad is None:
        return torch.ones_like(ids, dtype=torch.bool)
    # behind this place there is nothing but padding; `dual_encoder.candidate_keys` keeps the first of it
    behind = (ids != pad).flip(1).int().cumsum(1).flip(1) == 0
    return ~behind | (behind & ~nn.functional.pad(behind, (1, 0))[:, :-1])
