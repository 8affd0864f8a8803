"""Generative models: visual tokens inside a language model's sequence (LlavaForConditionalGeneration and its
like)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.adapters.capture import Capture
from arr_coc.adapters.checks import finite_pixels, token_ids
from arr_coc.adapters.structure import Inspection, Tower, attention_of, choose_sites, find_tower
from arr_coc.learner import Learner
from arr_coc.percept import Percept

_CHUNK = 64  # positions answered at a time: memory does not grow with the sequence
IGNORE = -100  # as everywhere in transformers: nothing is taught here


@dataclass
class Prompt:
    """What decoding steps need of the prompt: its visual tokens, where they stand, and what was asked."""

    tokens: tuple[Tensor, ...]  # per site (B, N, d)
    place: Tensor  # (B, N), positions among the keys
    mask: Tensor  # (B, N) bool
    context: Tensor  # (B, d)


class GenerativeBody:
    """Reads the language model at the visual tokens' and the answers' positions.

    Args:
        model: a generative vision-language model.
        sites: blocks of the language model to read; empty for the default (a middle one and the last).
    """

    kind = "generative"

    def __init__(self, model: Any, sites: tuple[int, ...]) -> None:
        self.model = model
        self.tower: Tower = find_tower(model, "text_config")
        depth = len(self.tower.blocks)
        self.sites = choose_sites(sites, depth, tuple(sorted({depth // 2, depth - 1})))
        image = getattr(model.config, "image_token_id", None)
        image = getattr(model.config, "image_token_index", None) if image is None else image
        if image is None:
            raise TypeError(
                f"{type(model).__name__}: its config names no image_token_id, so no visual tokens are found"
            )
        self.image_token = int(image)
        vision = model.config.vision_config
        self.side = int(getattr(vision, "image_size", 0)) // int(getattr(vision, "patch_size", 1))
        self.site_widths = [self.tower.width] * len(self.sites)
        self.context_width = self.state_width = self.tower.width
        self.prompt: Prompt | None = None

    def capture(self) -> Capture:
        read = {*self.sites, len(self.tower.blocks) - 1}
        return Capture({site: self.tower.blocks[site] for site in read}, [m for _, m in self._attention()])

    def _attention(self) -> list[tuple[str, nn.Module]]:
        found = [(site, *attention_of(self.tower.blocks[site])) for site in self.sites]
        return [(f"{self.tower.block_path}.{site}.{path}", m) for site, path, m in found if m is not None]

    def inspection(self) -> Inspection:
        return Inspection(
            kind=self.kind,
            architecture=type(self.model).__name__,
            tower=self.tower.path,
            sites=[f"{self.tower.block_path}.{s}" for s in self.sites],
            attention=[path for path, _ in self._attention()],
            context="mean hidden state of the prompt's text tokens at the first site",
            own="attention of the answer's position alone: there is no shared space",
            tokens=f"input_ids == {self.image_token}",
        )

    # -- one forward pass ------------------------------------------------------------------------------------

    def check(self, inputs: dict[str, Any]) -> None:
        token_ids(inputs.get("input_ids"), "input_ids", "(B, T)")
        if inputs.get("pixel_values") is not None:
            finite_pixels(inputs["pixel_values"])
        ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        if mask is not None and mask.shape != ids.shape:
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; {tuple(ids.shape)} is needed")
        without = ((ids == self.image_token).sum(1) == 0).nonzero().flatten().tolist()
        if without:
            raise ValueError(
                f"samples {without} have no image token {self.image_token} in input_ids: nothing to look at"
            )

    def check_labels(self, labels: Any, ids: Tensor) -> Tensor:
        """(B, T) token ids with IGNORE where nothing is taught; at least one is, none at the first
        position."""
        if not isinstance(labels, Tensor) or labels.shape != ids.shape or labels.is_floating_point():
            given = (
                f"shape {tuple(labels.shape)}, {labels.dtype}"
                if isinstance(labels, Tensor)
                else type(labels).__name__
            )
            raise ValueError(f"labels are {given}; whole numbers of shape {tuple(ids.shape)} are needed")
        vocabulary = int(self.model.config.text_config.vocab_size)
        wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= vocabulary))]
        if wrong.numel():
            raise ValueError(f"labels {wrong.tolist()} are out of range: 0 to {vocabulary - 1}, or {IGNORE}")
        if not (labels[:, 1:] != IGNORE).any():
            raise ValueError(f"every label is {IGNORE}: nothing is taught")
        return labels

    def rows(self, inputs: dict[str, Any]) -> Tensor | None:
        """The query rows whose attention is wanted: those that the logits are kept for, after the first
        image."""
        ids = inputs.get("input_ids")
        embeds = inputs.get("inputs_embeds")
        length = ids.shape[1] if ids is not None else embeds.shape[1] if embeds is not None else 0
        labels = inputs.get("arr_coc_labels")
        if labels is not None:
            return (labels[:, 1:] != IGNORE).any(0).nonzero().flatten()
        keep = inputs.get("logits_to_keep") or length
        if isinstance(keep, Tensor):
            return keep.cpu()
        start = length - min(int(keep), length)
        image = None
        if isinstance(ids, Tensor) and _shown(inputs):
            image = (ids == self.image_token).any(0).nonzero().flatten()
        if image is not None and len(image):
            start = max(start, int(image[-1]))
        return torch.arange(start, length)

    def read_prompt(self, capture: Capture, inputs: dict[str, Any]) -> Prompt | None:
        """The prompt of this pass if it has image tokens, else the one that a decoding step goes on from."""
        ids = inputs.get("input_ids")
        if ids is None or not _shown(inputs) or not (ids == self.image_token).any():
            batch = capture.tokens[self.sites[0]].shape[0]
            return self.prompt if self.prompt is not None and len(self.prompt.context) == batch else None
        image = ids == self.image_token
        order = (
            (~image).long().argsort(dim=1, stable=True)[:, : int(image.sum(1).max())]
        )  # image positions first
        mask = image.gather(1, order)
        tokens = tuple(
            capture.tokens[s].gather(1, order.unsqueeze(-1).expand(-1, -1, capture.tokens[s].shape[-1]))
            for s in self.sites
        )
        text = ~image
        if inputs.get("attention_mask") is not None:
            text = text & inputs["attention_mask"].bool()
        labels = inputs.get("arr_coc_labels")
        if labels is not None:  # the answer is no part of the question
            text = text & ((labels != IGNORE).long().cumsum(1) == 0)
        hidden = capture.tokens[self.sites[0]].float() * text.unsqueeze(-1)
        context = hidden.sum(1) / text.sum(1, keepdim=True).clamp_min(1)
        self.prompt = Prompt(tokens, order, mask, context)
        return self.prompt

    def percept(
        self, capture: Capture, prompt: Prompt, sample: Tensor, place: Tensor, row: Tensor
    ) -> Percept:
        """One percept per (sample, position): `place` in the sequence, `row` in the captured attention rows,
        all (P,)."""
        last = capture.tokens[len(self.tower.blocks) - 1]
        heard = capture.rows()[sample, row]  # (P, K)
        whole = bool(prompt.mask.all())
        gridded = whole and prompt.mask.shape[1] == self.side**2  # one image a sample, at its usual size
        return Percept(
            tokens=tuple(t[sample] for t in prompt.tokens),
            attention=heard.gather(1, prompt.place[sample]),
            context=prompt.context[sample],
            mask=None if whole else prompt.mask[sample].clone(),
            state=last[sample, place],
            grid=(self.side, self.side) if gridded else None,
            asked="sequence",
        )

    def augment(self, capture: Capture, learner: Learner, inputs: dict[str, Any], output: Any) -> Any:
        """The model's output with what was learned in its logits, at every position after the first image.

        `.relevance` (B, N) and `.surprise` (B,) are those of the last position.
        """
        prompt = self.read_prompt(capture, inputs)
        place = self.rows(inputs)
        if prompt is None or place is None or not len(place):
            return output  # no image was seen: nothing to add
        logits = output.logits.clone()
        batch, kept, vocabulary = logits.shape
        dropped = capture.tokens[self.sites[0]].shape[1] - kept  # positions that no logits were kept for
        rows = torch.full((vocabulary,), -1, dtype=torch.long, device=logits.device)
        for row, key in enumerate(learner.classes):
            rows[int(key)] = row
        step = max(_CHUNK // batch, 1)
        for start in range(0, len(place), step):
            columns = place[start : start + step]
            sample = torch.arange(batch).repeat_interleave(len(columns))
            index = torch.arange(start, start + len(columns)).repeat(batch)
            column = columns.repeat(batch)
            answer = learner.answer(self.percept(capture, prompt, sample, column, index))
            own = logits[sample, column - dropped]
            logits[sample, column - dropped] = learner.fuse(own, rows, answer)
        output.logits = logits
        last = torch.arange(1, batch + 1) * len(columns) - 1
        output.relevance, output.surprise = answer.relevance[last], answer.surprise[last]
        if inputs.get("labels") is not None and output.loss is not None:
            output.loss = self.model.loss_function(
                logits=logits, labels=inputs["labels"], vocab_size=vocabulary
            )
        return output


def _shown(inputs: dict[str, Any]) -> bool:
    """Whether this pass brings images; without them an image token is only a word that the model has written.

    `generate` encodes images ahead of its first pass and hands over what came out.
    """
    return inputs.get("pixel_values") is not None or bool(inputs.get("mm_encoder_outputs"))
