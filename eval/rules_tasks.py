"""What learning rules are compared on: digits, garments, and garments seen through the built-in tower."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arr_coc.eval.percepts import Progress
from arr_coc.ladder import Ladder
from arr_coc.training import items


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


def tower(depth: int, width: int, seed: int, progress: Progress | None = None) -> Task:
    """Fashion-MNIST through the built-in dual encoder: one site per rung drives the ladder, the image's
    embedding enters below. 4,000 garments to learn from, 2,000 to test on."""
    from PIL import Image

    from arr_coc.adapters import attach, embedded
    from arr_coc.config import ArrCocConfig

    model, processor = embedded.load("dual")
    blocks = model.config.vision_config.num_hidden_layers
    sites = tuple(round((k + 1) * blocks / depth) - 1 for k in range(depth))
    attached = attach(model, ArrCocConfig(sites=sites))
    shape = Ladder(attached.body.site_widths, attached.body.context_width, 0, width, 0, 0)
    texts = processor(text=["a garment"], return_tensors="pt", padding=True)
    split_of = {}
    try:
        for name, (images, label) in zip(("train", "test"), _garments(seed, 4_000, 2_000), strict=True):
            entering, driving = [], []
            for start in range(0, len(images), 100):
                some = [
                    Image.fromarray((255 * i).astype(np.uint8)).convert("RGB")
                    for i in images[start : start + 100]
                ]
                pixels = processor(images=some, return_tensors="pt")["pixel_values"]
                seen = attached.perceive(pixel_values=pixels, **texts).percept
                entering.append(torch.nn.functional.normalize(seen.context, dim=1))
                driving.append(shape.features(seen.tokens).mean(1))
                if progress is not None:
                    progress(f"frozen forward ({name})", start, len(images))
            split_of[name] = (torch.cat(entering), torch.cat(driving), label)
    finally:
        attached.detach()
    below, drive, label = split_of["train"]
    test_below, test_drive, test_label = split_of["test"]
    return Task(f"tower, depth {depth}", depth, 10, below, drive, label, test_below, test_drive, test_label)


TASKS: dict[str, Callable[..., Task]] = {"digits": digits, "fashion": fashion, "tower": tower}


def load(name: str, depth: int, width: int, seed: int, progress: Progress | None = None) -> Task:
    """A task by name.

    Raises:
        ValueError: for a name that there is not.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r}: possible are {', '.join(TASKS)}")
    return TASKS[name](depth, width, seed, progress)
