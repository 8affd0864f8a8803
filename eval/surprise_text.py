"""Token sequences, measured: is the next state predicted, and do words out of order surprise?

The built-in generative model reads the questions of `scene-qa` with their answers, all kinds mixed, once and
one by one; then held-out ones, as they are and with the words of the question shuffled. Nothing but what
follows what is learned, and the model's weights stay as they are.
- error: mean square of the next token's state (layer-normalised, so that an even prediction of 0 scores 1),
  against "same as last", "mean" and the least-squares solution on the texts learned from, which is the bound.
- order: AUROC over held-out questions, shuffled against well-formed, of a text's mean surprise, of what is
  announced (less is odder), and of the frozen model's own -log p of the question's tokens.
- words: AUROC over the words of a question of relevance for those that name an item, a colour or a place.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arr_coc.adapters import attach, embedded
from arr_coc.config import ArrCocConfig
from arr_coc.eval.percepts_words import said
from arr_coc.eval.relevance_metrics import auroc
from arr_coc.sequence import SequenceErrors, Text, follows
from arr_coc.training import streams

LEARNED, HELD = 360, 180
# words of the questions' templates; all others name something
TEMPLATE = frozenset(
    ("what", "where", "is", "the", "a", "how", "many", "are", "there", "in", "item", "colour")
)
Scores = dict[str, float]


@dataclass(frozen=True)
class Batch:
    """Texts of one pass, the frozen model's own -log p per token of each, and which tokens name something.

    Args:
        text: B texts.
        own: (B,), nats.
        names: (B, T) bool.
    """

    text: Text
    own: Tensor
    names: Tensor


def shuffled(question: str, chance: np.random.Generator) -> str:
    """The question with its words in another order; the mark stays behind them."""
    words = question.rstrip("?").split()
    while True:
        mixed = [words[i] for i in chance.permutation(len(words))]
        if mixed != words:
            return " ".join(mixed) + "?"


def read(
    attached: Any, processor: Any, samples: Sequence[Any], order: Callable[[str], str], batch: int = 16
) -> list[Batch]:
    """What the frozen model makes of samples' questions, each put in this order."""
    found = []
    for start in range(0, len(samples), batch):
        some = [samples[i] for i in range(start, min(start + batch, len(samples)))]
        asked = [order(s["context"]) for s in some]
        inputs, labels = said(processor, [s["image"] for s in some], asked, [s["label"] for s in some])
        seen = attached.perceive(labels=labels, **inputs)
        ids, image = inputs["input_ids"], attached.model.config.image_token_id
        words = inputs["attention_mask"].bool() & (ids != image) & (labels == -100)
        pairs = words[:, 1:] & words[:, :-1]
        log_p = seen.output.logits[:, :-1].float().log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        own = -(log_p * pairs).sum(1) / pairs.sum(1)
        found.append(Batch(seen.text, own.clone(), _names(processor, ids, words, seen.text)))
    return found


def _names(processor: Any, ids: Tensor, words: Tensor, text: Text) -> Tensor:
    """Which tokens of the question belong to a word that names something, as the text's tokens stand."""
    named = torch.zeros_like(text.mask)
    for b, row in enumerate(ids.tolist()):
        # the answer comes behind the question, so a place among its words is one in the text
        asked = [token for token, there in zip(row, words[b].tolist(), strict=True) if there]
        spoken = _whole(processor.tokenizer.convert_ids_to_tokens(asked))
        begin = next((i for i, w in enumerate(spoken) if w == ":"), -1) + 1
        end = next((i for i, w in enumerate(spoken) if w == "?"), len(spoken))
        for i in range(begin, end):
            named[b, i] = spoken[i] not in TEMPLATE
    return named


def _whole(pieces: Sequence[str]) -> list[str]:
    """Of each piece the whole word that it belongs to: a word's further pieces begin with ##."""
    spoken: list[str] = []
    start = 0
    for i, piece in enumerate(pieces):
        start = start if piece.startswith("##") else i
        word = "".join(p.removeprefix("##") for p in pieces[start : i + 1])
        spoken[start:] = [word] * (i + 1 - start)
    return spoken


def learned(batches: Sequence[Batch], wide: int, **options: Any) -> SequenceErrors:
    """What one pass over these texts leaves, one text at a time."""
    made = SequenceErrors(wide, wide, **options)
    for batch in batches:
        for row in range(len(batch.text.mask)):
            made.learn(batch.text.states[row : row + 1], batch.text.mask[row : row + 1])
    return made


