"""Generative models: a language model that writes about visual tokens (LlavaForConditionalGeneration and its
like)."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.adapters import losses
from arr_coc.adapters.answers import IGNORE, token_rows
from arr_coc.adapters.capture import Capture
from arr_coc.adapters.checks import finite_inputs, token_ids
from arr_coc.adapters.families import family_of
from arr_coc.adapters.in_turn import Answering
from arr_coc.adapters.rows import EARLY, agreed
from arr_coc.adapters.shortening import Rows
from arr_coc.adapters.structure import (
    Inspection,
    Tower,
    attention_in,
    choose_sites,
    find_decoder,
    is_cross,
    speaker_of,
    visual_inputs,
)
from arr_coc.adapters.visual_tokens import Attended, InSequence, Seen, among, crossing_of, standing
from arr_coc.percept import Percept

_CHUNK = 256  # positions answered at a time: memory does not grow with the sequence


@dataclass
class Pass:
    """What is known about the forward pass that runs, and about the prompt that a decoding step goes on from.

    Args:
        asked: the model's inputs, by name.
        fresh: it shows images that were not read yet.
        question: how many positions, from the start, may count as the question; None for all.
        seen: the visual tokens read last.
        last: the place of the last image that the pass shows, counted from the end (so negative): logits
            before it are the model's own; None where it shows none.
    """

    asked: dict[str, Any]
    fresh: bool = False
    question: int | None = None
    seen: Seen | None = None
    last: int | None = None


class GenerativeBody:
    """Reads the language model at the visual tokens' and the answers' positions.

    Args:
        model: a generative vision-language model.
        sites: blocks of the language model to read; empty for the default (a middle one and the last).
        processor: whose tokenizer tells a prompt's words of content; or None.

    Raises:
        TypeError, ValueError: where no decoder or no visual tokens are found, or a site does not exist.
    """

    kind = "generative"

    def __init__(self, model: Any, sites: tuple[int, ...], processor: Any = None) -> None:
        self.model, self.speaker = model, speaker_of(model)
        self.tower: Tower = find_decoder(model)
        depth, family = len(self.tower.blocks), family_of(model)
        self.family = family
        crossing = crossing_of(model, self.tower)
        self.source: InSequence | Attended
        if crossing:
            if sites:
                raise ValueError(
                    f"sites {sites} were asked for, but {type(model).__name__} attends to its visual tokens "
                    "from beside its blocks: what it attends to is read; leave sites empty"
                )
            self.sites = choose_sites((), depth, (depth // 2,))
            self.source = Attended(model, family, self.tower, crossing)
        else:
            self.sites = choose_sites(sites, depth, tuple(sorted({depth // 2, depth - 1})))
            self.source = InSequence(model, family, self.tower, self.sites, processor)
        self.taps = [(p, m) for p, m in crossing if getattr(m, "config", None)] if crossing else self._taps()
        self.site_widths = self.source.widths
        self.context_width = self.site_widths[0]
        self.state_width = self.tower.width
        # an encoder-decoder answers label t at position t, a decoder alone at the position before
        configs = (model.config, self.speaker.config)
        self.encoder_decoder = any(getattr(c, "is_encoder_decoder", False) for c in configs)
        self.senses = visual_inputs(model)
        self.now = Pass({})
        self.short: Rows | None = None  # rows of the sequence that the blocks see, where some were dropped
        self._signature = inspect.signature(self.speaker.forward)

    def _taps(self) -> list[tuple[str, nn.Module]]:
        """Attention of an early block and of the first site's, where what is asked is read off the picture:
        of each the nearest block's that sees the whole sequence and can be tapped."""
        found = []
        for number, block in enumerate(self.tower.blocks):
            for path, module in attention_in(block):
                if not is_cross(path, module):
                    slides = getattr(module, "is_sliding", False) or getattr(module, "sliding_window", None)
                    found.append((number, bool(slides), f"{self.tower.block_path}.{number}.{path}", module))
                    break
        chosen: dict[str, nn.Module] = {}
        for wanted in (EARLY, self.sites[0]):
            if found:
                _, _, path, module = min(found, key=lambda f: (f[1], abs(f[0] - wanted)))
                chosen[path] = module
        return list(chosen.items())

    def capture(self) -> Capture:
        read = {*self.sites, len(self.tower.blocks) - 1}
        capture = Capture({site: self.tower.blocks[site] for site in read}, [m for _, m in self.taps])
        self.source.hook(capture)
        return capture

    def inspection(self) -> Inspection:
        read = [f"{self.tower.block_path}.{s}" for s in self.sites]
        if isinstance(self.source, Attended):
            read = [self.source.path]
        none = (
            []
            if self.taps
            else ["no attention module hands over its query and key: attention counts as even"]
        )
        return Inspection(
            kind=self.kind,
            architecture=type(self.model).__name__,
            tower=self.tower.path,
            sites=read,
            attention=[path for path, _ in self.taps],
            context="mean hidden state of the prompt's text tokens at the first site",
            own=self.source.own,
            tokens=str(self.source),
            notes=none,
        )

    # -- one forward pass ------------------------------------------------------------------------------------

    def check(self, inputs: dict[str, Any]) -> None:
        finite_inputs(inputs, self.senses)
        ids = inputs.get("input_ids")
        if ids is None and self.encoder_decoder and not getattr(self.source, "reads_text", False):
            return
        token_ids(ids, "input_ids", "(B, T)")
        assert isinstance(ids, Tensor)
        mask = inputs.get("attention_mask")
        if mask is not None and mask.shape != ids.shape and "input_ids" in self._signature.parameters:
            raise ValueError(f"attention_mask has shape {tuple(mask.shape)}; {tuple(ids.shape)} is needed")
        without = self.source.missing(inputs)
        if without:
            raise ValueError(
                f"samples {without} have no image token {self.source.ids} in input_ids: nothing to look at"
            )

    def check_labels(self, labels: Any, ids: Tensor | None) -> Tensor:
        """(B, T) token ids with IGNORE where nothing is taught; at least one is, and (but for an
        encoder-decoder) none at the first position."""
        fits = isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point()
        if not fits or (not self.encoder_decoder and ids is not None and labels.shape != ids.shape):
            given = (
                f"shape {tuple(labels.shape)}, {labels.dtype}"
                if isinstance(labels, Tensor)
                else type(labels).__name__
            )
            shape = "(B, T)" if ids is None or self.encoder_decoder else tuple(ids.shape)
            raise ValueError(f"labels are {given}; whole numbers of shape {shape} are needed")
        vocabulary = self._vocabulary()
        wrong = labels[(labels != IGNORE) & ((labels < 0) | (labels >= vocabulary))]
        if wrong.numel():
            raise ValueError(f"labels {wrong.tolist()} are out of range: 0 to {vocabulary - 1}, or {IGNORE}")
        if not (self._taught(labels) != IGNORE).any():
            raise ValueError(f"every label is {IGNORE}: nothing is taught")
        return labels

    def check_classes(self, classes: list[str]) -> None:
        """What was learned as an answer is a token id of the vocabulary.

        Raises:
            ValueError: for classes that are none.
        """
        vocabulary = self._vocabulary()
        wrong = [key for key in classes if not key.isdecimal() or int(key) >= vocabulary]
        if wrong:
            raise ValueError(f"the learned answers {wrong} are no token ids, 0 to {vocabulary - 1}")

    def _vocabulary(self) -> int:
        return int(self.model.config.get_text_config(decoder=True).vocab_size)

    def _taught(self, labels: Tensor) -> Tensor:
        """The labels, each at the place that answers it: (B, T) or (B, T - 1)."""
        return labels if self.encoder_decoder else labels[:, 1:]

    def with_answers(self, inputs: dict[str, Any], labels: Tensor) -> dict[str, Any]:
        """The inputs of the pass that these labels are taught in."""
        if not self.encoder_decoder or "decoder_input_ids" in inputs:
            return inputs
        config = self.model.config.get_text_config(decoder=True)
        known = (self.model.generation_config, self.model.config, config)

        def first(name: str) -> int:
            return next((int(v) for c in known if (v := getattr(c, name, None)) is not None), 0)

        ids = labels.masked_fill(labels == IGNORE, first("pad_token_id"))
        start = torch.full_like(ids[:, :1], first("decoder_start_token_id"))
        return {**inputs, "decoder_input_ids": torch.cat([start, ids[:, :-1]], 1)}

    def begin(self, inputs: Mapping[str, Any], question: int | None = None) -> None:
        """A pass of the model begins, or a `generate` whose prompt is `question` tokens long."""
        given = {k: v for k, v in inputs.items() if v is not None}
        shows = any(name in given for name in self.senses) or bool(given.get("mm_encoder_outputs"))
        now = self.now
        if now.question is None:  # no `generate` runs: a pass stands alone, unless it goes on from a cache
            self.now = Pass(given, shows, question, now.seen if goes_on(given) else None)
        else:
            self.now = Pass({**now.asked, **given}, shows or now.fresh, now.question, now.seen)

    def rest(self) -> None:
        """A pass is over: let go of its inputs, and keep what a decoding step would go on from."""
        if self.now.question is None:
            self.now = Pass({}, seen=self.now.seen)

    def end(self, before: Pass | None = None) -> None:
        """Let go of everything that is known of the pass or of the prompt, or go back to what was before."""
        self.now = Pass({}) if before is None else before
        if isinstance(self.source, Attended):
            self.source.states = None

    def rows(self, args: tuple[Any, ...], kwargs: dict[str, Any], labels: Tensor | None = None) -> Tensor:
        """The query rows whose attention is wanted, counted from the end (so negative), (R,): those that
        logits are kept for, after the last image; or those that answer a taught label."""
        if labels is not None:
            taught = (self._taught(labels) != IGNORE).any(0).nonzero().flatten()
            return taught - labels.shape[1]
        inputs = self._signature.bind_partial(*args, **kwargs).arguments
        inputs = {**inputs, **inputs.get("kwargs", {})}
        names: tuple[str, ...] = ("input_ids", "inputs_embeds")
        if self.encoder_decoder:
            names = ("decoder_input_ids", "decoder_inputs_embeds", "labels")
        length = next((inputs[n].shape[1] for n in names if isinstance(inputs.get(n), Tensor)), 1)
        if isinstance(self.source, InSequence) and self.now.fresh:
            where = self.source.where(self.now.asked, length)
            if where is not None and where.shape[1] == length and where.any():
                self.now.last = int(where.any(0).nonzero().flatten()[-1]) - length
        keep = inputs.get("logits_to_keep")
        if isinstance(keep, Tensor):
            keep = keep.cpu()
            return torch.where(keep < 0, keep, keep - length)
        kept = min(int(keep or length), length)
        return torch.arange(-kept if self.now.last is None else max(self.now.last, -kept), 0)

    def look(self, capture: Capture, labels: Tensor | None = None) -> Seen | None:
        """The visual tokens of this pass if it shows images, else those that a decoding step goes on from."""
        capture.tokens = {s: self._sequence(t) for s, t in capture.tokens.items()}
        if self.short is not None and self.now.fresh:
            capture.tokens = {s: self.short.restored(t) for s, t in capture.tokens.items()}
        hidden = capture.tokens[self.sites[0]]
        now, batch = self.now, hidden.shape[0]
        seen = None
        if now.fresh or isinstance(self.source, Attended):
            asked = {k: _spread_rows(v, batch) for k, v in now.asked.items()}
            text = self._question(asked, hidden, labels)
            seen = self.source.read(capture, asked, hidden, text)
        if seen is not None:
            there = seen.mask
            seen = standing(seen, there, self.model, now.asked)
            if now.fresh:
                seen = self.source.matched(seen, capture, asked, text)
            elif now.seen is not None:
                seen = replace(seen, words=now.seen.words)  # the question stays what it was
            if self.short is not None:
                seen = standing(among(seen, self.short), there, self.model, now.asked)
            self.now = replace(now, seen=seen, fresh=False)
        elif now.seen is not None and len(now.seen.words) != batch:
            self.now = replace(now, seen=None)
        return self.now.seen

    def _question(self, asked: dict[str, Any], hidden: Tensor, labels: Tensor | None) -> Tensor:
        """Which positions of the decoder's sequence may count as the question: no padding, no answer."""
        batch, length = hidden.shape[:2]
        text = torch.ones(batch, length, dtype=torch.bool, device=hidden.device)
        mask = asked.get("attention_mask")
        if (
            isinstance(mask, Tensor)
            and mask.dim() == 2
            and mask.shape[1] <= length
            and not self.encoder_decoder
        ):
            text[:, length - mask.shape[1] :] &= mask.bool()
        if labels is not None and not self.encoder_decoder:  # the answer is no part of the question
            before = (labels != IGNORE).long().cumsum(1) == 0
            text[:, length - labels.shape[1] :] &= before
        if self.now.question is not None and not self.encoder_decoder:
            ids = asked.get("input_ids")
            front = length - ids.shape[1] if isinstance(ids, Tensor) and ids.shape[1] <= length else 0
            text[:, front + self.now.question :] = False
        return text

    def _sequence(self, hidden: Tensor) -> Tensor:
        """(B, T, d) of a block's output: the parallel streams of a residual are averaged."""
        if hidden.dim() == 4:
            return hidden.mean(2 if self.family.streams is None else self.family.streams)
        folded = hidden.unflatten(-1, (-1, self.tower.width))  # streams side by side in one vector
        return hidden if folded.shape[2] == 1 else folded.mean(2)

    def percept(self, capture: Capture, seen: Seen, sample: Tensor, place: Tensor, row: Tensor) -> Percept:
        """One percept per (sample, position): `place` in the decoder's sequence (from the end), `row` in the
        captured attention rows, all (P,). The positions of one sample share its tokens."""
        last = capture.tokens[len(self.tower.blocks) - 1]
        mask = seen.mask[sample]
        whole = bool(mask.all())
        return Percept(
            tokens=seen.tokens,
            attention=self._attention(capture.rows(), seen, sample, row),
            context=seen.words[sample],
            own=None if seen.match is None else seen.match[sample],
            mask=None if whole else mask.clone(),
            state=last[sample, place],
            grid=seen.grid,
            grids=None if seen.grids is None else seen.grids[sample],
            asked="sequence",
            sample=sample.to(seen.place.device),
            made=None if self.now.question is None else seen.made,  # kept as long as `generate` runs
        )

    def _attention(self, heard: Tensor | None, seen: Seen, sample: Tensor, row: Tensor) -> Tensor:
        """The answer's attention over the visual tokens, (P, N); even where none was heard."""
        place = seen.place[sample]
        own = 0
        if heard is not None and isinstance(self.source, Attended):
            own = max(heard.shape[-1] - seen.length, 0)  # merged attention sees the decoder's own keys first
        if heard is None or int(place.max()) + own >= heard.shape[-1]:  # a sliding cache let the images go
            return torch.full(place.shape, 1 / place.shape[1], device=place.device)
        return agreed(heard[:, sample, row].gather(2, (place + own).expand(len(heard), -1, -1)))

    def augment(self, capture: Capture, learner: Answering, output: Any, rows: Tensor) -> Any:
        """The speaker's output with what was learned in its logits, at the positions `rows` (from the end).

        `.relevance` (B, N) and `.surprise` (B,) are those of the last position; a sample that shows no
        picture keeps the model's own logits, and has zeros.
        """
        if isinstance(output, tuple):
            raise ValueError("return_dict=False leaves no place for relevance; use return_dict=True")
        seen = self.look(capture)
        if seen is None or not len(rows):
            return output  # no image was seen: nothing to add
        logits, loss = output.logits, getattr(output, "loss", None)
        if loss is not None or logits.requires_grad:  # else nobody needs the model's own once more
            logits = logits.clone()
        batch, kept, vocabulary = logits.shape
        columns = torch.arange(-kept, 0) if len(rows) == kept else rows
        known = token_rows(learner.classes, vocabulary, logits.device)
        last = self.now.last
        chosen = torch.arange(len(rows)) if last is None else (rows >= last).nonzero().flatten()
        if not len(chosen):
            return output  # every place that was asked for stands before the last image
        shown = seen.mask.any(1).nonzero().flatten().cpu()  # to the others no picture was shown
        for some in chosen.split(max(_CHUNK // batch, 1)):
            sample, index = shown.repeat_interleave(len(some)), some.repeat(len(shown))
            answer = learner.answer(self.percept(capture, seen, sample, rows[index], index))
            column = columns[index]
            logits[sample, column] = learner.fuse(logits[sample, column], known, answer)
        if loss is not None:
            output.loss = losses.of_words(self.taught, self.now.asked, loss, output.logits, logits)
        output.logits = logits
        ends = torch.arange(1, len(shown) + 1) * len(some) - 1
        output.relevance, output.surprise = answer.relevance[ends], answer.surprise[ends]
        if len(shown) < batch:
            whole = (output.relevance.new_zeros(seen.mask.shape), output.surprise.new_zeros(batch))
            whole[0][shown], whole[1][shown] = output.relevance, output.surprise
            output.relevance, output.surprise = whole
        return output

    def taught(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """Of every taught label: sample, place from the end, row among those captured, name."""
        answers = self._taught(labels)
        taught = answers != IGNORE
        sample, place = taught.nonzero(as_tuple=True)
        row = torch.searchsorted(taught.any(0).nonzero().flatten(), place)
        return sample, place - labels.shape[1], row, [str(int(t)) for t in answers[taught]]


def goes_on(inputs: Mapping[str, Any]) -> bool:
    """Whether a pass goes on from one before: it brings a cache with something in it."""
    caches = [inputs[name] for name in ("past_key_values", "cache") if name in inputs]
    return any(c.get_seq_length() > 0 if hasattr(c, "get_seq_length") else bool(c) for c in caches)


def _spread_rows(value: Any, batch: int) -> Any:
    """Of a tensor with a row per sample, each row as often as beams were made of its sample."""
    if isinstance(value, Tensor) and value.dim() == 2 and 0 < len(value) < batch and batch % len(value) == 0:
        return value.repeat_interleave(batch // len(value), 0)
    return value
