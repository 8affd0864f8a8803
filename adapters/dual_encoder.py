"""Dual encoders: image tokens and texts in one space (CLIPModel, SiglipModel and their like)."""

import functools
from typing import Any, Literal

import torch
from torch import Tensor, nn

from arr_coc.adapters import losses
from arr_coc.adapters.capture import Capture
from arr_coc.adapters.checks import finite_inputs, token_ids
from arr_coc.adapters.families import family_of
from arr_coc.adapters.grid import grid_of, grids_of
from arr_coc.adapters.head import Head
from arr_coc.adapters.in_turn import Answering
from arr_coc.adapters.structure import (
    Inspection,
    Tower,
    attention_in,
    choose_sites,
    find_tower,
    visual_inputs,
)
from arr_coc.percept import Percept


def text_embedding(features: Any) -> Tensor:
    """Unit-length embeddings, (C, P), from what `get_text_features` or `get_image_features` returned."""
    tensor = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(tensor.float(), dim=-1)


def candidate_keys(input_ids: Tensor, attention_mask: Tensor | None, pad: int | None) -> list[str]:
    """A class is known by its text: its token ids without padding, as one string."""
    keys = []
    for row, ids in enumerate(input_ids.tolist()):
        if attention_mask is not None:
            ids = [i for i, m in zip(ids, attention_mask[row].tolist(), strict=True) if m]
        else:
            while len(ids) > 1 and ids[-1] == pad and ids[-2] == pad:
                ids = ids[:-1]
        keys.append(" ".join(map(str, ids)))
    return keys