def transitions(made: SequenceErrors, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """All states that another follows, and those, (P, W) each."""
    now, after = [], []
    for batch in batches:
        z, pairs = made.features(batch.text.states), follows(batch.text.mask)
        now.append(z[:, :-1][pairs])
        after.append(z[:, 1:][pairs])
    return torch.cat(now), torch.cat(after)


def scored(made: SequenceErrors, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Mean surprise, and mean of what is announced, of each text."""
    surprise, announced = [], []
    for batch in batches:
        surprise.append(made.read(batch.text).mean)
        said = made.announced(made.features(batch.text.states), batch.text.mask)
        announced.append(said.sum(1) / follows(batch.text.mask).sum(1))
    return torch.cat(surprise), torch.cat(announced)


def errors(made: SequenceErrors, plain: SequenceErrors, train: list[Batch], held: list[Batch]) -> Scores:
    """Mean square of the next state, by each predictor."""
    before, then = transitions(made, train)
    now, after = transitions(made, held)
    ones = torch.nn.functional.pad
    best = torch.linalg.lstsq(ones(before, (0, 1), value=1.0), then, driver="gelsd").solution
    predicted = {
        "learned": made.predicted(now),
        "learned without a key": plain.predicted(now),
        "same as last": now,
        "mean": then.mean(0),
        "least squares": ones(now, (0, 1), value=1.0) @ best,
    }
    return {f"error, {name}": float(((after - p) ** 2).mean()) for name, p in predicted.items()}


def measured(seed: int, learn: int = LEARNED, held: int = HELD, model: Any = None) -> Scores:
    """Every score of one seed."""
    bare, processor = embedded.load("generative") if model is None else model
    attached = attach(bare, ArrCocConfig(expansion=0, sequence=True))
    try:
        stream = streams.load("scene-qa", seed, n_train=learn, n_test=held, mixed=True)
        test = [sample for probe in stream.probes for sample in probe]
        chance = np.random.default_rng([seed, 15])
        train = read(attached, processor, stream.samples, str)
        right = read(attached, processor, test, str)
        mixed = read(attached, processor, test, lambda question: shuffled(question, chance))
        taught_wrong = read(attached, processor, stream.samples, lambda q: shuffled(q, chance))
    finally:
        attached.detach()
    wide = right[0].text.states.shape[2]
    made, plain = learned(train, wide), learned(train, wide, key=False, eta=1e-3)
    control = learned(taught_wrong, wide)
    found = errors(made, plain, train, right)

    def order(odd: Tensor, usual: Tensor) -> float:
        truth = np.arange(len(odd) + len(usual)) < len(odd)
        return auroc(torch.cat([odd, usual]).double().numpy(), truth)

    told = (("learned", made), ("without a key", plain), ("taught shuffled questions", control))
    for name, one in told:
        (f_odd, a_odd), (f_usual, a_usual) = scored(one, mixed), scored(one, right)
        found[f"order, surprise, {name}"] = order(f_odd, f_usual)
        if one is not plain:
            found[f"order, announced, {name}"] = order(-a_odd, -a_usual)
    own = [torch.cat([b.own for b in group]) for group in (mixed, right)]
    found["order, the model's own -log p"] = order(*own)
    found |= words(made, right)
    return found


def words(made: SequenceErrors, held: Sequence[Batch]) -> Scores:
    """How well relevance finds the words that name something, mean over questions."""
    scores: dict[str, list[float]] = {}
    gains = {"attention x features": 0.0, "and what was announced": 1.0}
    for batch in held:
        maps = {"attention": batch.text.attention}
        for name, gain in gains.items():
            made.gain = gain
            maps[name] = made.read(batch.text).relevance
            if gain:
                maps["announced alone"] = made.announced(made.features(batch.text.states), batch.text.mask)
        maps["surprise"] = made.read(batch.text).surprise
        made.gain = 0.0
        end = batch.text.attention > 0  # the causal row ends where the answer begins
        for b, truth in enumerate(batch.names):
            kept = batch.text.words[b] & end[b]
            if truth[kept].any() and not truth[kept].all():
                for name, values in maps.items():
                    one = auroc(values[b][kept].double().numpy(), truth[kept].numpy())
                    scores.setdefault(f"words, {name}", []).append(one)
    return {name: float(np.mean(values)) for name, values in scores.items()}
