"""Keep: which visual tokens a prompt's answer needs, said by its question and the language model's first
blocks."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from arr_coc.adapters.capture import RowTap, tap_of
from arr_coc.adapters.generative import GenerativeBody
from arr_coc.adapters.grid import grids_of
from arr_coc.adapters.perceived import Kept
from arr_coc.adapters.rows import EARLY
from arr_coc.adapters.shortening import CACHES
from arr_coc.adapters.structure import attention_in, is_cross
from arr_coc.adapters.visual_tokens import InSequence, places
from arr_coc.relevance.asked import asked
from arr_coc.relevance.select import budget, select

if TYPE_CHECKING:
    from arr_coc.adapters.attached import ArrCocModel

Keep = int | float | Sequence[int | float] | Tensor


class _Heard(Exception):
    """The first blocks have said what they had to say."""


class Keeping:
    """Chooses the rows of a prompt that stay.

    Args:
        attached: the attached model.
        inputs: of the prompt: `input_ids`, and what says which of its positions are visual.
        keep: how many visual tokens stay: a number, a share in (0, 1], or one of them a sample.
        mix: of diversity, in [0, 1]; None: what the first active adapter has learned for such questions.
        explore: draw the mix instead, for a reward to come.

    Raises:
        ValueError, TypeError: for a model it cannot work for, and budgets that cannot be.
    """

    def __init__(
        self,
        attached: "ArrCocModel",
        inputs: Mapping[str, Any],
        keep: Keep,
        mix: float | None = None,
        explore: bool = False,
    ) -> None:
        body, name = attached.body, type(attached.model).__name__
        if not isinstance(body, GenerativeBody):
            raise TypeError(f"keep_tokens is for generative models; {name} is a dual encoder")
        if not isinstance(body.source, InSequence) or body.encoder_decoder or body.family.in_front:
            raise ValueError(
                f"keep_tokens does not work for {name}: its visual tokens do not stand in the language "
                "model's sequence at places that input_ids tells"
            )
        if body.family.whole:
            raise ValueError(f"keep_tokens does not work for {name}: its blocks need every visual token")
        if mix is not None and not 0 <= mix <= 1:
            raise ValueError(f"mix={mix!r}: None or a number in [0, 1] is needed")
        ids = inputs.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2:
            raise ValueError("keep_tokens needs input_ids (B, T): they tell where the visual tokens stand")
        where = body.source.where(inputs, ids.shape[1])
        if where is None or not bool(where.any(1).all()):
            raise ValueError("keep_tokens needs visual tokens in input_ids of every sample")
        self.attached, self.body, self.where = attached, body, where
        self.inputs, self.mix, self.explore = inputs, mix, explore
        self.budgets = _budgets(keep, where.sum(1).tolist())
        self.ids = ids
        self.content = body.source.words.content(ids) & ~where
        self.kept: Kept | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is dropped."""
        return self.budgets == self.where.sum(1).tolist()

    def choose(self, shown: Mapping[str, Any]) -> Tensor:
        """Which rows stay, (B, T) bool, given what the language model is given."""
        embedded = shown["inputs_embeds"]
        batch, each = len(self.where), len(embedded) // len(self.where)
        if embedded.shape[1] != self.where.shape[1] or len(embedded) % batch:
            raise ValueError(
                f"{type(self.attached.model).__name__} makes {tuple(embedded.shape[:2])} positions of a "
                f"prompt of {tuple(self.where.shape)}: where the visual tokens stand is not known"
            )
        first = {k: _every(v, len(embedded), each) for k, v in shown.items()}  # beams of one sample are alike
        mask = self.inputs.get("attention_mask")  # as it was given: what is given on may be no (B, T)
        there = torch.ones_like(self.where) if mask is None else mask.bool()
        attention = self._heard(first, there)
        embedded = first["inputs_embeds"]
        keep = torch.ones_like(self.where)
        tokens, shares, mixes, contexts = [], [], [], []
        place, real = places(self.where)  # (B, N), left-aligned
        grid = grids_of(self.attached.model, self.inputs, real)
        seen = embedded.gather(1, place.unsqueeze(2).expand(-1, -1, embedded.shape[2])).float()
        assert isinstance(self.body.source, InSequence)
        evidence = self.body.source.words.evidence(self.ids, self.content & there, seen, real, grid)
        evidence = seen.new_zeros(place.shape) if evidence is None else evidence
        heard = None if attention is None else attention.gather(1, place)
        relevance = asked(heard, evidence, real, grid)
        for b in range(batch):
            mine, one = place[b, real[b]], seen[b, real[b]]
            share = relevance[b, real[b]]
            said = ~self.where[b] & ~self.content[b] & there[b]
            context = embedded[b, said].float().mean(0) if bool(said.any()) else one.mean(0)
            mix = self._mix(context)
            chosen = select(one, None, self.budgets[b], mix, share)
            keep[b, mine] = False
            keep[b, mine[chosen]] = True
            tokens.append(chosen)
            shares.append(share)
            mixes.append(mix)
            contexts.append(context)
        self.kept = Kept(tokens, shares, mixes, torch.stack(contexts).cpu())
        return keep.repeat_interleave(each, 0)

    def _mix(self, context: Tensor) -> float:
        if self.mix is not None:
            return self.mix
        names = self.attached.active or self.attached.adapters
        learner = self.attached.adapter(names[0])
        if self.explore:
            return learner.mixture.draw(context, learner.generator)
        return learner.mixture.best(context)

    def _heard(self, shown: dict[str, Any], there: Tensor) -> Tensor | None:
        """Attention of each sample's last position over the sequence in block `EARLY`, mean over its heads,
        (B, T); None where it cannot be heard."""
        block = self.body.tower.blocks[min(EARLY, len(self.body.tower.blocks) - 1)]
        module = next((m for path, m in attention_in(block) if not is_cross(path, m)), None)
        if module is None:
            return None
        count = torch.arange(there.shape[1], device=there.device)
        last = torch.where(there, count, -1).amax(1)  # (B,)
        rows, place = last.unique(return_inverse=True)
        with _listening(module, rows) as tap:
            stop = module.register_forward_hook(_stop)
            try:
                bare = {k: v for k, v in shown.items() if k not in CACHES}
                bare["attention_mask"] = _narrow(bare.get("attention_mask"), there.shape[1])
                self.body.tower.module(**{**bare, "use_cache": False})
            except _Heard:
                pass
            finally:
                stop.remove()
            heard = tap.result
        if heard is None or heard.shape[2] != there.shape[1]:
            return None
        return heard[torch.arange(len(heard), device=heard.device), place]


