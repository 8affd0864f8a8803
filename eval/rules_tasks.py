"""What learning rules are compared on: digits, garments, and garments and scenes of them seen through the
built-in tower."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from arr_coc.config import ArrCocConfig
from arr_coc.eval.percepts import Progress
from arr_coc.learner import Learner
from arr_coc.percept import Percept
from arr_coc.training import items, streams
from arr_coc.training.streams import Rendered, Sample


@dataclass(frozen=True)
class Task:
    """Samples for a ladder, standardised with the training split's mean and standard deviation.

    Args:
        name: with its depth, as in the table.
        depth: rungs of the ladder.
        classes: how many.
        below, drive: z_0 (N, C) and x_l of all rungs side by side (N, L * width), or None: no drives.
        label: (N,). `test_` is the held-out split of each.
    """

    name: str
    depth: int
    classes: int
    below: Tensor
    drive: Tensor | None
    label: Tensor
    test_below: Tensor
    test_drive: Tensor | None
    test_label: Tensor


def _standardised(train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
    mean, spread = train.mean(0), train.std(0) + 0.1  # pixels that never change stay near 0
    return tuple(torch.from_numpy((x - mean) / spread).float() for x in (train, test))  # type: ignore[return-value]


def digits(depth: int, width: int, seed: int, progress: Progress | None = None) -> Task:
    """scikit-learn's 1,797 handwritten digits, 8 x 8; three quarters to learn from."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    order = np.random.default_rng([seed, 1]).permutation(len(bunch.target))
    cut = len(order) * 3 // 4
    train, test = _standardised(bunch.data[order[:cut]] / 16, bunch.data[order[cut:]] / 16)
    label = torch.from_numpy(bunch.target[order]).long()
    return Task(f"digits, depth {depth}", depth, 10, train, None, label[:cut], test, None, label[cut:])


def _garments(seed: int, n_train: int, n_test: int) -> list[tuple[np.ndarray, Tensor]]:
    """(images in [0, 1], labels) of both splits, (N, 28, 28)."""
    out = []
    for split, count in (("train", n_train), ("test", n_test)):
        images, labels, _ = items.fashion(split)
        some = np.random.default_rng([seed, split == "test"]).permutation(len(images))[:count]
        out.append((images[some].astype(np.float32) / 255, torch.from_numpy(labels[some]).long()))
    return out


def fashion(depth: int, width: int, seed: int, progress: Progress | None = None) -> Task:
    """Fashion-MNIST's pixels, 10,000 to learn from and 5,000 to test on."""
    (x, y), (test_x, test_y) = _garments(seed, 10_000, 5_000)
    train, test = _standardised(x.reshape(len(x), -1), test_x.reshape(len(test_x), -1))
    return Task(f"fashion, depth {depth}", depth, 10, train, None, y, test, None, test_y)


SCENES = (6_000, 1_200)
OWN_GAIN = 0.5  # at full weight the model's own score for two words settles on one of the two items
Relevant = Callable[[Learner, Percept, list[Sample]], Tensor]  # (B, N)


def _through_tower(
    name: str,
    depth: int,
    width: int,
    splits: Mapping[str, Sequence[Sample]],
    answers: list[str],
    relevant: Relevant,
    progress: Progress | None,
) -> Task:
    """Samples seen by the built-in dual encoder: one site per rung drives the ladder, pooled by `relevant`,
    and the context's embedding, or the image's own where there is no context, enters below."""
    from arr_coc.adapters import attach, embedded

    model, processor = embedded.load("dual")
    blocks = model.config.vision_config.num_hidden_layers
    sites = tuple(round((k + 1) * blocks / depth) - 1 for k in range(depth))
    attached = attach(model, ArrCocConfig(sites=sites, width=width, own_gain=OWN_GAIN), processor)
    texts = processor(text=answers, return_tensors="pt", padding=True)
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    try:
        for split, samples in splits.items():
            below, drive, label = [], [], []
            for start in range(0, len(samples), 100):
                some = [samples[i] for i in range(start, min(start + 100, len(samples)))]
                shown = processor(images=[s["image"] for s in some], return_tensors="pt")
                inputs = dict(shown) | dict(texts)
                if some[0]["context"] is not None:
                    said = processor(text=[s["context"] for s in some], return_tensors="pt", padding=True)
                    inputs["context_ids"] = said["input_ids"]
                    inputs["context_attention_mask"] = said["attention_mask"]
                percept = attached.perceive(**inputs).percept
                relevance = relevant(attached.learner, percept, some)
                features = attached.learner.ladder.features(percept.tokens)
                drive.append(torch.bmm(relevance.unsqueeze(1), features).squeeze(1))
                below.append(torch.nn.functional.normalize(percept.context, dim=1))
                label.append(torch.tensor([answers.index(s["label"]) for s in some]))
                if progress is not None:
                    progress(f"frozen forward ({split})", start, len(samples))
            seen.append((torch.cat(below), torch.cat(drive), torch.cat(label)))
    finally:
        attached.detach()
    return Task(f"{name}, depth {depth}", depth, len(answers), *seen[0], *seen[1])


def tower(depth: int, width: int, seed: int, progress: Progress | None = None) -> Task:
    """Fashion-MNIST through the built-in dual encoder, everything equally relevant. 4,000 garments to learn
    from, 2,000 to test on."""
    from PIL import Image

    def picture(of: tuple[np.ndarray, int]) -> Sample:
        image = Image.fromarray((255 * of[0]).astype(np.uint8)).convert("RGB")
        return {"image": image, "label": items.FASHION_CLASSES[of[1]], "context": None}

    splits = {
        split: Rendered(list(zip(images, label.tolist(), strict=True)), picture)
        for split, (images, label) in zip(("train", "test"), _garments(seed, 4_000, 2_000), strict=True)
    }

    def even(learner: Learner, percept: Percept, some: list[Sample]) -> Tensor:
        tokens = percept.tokens[0]
        return tokens.new_full(tokens.shape[:2], 1 / tokens.shape[1], dtype=torch.float32)

    return _through_tower("tower", depth, width, splits, list(items.FASHION_CLASSES), even, progress)


def same_different(
    depth: int, width: int, seed: int, progress: Progress | None = None, given: bool = False
) -> Task:
    """The stream `same-different` through the built-in dual encoder: are the two garments whose colours are
    said of one kind? 6,000 scenes to learn from, 1,200 to test on.

    Args:
        given: relevance is even on the true cells; otherwise it is the model's own for the two words, at half
            its weight, so that both items are read.
    """
    n_train, n_test = SCENES
    stream = streams.load("same-different", seed, n_train=n_train, n_test=n_test)

    def relevant(learner: Learner, percept: Percept, some: list[Sample]) -> Tensor:
        if not given:
            return learner.answer(percept).reading
        true = torch.from_numpy(np.stack([s["mask"] for s in some])).flatten(1).float()
        return true / true.sum(1, keepdim=True)

    name = "same-different-given" if given else "same-different"
    splits = {"train": stream.samples, "test": stream.probes[0]}
    return _through_tower(name, depth, width, splits, stream.classes, relevant, progress)


TASKS: dict[str, Callable[..., Task]] = {
    "digits": digits,
    "fashion": fashion,
    "tower": tower,
    "same-different": same_different,
    "same-different-given": partial(same_different, given=True),
}


def load(name: str, depth: int, width: int, seed: int, progress: Progress | None = None) -> Task:
    """A task by name.

    Raises:
        ValueError: for a name that there is not.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r}: possible are {', '.join(TASKS)}")
    return TASKS[name](depth, width, seed, progress)
