"""The exam of selection: is a question still answered from k of a picture's tokens? Every question counts."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from arr_coc.adapters import attach, embedded
from arr_coc.adapters.keeping import Keeping
from arr_coc.eval.mosaic_questions import mosaics
from arr_coc.eval.selection_baselines import WAYS, Chosen, Evidence
from arr_coc.training import questions
from arr_coc.training.generative_model import IMAGE
from arr_coc.training.questions import PROMPT
from arr_coc.training.train_generative import pixels

BUDGETS = (48, 32, 16, 8)  # of 144: n / 3, 2 n / 9, n / 9, n / 18
BATCH = 50


@dataclass(frozen=True)
class Sample:
    """A question about a picture.

    Args:
        image: the picture's number. kind: of question. truth: tokens of the tile that is asked about,
            (12, 12), or None.
        seed: of the scenes. chance: seed of what is drawn for this question.
    """

    picture: Image.Image
    image: int
    text: str
    answer: str
    kind: str
    truth: NDArray[np.bool_] | None
    seed: int
    chance: int


@dataclass
class Scores:
    """1 where a question was answered right: `full` (Q,), and by way and budget (Q,)."""

    samples: list[Sample]
    full: NDArray[np.float64]
    kept: dict[str, dict[int, NDArray[np.float64]]] = field(default_factory=dict)

    def by_image(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean over each image's questions, which are not independent, (I,)."""
        number = np.unique([s.image for s in self.samples], return_inverse=True)[1]
        return np.bincount(number, right) / np.bincount(number)


def scenes_of(kind: str, count: int, seed: int, split: str = "test") -> list[Sample]:
    """`count` pictures and their questions. kind: "2x2" or "3x3" mosaics, two questions each; "single":
    easy-VQA's pictures of one item, two questions each."""
    if kind in ("2x2", "3x3"):
        made = mosaics(int(kind[0]), count, seed, split=split)
        return [
            Sample(m.image, n, q.text, q.answer, q.kind, m.truth(q), seed, 2 * n + j)
            for n, m in enumerate(made, 10000 * seed)
            for j, q in enumerate(m.questions)
        ]
    if kind != "single":
        raise ValueError(f"no pictures {kind!r}; there are 2x2, 3x3 and single")
    pictures, turns = questions.easy_vqa(split)
    rng = np.random.default_rng([seed, 70])
    samples = []
    for i in rng.permutation(len(pictures))[:count]:
        for j in rng.permutation(len(turns[i]))[:2]:
            t, n = turns[i][j], 10000 * seed + int(i)
            samples.append(Sample(pictures[i], n, t.question, t.answer, t.kind, None, seed, 100 * n + int(j)))
    return samples