def _narrow(value: Any, length: int) -> Any:
    """Masks of the keys of a static cache as masks of those that there are."""
    if isinstance(value, dict):
        return {k: _narrow(v, length) for k, v in value.items()}
    return value[..., :length] if isinstance(value, Tensor) and value.dim() == 4 else value


def _stop(module: nn.Module, args: Any, output: Any) -> None:
    raise _Heard


@contextmanager
def _listening(module: nn.Module, rows: Tensor) -> Iterator[RowTap]:
    """A tap on an attention module that hears these rows, unsteered; the one that is there, or a new one."""
    there = tap_of(module)
    tap = RowTap(module) if there is None else there
    before = tap.rows, tap.result, tap.bias
    tap.rows, tap.result, tap.bias = rows - 0, None, None
    try:
        yield tap
    finally:
        tap.rows, tap.result, tap.bias = before
        if there is None:
            tap.remove()


def _budgets(keep: Keep, counts: list[int]) -> list[int]:
    """How many tokens each sample keeps."""
    if isinstance(keep, Tensor):
        keep = keep.tolist()
    if isinstance(keep, (int, float)):
        return [budget(keep, count) for count in counts]
    if not isinstance(keep, Sequence) or isinstance(keep, str) or len(keep) != len(counts):
        raise ValueError(
            f"keep_tokens={keep!r}: a number, a share in (0, 1], or one of these for each of "
            f"{len(counts)} samples"
        )
    return [budget(one, count) for one, count in zip(keep, counts, strict=True)]


def _every(value: Any, batch: int, each: int) -> Any:
    """Of a tensor with `batch` rows, every `each`-th; position ids may have them on their second axis."""
    if isinstance(value, dict):
        return {k: _every(v, batch, each) for k, v in value.items()}
    if each == 1 or not isinstance(value, Tensor) or value.dim() < 2:
        return value
    if value.shape[0] == batch:
        return value[::each]
    return value[:, ::each] if value.dim() == 3 and value.shape[1] == batch else value
