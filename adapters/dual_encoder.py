"""Dual encoders: image tokens and texts in one space (CLIPModel, SiglipModel and their like)."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from arr_coc.adapters.capture import Capture
from arr_coc.adapters.checks import finite_pixels, token_ids
from arr_coc.adapters.structure import Inspection, Tower, attention_of, choose_sites, find_tower
from arr_coc.learner import Learner
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
        sites: blocks to read; empty for the default (a middle one and the last but one).
    """

    kind = "dual"

    def __init__(self, model: Any, sites: tuple[int, ...]) -> None:
        self.model = model
        self.tower: Tower = find_tower(model, "vision_config")
        depth = len(self.tower.blocks)
        self.sites = choose_sites(sites, depth, tuple(sorted({depth // 2, max(depth - 2, 0)})))
        vision = model.config.vision_config
        self.side = int(vision.image_size) // int(vision.patch_size)
        self.tokens = self.side**2
        self.pool = getattr(
            self.tower.module, "head", None
        )  # an attention pooling head (SigLIP), or none (CLIP)
        self.site_widths = [self.tower.width] * len(self.sites)
        self.state_width = 0
        self.context_width = int(
            model.visual_projection.out_features if hasattr(model, "visual_projection") else self.tower.width
        )
        self._contexts: dict[str, Tensor] = {}
        self._pooled: Any = None  # the pooling head's row of the pass that is being captured

    def capture(self) -> Capture:
        """Hooks on the sites and on the last block, taps on the sites' attention."""
        read = {*self.sites, len(self.tower.blocks) - 1}
        attention = [] if self.pool is not None else self._attention()
        capture = Capture({site: self.tower.blocks[site] for site in read}, [m for _, m in attention])
        if self.pool is not None:

            def keep(module: nn.Module, args: Any, output: Any) -> None:
                if capture.listening:
                    self._pooled = output[1]

            capture.add_hook(self.pool.attention.register_forward_hook(keep))
        return capture

    def _attention(self) -> list[tuple[str, nn.Module]]:
        found = []
        for site in self.sites:
            path, module = attention_of(self.tower.blocks[site])
            if module is not None:
                found.append((f"{self.tower.block_path}.{site}.{path}", module))
        return found

    def inspection(self) -> Inspection:
        names = (
            [path for path, _ in self._attention()]
            if self.pool is None
            else [f"{self.tower.path}.head.attention"]
        )
        return Inspection(
            kind=self.kind,
            architecture=type(self.model).__name__,
            tower=self.tower.path,
            sites=[f"{self.tower.block_path}.{s}" for s in self.sites],
            attention=names,
            context="text embedding of context_ids, or the image's own embedding",
            own="scaled cosine of each projected token of the last block with the context",
            tokens=f"the last {self.tokens} of the tower's tokens",
        )

    # -- one forward pass ------------------------------------------------------------------------------------

    def check(self, inputs: dict[str, Any]) -> None:
        finite_pixels(inputs.get("pixel_values"))
        token_ids(inputs.get("input_ids"), "input_ids", "(C, T), one row per candidate text")
        mask = inputs.get("attention_mask")
        if mask is not None and mask.shape != inputs["input_ids"].shape:
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}; that of input_ids, "
                f"{tuple(inputs['input_ids'].shape)}, is needed"
            )

    def rows(self, inputs: dict[str, Any]) -> Tensor | None:
        return torch.zeros(1, dtype=torch.long)  # the class token's row

    def keys(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> list[str]:
        pad = getattr(self.model.config.text_config, "pad_token_id", None)
        return candidate_keys(input_ids, attention_mask, pad)

    def context(self, ids: Tensor, mask: Tensor | None, batch: int) -> Tensor:
        """Text embeddings of the contexts, (B, P); each distinct text goes through the text tower once."""
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
        missing = [i for i, k in enumerate(keys) if k not in self._contexts and k not in keys[:i]]
        if missing:
            kwargs = {} if mask is None else {"attention_mask": mask[missing]}
            embedded = text_embedding(self.model.get_text_features(input_ids=ids[missing], **kwargs))
            if len(self._contexts) > 4096:
                self._contexts.clear()
            self._contexts.update({keys[i]: row for i, row in zip(missing, embedded, strict=True)})
        found = torch.stack([self._contexts[k] for k in keys])
        return found.expand(batch, -1) if len(found) == 1 else found

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens of the last block in the shared space, unit length, (B, N, P), by the model's own
        modules."""
        tokens = self.tower.module.post_layernorm(tokens)
        if (
            self.pool is not None
        ):  # a head that sees one token attends to it fully: its value path for that token
            b, n, d = tokens.shape
            projected = self.pool(tokens.reshape(b * n, 1, d)).reshape(b, n, -1)
        else:
            projected = self.model.visual_projection(tokens)
        return torch.nn.functional.normalize(projected.float(), dim=-1)

    def percept(self, capture: Capture, output: Any, context: Tensor | None) -> Percept:
        """What the last forward pass left behind."""
        n = self.tokens
        last = capture.tokens[len(self.tower.blocks) - 1][:, -n:]
        if capture.tokens[self.sites[0]].shape[1] < n:
            raise ValueError(
                f"the tower gave {capture.tokens[self.sites[0]].shape[1]} tokens; "
                f"{n} were expected from its config"
            )
        asked: Literal["text", "image"] = "text" if context is not None else "image"
        if context is None:
            context = torch.nn.functional.normalize(output.image_embeds.float(), dim=-1)
        # the row first: projecting single tokens goes through the pooling head again
        attention = capture.rows()[:, 0, -n:] if self.pool is None else self._pooled[:, 0, -n:]
        own = torch.einsum("bnp,bp->bn", self.project(last), context) * self.model.logit_scale.exp().float()
        self._pooled = None
        return Percept(
            tokens=tuple(capture.tokens[s][:, -n:] for s in self.sites),
            attention=attention.float(),
            context=context,
            own=own,
            grid=(self.side, self.side),
            asked=asked,
        )

    def augment(
        self, capture: Capture, learner: Learner, inputs: dict[str, Any], output: Any, context: Tensor | None
    ) -> Any:
        """The model's output with what was learned in its scores, and `.relevance` (B, N) and `.surprise`
        (B,)."""
        if isinstance(output, tuple):
            raise ValueError("return_dict=False leaves no place for relevance; use return_dict=True")
        answer = learner.answer(self.percept(capture, output, context))
        keys = self.keys(inputs["input_ids"], inputs.get("attention_mask"))
        logits = learner.fuse(self.own_logits(output), keys, answer)
        output.logits_per_image, output.logits_per_text = logits, logits.T
        output.relevance, output.surprise = answer.relevance, answer.surprise
        return output

    @staticmethod
    def own_logits(output: Any) -> Tensor:
        return output.logits_per_image