class Examiner:
    """The built-in generative model, asked with all tokens or with some.

    An answer is right where every token of it, and the end behind it, is the likeliest one after those
    before: the same as being written by greedy decoding.
    """

    def __init__(self) -> None:
        model, self.processor = embedded.load("generative")
        self.model: Any = model
        self.model.set_attn_implementation("eager")
        self.attached = attach(self.model, processor=self.processor)
        self.words = self.processor.tokenizer
        image = self.words.convert_tokens_to_ids(IMAGE)
        before, self._after = PROMPT.split("\n")
        head = self.words(before)["input_ids"]
        self.image, place = image, head.index(image)
        self.front, self.behind = head[:place], head[place + 1 :]

    @torch.inference_mode()
    def evidence(self, samples: Sequence[Sample]) -> list[Evidence]:
        """What every way of choosing may use."""
        found: list[Evidence] = []
        for start in range(0, len(samples), BATCH):
            some = samples[start : start + BATCH]
            shown, of_class, keys = self._see([s.picture for s in some])
            ids, attended = self._prompts(some, shown.shape[1])
            embedded_ids = self.model.get_input_embeddings()(ids)
            visual = ids == self.image
            given = embedded_ids.masked_scatter(visual[..., None], shown)
            position = (attended.cumsum(1) - 1).clamp_min(0)
            keeping = Keeping(
                self.attached, {"input_ids": ids, "attention_mask": attended}, shown.shape[1], 0.0
            )
            passed = {"inputs_embeds": given, "attention_mask": attended, "position_ids": position}
            # the pictures' grid is not told by pixels here
            keeping.inputs = {**keeping.inputs, "pixel_values": torch.empty(len(some), 3, 96, 96)}
            keeping.choose(passed)
            unworded = replaced(keeping)
            unworded.choose(passed)
            with self.attached.disable():
                out = self.model.model.language_model(**passed, use_cache=False, output_attentions=True)
            assert keeping.kept is not None
            assert unworded.kept is not None
            for b, s in enumerate(some):
                seen = visual[b]
                found.append(
                    Evidence(
                        shown[b],
                        keys[b],
                        of_class[b],
                        torch.stack([a[b, :, -1][:, seen].mean(0) for a in out.attentions]),
                        keeping.kept.relevance[b],
                        unworded.kept.relevance[b],
                        None if s.truth is None else torch.from_numpy(s.truth.ravel()),
                        s.chance,
                        keeping.kept.contexts[b],
                    )
                )
        return found

    def _see(self, pictures: list[Image.Image]) -> tuple[Tensor, Tensor, Tensor]:
        """Visual tokens (B, N, d), the class token's attention (B, N), and keys (B, N, e)."""
        heard: list[Tensor] = []
        tower = self.model.model.vision_tower
        key = [m for path, m in tower.named_modules() if path.endswith("k_proj")][-1]
        hook = key.register_forward_hook(lambda module, args, out: heard.append(out))
        try:
            with self.attached.disable():
                out = tower(pixels(pictures), output_attentions=True)
        finally:
            hook.remove()
        shown = self.model.model.multi_modal_projector(out.last_hidden_state[:, 1:])
        return shown, out.attentions[-1][:, :, 0, 1:].mean(1), heard[-1][:, 1:]

    def _prompts(self, samples: Sequence[Sample], count: int) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask, padded on the left."""
        made = [[*self.front, *[self.image] * count, *self.behind, *self._question(s)] for s in samples]
        length = max(map(len, made))
        ids = torch.tensor([[self.words.pad_token_id] * (length - len(m)) + m for m in made])
        attended = torch.tensor([[0] * (length - len(m)) + [1] * len(m) for m in made])
        return ids, attended

    def _question(self, sample: Sample) -> list[int]:
        return self.words(self._after.format(question=sample.text))["input_ids"]

    @torch.inference_mode()
    def right(
        self, samples: Sequence[Sample], evidence: Sequence[Evidence], chosen: Sequence[Chosen] | None
    ) -> NDArray[np.float64]:
        """1 where the answer is right from the chosen tokens, all of one number (None: from all), (Q,)."""
        found = [
            self._right(
                samples[i : i + BATCH],
                evidence[i : i + BATCH],
                None if chosen is None else chosen[i : i + BATCH],
            )
            for i in range(0, len(samples), BATCH)
        ]
        return np.concatenate(found)

    def _right(
        self, samples: Sequence[Sample], evidence: Sequence[Evidence], chosen: Sequence[Chosen] | None
    ) -> NDArray[np.float64]:
        batch, count = len(samples), len(evidence[0].tokens)
        place = torch.arange(count).expand(batch, count)
        tokens = torch.stack([e.tokens for e in evidence])
        if chosen is not None:
            place = torch.stack([c.place for c in chosen])
            tokens = torch.stack(
                [
                    e.tokens[c.place] if c.tokens is None else c.tokens
                    for e, c in zip(evidence, chosen, strict=True)
                ]
            )
        asked = [[*self.behind, *self._question(s)] for s in samples]
        wanted = [[*self.words(s.answer)["input_ids"], self.words.eos_token_id] for s in samples]
        rows = [a + w for a, w in zip(asked, wanted, strict=True)]
        length = max(map(len, rows))  # padding behind is seen by nothing that counts
        ids = torch.tensor([r + [self.words.pad_token_id] * (length - len(r)) for r in rows])
        table = self.model.get_input_embeddings()
        front = table(torch.tensor(self.front)).expand(batch, -1, -1)
        start = len(self.front)
        later = torch.arange(start + count, start + count + length).expand(batch, -1)
        position = torch.cat([torch.arange(start).expand(batch, -1), place + start, later], 1)
        given = torch.cat([front, tokens, table(ids)], 1)
        with self.attached.disable():
            # without a mask, positions with gaps would be taken for several sequences in one row
            there = torch.ones_like(position)
            out = self.model.model.language_model(
                inputs_embeds=given, position_ids=position, attention_mask=there, use_cache=False
            )
        begin = given.shape[1] - length
        right = np.zeros(batch)
        for b, (a, w) in enumerate(zip(asked, wanted, strict=True)):
            last = begin + len(a) - 1
            told = self.model.lm_head(out.last_hidden_state[b, last : last + len(w)]).argmax(1).tolist()
            right[b] = told == w
        return right


def replaced(keeping: Keeping) -> Keeping:
    """The same choice by somebody to whom the question's words say nothing."""
    other = copy.copy(keeping)
    other.content = torch.zeros_like(keeping.content)
    return other


def exam(
    examiner: Examiner,
    samples: list[Sample],
    ways: Sequence[str] = tuple(WAYS),
    budgets: Sequence[int] = BUDGETS,
    progress: Callable[[str], None] = lambda said: None,
) -> Scores:
    """Ask everything with all tokens, and with k of them chosen in every way."""
    evidence = examiner.evidence(samples)
    scores = Scores(samples, examiner.right(samples, evidence, None))
    for name in ways:
        if name == "tile" and any(e.truth is None for e in evidence):
            continue
        progress(name)
        scores.kept[name] = {
            k: examiner.right(samples, evidence, [WAYS[name].choose(e, k) for e in evidence]) for k in budgets
        }
    return scores


def joined(parts: Sequence[Scores]) -> Scores:
    """Scores of several seeds as one."""
    names = [n for n in parts[0].kept if all(n in p.kept for p in parts)]
    kept = {n: {k: np.concatenate([p.kept[n][k] for p in parts]) for k in parts[0].kept[n]} for n in names}
    return Scores([s for p in parts for s in p.samples], np.concatenate([p.full for p in parts]), kept)