class DualEncoderBody:
    """Reads the image tower; scores tokens against a text by the model's own projection.

    Args:
        model: a dual encoder.
        sites: blocks to read; empty for the default (a middle one and the last but one; of a convolutional
            tower, whose blocks have grids of their own, the last).
    """

    kind = "dual"

    def __init__(self, model: Any, sites: tuple[int, ...]) -> None:
        self.model = self.speaker = model
        self.tower: Tower = find_tower(model, "vision_config", family_of(model).blocks)
        depth = len(self.tower.blocks)
        attends = any(True for _ in attention_in(self.tower.blocks)) or not _convolutional(self.tower.blocks)
        default = sorted({depth // 2, max(depth - 2, 0)}) if attends else [depth - 1]
        self.sites = choose_sites(sites, depth, tuple(default))
        self.senses = visual_inputs(model)
        self.head = Head(model, self.tower)
        self.site_widths = [self.tower.width] * len(self.sites)
        self.state_width = 0
        self.context_width = self.head.width
        self._contexts: dict[str, Tensor] = {}
        self._pooled: Any = None  # the pooling head's row of the pass that is being captured

    def capture(self) -> Capture:
        """Hooks on the sites and on the last block, taps on the attention that pools or the sites'."""
        read = {*self.sites, len(self.tower.blocks) - 1}
        capture = Capture({site: self.tower.blocks[site] for site in read}, [m for _, m in self._attention()])
        if self.head.pool is not None:
            keep = functools.partial(self._keep_pooled, capture)
            capture.add_hook(self.head.pool.register_forward_hook(keep))
        return capture

    def _keep_pooled(self, capture: Capture, module: nn.Module, args: Any, output: Any) -> None:
        if capture.listening:
            self._pooled = output[1]

    def _attention(self) -> list[tuple[str, nn.Module]]:
        """The attention modules to tap: the head's own, or the first of every site's block."""
        if self.head.pool is not None:
            return []
        if self.head.tapped:
            return self.head.tapped
        found = []
        for site in self.sites:
            for path, module in attention_in(self.tower.blocks[site]):
                found.append((f"{self.tower.block_path}.{site}.{path}", module))
                break
        return found

    def inspection(self) -> Inspection:
        names = [path for path, _ in self._attention()]
        if self.head.pool is not None:
            names = [self.head.pool_path]
        notes = [] if names else ["no attention row can be read: attention counts as even"]
        own = "scaled cosine of each projected token of the last block with the context"
        if not self.head.projects:
            own = "attention alone"
            notes.append(f"its tokens cannot be projected one by one: {self.head.why}")
        return Inspection(
            kind=self.kind,
            architecture=type(self.model).__name__,
            tower=self.tower.path,
            sites=[f"{self.tower.block_path}.{s}" for s in self.sites],
            attention=names,
            context="text embedding of context_ids, or the image's own embedding",
            own=own,
            tokens="the tower's tokens behind those that stand for no patch",
            notes=notes,
        )

    # -- one forward pass ------------------------------------------------------------------------------------

    def check(self, inputs: dict[str, Any]) -> None:
        flat = "spatial_shapes" in inputs  # patches in a row, as SigLIP 2 takes them
        finite_inputs(inputs, self.senses, dims=3 if flat else 4)
        token_ids(inputs.get("input_ids"), "input_ids", "(C, T), one row per candidate text")
        mask = inputs.get("attention_mask")
        if mask is not None and mask.shape != inputs["input_ids"].shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}; that of input_ids, "
                f"{tuple(inputs['input_ids'].shape)}, is needed"
            )

    def batch(self, inputs: dict[str, Any]) -> int:
        """How many pictures (or videos) the inputs show."""
        return next(len(inputs[n]) for n in self.senses if isinstance(inputs.get(n), Tensor))

    def rows(self, *_: Any) -> Tensor:
        return torch.zeros(1, dtype=torch.long)  # the class token's row, or the pooling query's

    def keys(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[str]:
        text = getattr(self.model.config, "text_config", None)
        return candidate_keys(input_ids, attention_mask, getattr(text, "pad_token_id", None))

    def context(self, ids: Tensor, mask: Tensor | None, inputs: dict[str, Any]) -> Tensor:
        """Text embeddings of the contexts, (B, P); each distinct text goes through the text tower once."""
        batch = self.batch(inputs)
        token_ids(ids if ids.dim() == 2 else ids.unsqueeze(0), "context_ids", "(B, T) or (T,)")
        ids = ids if ids.dim() == 2 else ids.unsqueeze(0)
        if mask is not None and mask.dim() == 1:
            mask = mask.unsqueeze(0)
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(
                f"context_attention_mask has shape {tuple(mask.shape)}; {tuple(ids.shape)} is needed"
            )
        if len(ids) not in (1, batch):
            raise ValueError(
                f"context_ids has {len(ids)} rows for a batch of {batch}; 1 or {batch} are needed"
            )
        keys = self.keys(ids, mask)
        if any(row.device != ids.device for row in self._contexts.values()):
            self.forget_texts()  # the model was moved
        missing = [i for i, k in enumerate(keys) if k not in self._contexts and k not in keys[:i]]
        if missing:
            embedded = self._embed(ids[missing], None if mask is None else mask[missing], inputs)
            if len(self._contexts) > 4096:
                self.forget_texts()
            self._contexts.update({keys[i]: row for i, row in zip(missing, embedded, strict=True)})
        found = torch.stack([self._contexts[k] for k in keys])
        return found.expand(batch, -1) if len(found) == 1 else found

    def forget_texts(self) -> None:
        """Let go of the embeddings of contexts: the text tower is another one now, or somewhere else."""
        self._contexts.clear()

    def _embed(self, ids: Tensor, mask: Tensor | None, inputs: dict[str, Any]) -> Tensor:
        """Unit text embeddings (C, P), by the model's text features or, where it offers none, by its own
        forward pass beside the first picture."""
        further = {} if mask is None else {"attention_mask": mask}
        features = getattr(self.model, "get_text_features", None)
        if features is not None:
            embedded = text_embedding(features(input_ids=ids, **further))
            if embedded.shape[-1] == self.context_width:
                return embedded
        shown = {n: inputs[n][:1] for n in self.senses if isinstance(inputs.get(n), Tensor)}
        return text_embedding(self.model(**shown, input_ids=ids, **further).text_embeds)

    def percept(
        self, capture: Capture, output: Any, context: Tensor | None, inputs: dict[str, Any]
    ) -> Percept:
        """What the last forward pass left behind."""
        heard = {site: self._tokens(t) for site, t in capture.tokens.items()}
        first, last = heard[self.sites[0]], heard[len(self.tower.blocks) - 1]
        batch, length = first.shape[:2]
        n = self._count(inputs, length)
        grid = self._grid(capture, inputs, batch, n)
        # the row first: projecting single tokens goes through the pooling head again
        attention = self._row(capture, batch, length, n)
        asked: Literal["text", "image"] = "text" if context is not None else "image"
        if context is None:
            context = self._seen(output)
        own = None
        if self.head.projects:
            own = torch.einsum("bnp,bp->bn", self.head(last[:, -n:]), context) * self.head.scale
        self._pooled = None
        mask = inputs.get("pixel_attention_mask")
        mask = mask.bool() if isinstance(mask, Tensor) and mask.shape == (batch, n) else None
        whole = mask is None or bool(mask.all())
        return Percept(
            tokens=tuple(heard[s][:, -n:] for s in self.sites),
            attention=attention.float(),
            context=context,
            own=own,
            mask=None if whole else mask,
            grid=grid if whole else None,
            grids=None if whole and grid is not None else self._grids(inputs, mask, attention),
            asked=asked,
        )

    @staticmethod
    def _tokens(hidden: Tensor) -> Tensor:
        """(B, N, d), of a block's output that is one already, or a map (B, d, H, W)."""
        return hidden.flatten(2).mT if hidden.dim() == 4 else hidden

    def patches(self, inputs: dict[str, Any]) -> int | None:
        """How many patches each picture has; None where config and inputs do not say."""
        patch = getattr(self.model.config.vision_config, "patch_size", None)
        pixels = inputs.get("pixel_values")
        if not isinstance(patch, int) or not isinstance(pixels, Tensor) or pixels.dim() != 4:
            return None
        return (pixels.shape[-2] // patch) * (pixels.shape[-1] // patch)

    def _count(self, inputs: dict[str, Any], length: int) -> int:
        """How many of a tower's tokens, the last ones, stand for patches.

        Raises:
            ValueError: where the tower gave fewer than the pictures have patches.
        """
        n = self.patches(inputs)
        if n is None:
            return length
        if n > length:
            raise ValueError(f"the tower gave {length} tokens; {n} were expected from its config")
        return n

    def _grid(self, capture: Capture, inputs: dict[str, Any], batch: int, n: int) -> tuple[int, int] | None:
        hidden = capture.tokens[self.sites[0]]
        if hidden.dim() == 4:
            return int(hidden.shape[2]), int(hidden.shape[3])
        return grid_of(self.model, inputs, batch, n)

    def _grids(self, inputs: dict[str, Any], mask: Tensor | None, attention: Tensor) -> Tensor | None:
        there = torch.ones_like(attention, dtype=torch.bool) if mask is None else mask
        return grids_of(self.model, inputs, there)

    def _row(self, capture: Capture, batch: int, length: int, n: int) -> Tensor:
        """Attention over the patches, (B, n): the pooling query's, or the class token's; even without."""
        if self.head.pool is not None:
            return self._pooled[:, 0, -n:]
        heard = capture.rows()
        if heard is None or heard.shape[-1] < n or (length == n and not self.head.tapped):
            return torch.full((batch, n), 1 / n, device=capture.tokens[self.sites[0]].device)
        return heard.mean(0)[:, 0, -n:]

    @staticmethod
    def _seen(output: Any) -> Tensor:
        """The pictures' own embeddings, unit length, (B, P); the mean where there are several each."""
        found = getattr(output, "image_embeds", None)
        found = output.video_embeds if found is None else found
        found = found.float().mean(1) if found.dim() == 3 else found.float()
        return torch.nn.functional.normalize(found, dim=-1)

    def augment(
        self,
        capture: Capture,
        learner: Answering,
        inputs: dict[str, Any],
        output: Any,
        context: Tensor | None,
    ) -> Any:
        """The model's output with what was learned in its scores, and `.relevance` (B, N), `.surprise` (B,)
        and `.probabilities` (B, C) of the candidates."""
        if isinstance(output, tuple):
            raise ValueError("return_dict=False leaves no place for relevance; use return_dict=True")
        answer = learner.answer(self.percept(capture, output, context, inputs))
        keys = self.keys(inputs["input_ids"], inputs.get("attention_mask"))
        own = self.own_logits(output)
        logits = learner.fuse(own, keys, answer)
        if getattr(output, "loss", None) is not None:
            output.loss = losses.of_pairs(output.loss, own, logits)
        setattr(output, _scores(output), logits)
        output.logits_per_text = logits.T
        output.relevance, output.surprise = answer.relevance, answer.surprise
        output.probabilities = learner.probabilities(logits, keys, answer)
        return output

    @staticmethod
    def own_logits(output: Any) -> Tensor:
        """The model's own scores, (B, C)."""
        return getattr(output, _scores(output))


def _scores(output: Any) -> str:
    """The name of the field with a row of scores per picture (or video)."""
    return "logits_per_image" if getattr(output, "logits_per_image", None) is not None else "logits_per_video"


def _convolutional(blocks: nn.ModuleList) -> bool:
    return any(isinstance(m, nn.BatchNorm2d) for m in blocks[-1].modules())
