"""Token-level surprise, measured: does it point at the one item of a scene that is of a new class?

The plugin is told the cued item's class in scenes of 2 x 2 garments of eight classes, in one pass. Held-out
scenes have three items of those and one of the two classes that were kept out. AUROC of the tokens in the new
item's cell against those of the other three: a map that only finds items scores 1/2, and so does any map that
knows nothing. The cue asks for one of the items of classes met, and never for the new one. Mean over scenes.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from arr_coc.adapters import attach, embedded
from arr_coc.config import ArrCocConfig
from arr_coc.eval.percepts import TextBook, perceive_all
from arr_coc.eval.relevance_metrics import auroc
from arr_coc.learner import Learner
from arr_coc.token_surprise import token_surprise
from arr_coc.training.items import fashion
from arr_coc.training.scenes import CUE_COLOURS, background, compose, tint
from arr_coc.training.streams import PROMPT

LEARNED, HELD = 400, 120
Scores = dict[str, float]


def scene(chance: np.random.Generator, split: str, classes: list[int], new: list[int]) -> dict[str, Any]:
    """A scene as a stream's sample, one of its items cued; with `new` classes, an item of those beside it."""
    images, labels, names = fashion(split)
    (cell, odd), tints = chance.permutation(4)[:2].tolist(), chance.permutation(len(CUE_COLOURS))[:4]
    picked = []
    for place in range(4):
        of = new if new and place == odd else classes
        picked.append(int(chance.choice(np.flatnonzero(np.isin(labels, of)))))
    items = [tint(images[i], CUE_COLOURS[c]) for i, c in zip(picked, tints, strict=True)]
    image, masks = compose(items, 2, background(chance), chance)
    return {
        "image": image,
        "label": PROMPT.format(names[labels[picked[cell]]]),
        "context": CUE_COLOURS[tints[cell]],
        "mask": masks[odd],
    }


def scored(seed: int, learn: int = LEARNED, held: int = HELD) -> Scores:
    """Every score of one seed."""
    chance = np.random.default_rng([seed, 16])
    order = chance.permutation(10).tolist()
    new, known = order[:2], order[2:]
    train = [scene(chance, "train", known, []) for _ in range(learn)]
    test = [scene(chance, "test", known, new) for _ in range(held)]
    for place, sample in enumerate([*train, *test]):
        sample["index"] = place
    model, processor = embedded.load("dual")
    names = [PROMPT.format(name) for name in fashion("train")[2]]
    attached = attach(model)
    try:
        groups: Any = [("train", train), ("test", test)]
        store = perceive_all(attached.perceive, TextBook(model, processor), groups, names)
    finally:
        attached.detach()
    learners = {
        name: Learner(ArrCocConfig(seed=seed, surprise=top), store.site_widths, store.context.shape[1])
        for name, top in (("surprise, of rungs", "context"), ("surprise, of answers", "answer"))
    }
    found: dict[str, list[float]] = {}
    with torch.no_grad():
        for row in range(learn):
            batch = store.batch(torch.tensor([row]))
            for learner in learners.values():
                learner.learn(batch.percept, batch.labels)
        for place, sample in enumerate(test):
            batch = store.batch(torch.tensor([learn + place]))
            maps: dict[str, Tensor] = {}
            for name, learner in learners.items():
                answer = learner.answer(batch.percept)
                maps[name] = token_surprise(learner, answer, batch.percept.grid)[0]
                maps[f"{name}, each token alone"] = token_surprise(learner, answer)[0]
                maps["relevance"] = answer.relevance[0]
            maps["attention"] = batch.percept.attention[0]
            features = answer.features[0]
            maps["distance from the scene's mean"] = (features - features.mean(0)).norm(dim=1)
            draw = torch.Generator().manual_seed(place)
            maps["random"] = torch.rand(len(features), generator=draw)
            for name, values in maps.items():
                one = auroc(values.double().numpy(), sample["mask"].flatten())
                found.setdefault(name, []).append(one)
    return {name: float(np.mean(values)) for name, values in found.items()}
