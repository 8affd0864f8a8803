"""What a frozen tower gives to a linear readout, and the controls that stand beside it: pixels, random ReLU
features.

Nothing here learns inside a tower. Ridge regression is closed form, its penalty chosen on a held-back fifth.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F


@torch.inference_mode()
def look(model, processor, images: Sequence[Image.Image], batch: int = 64) -> dict[str, torch.Tensor]:
    """What the tower makes of images: hidden (N, 145, H) after the last norm, embed (N, D), tokens (N, 144,
    D).

    Tokens are projected as at use: visual_projection(post_layernorm(tokens)); neither is normalised.
    """
    hidden, projected = [], []
    for start in range(0, len(images), batch):
        pixels = processor.image_processor(list(images[start : start + batch]), return_tensors="pt")[
            "pixel_values"
        ]
        tower = model.vision_model
        h = tower.post_layernorm(tower(pixel_values=pixels.to(model.dtype)).last_hidden_state)
        hidden.append(h.float())
        projected.append(model.visual_projection(h).float())
    joined = torch.cat(projected)
    return {"hidden": torch.cat(hidden), "embed": joined[:, 0], "tokens": joined[:, 1:]}


@torch.inference_mode()
def say(model, processor, texts: Sequence[str]) -> torch.Tensor:
    """Normalised text embeddings (N, D)."""
    rows = []
    for start in range(0, len(texts), 256):
        inputs = processor.tokenizer(
            list(texts[start : start + 256]), padding=True, truncation=True, return_tensors="pt"
        )
        pooled = model.text_model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).pooler_output
        rows.append(F.normalize(model.text_projection(pooled).float(), dim=1))
    return torch.cat(rows)


def ridge(x: np.ndarray, y: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """W = (X'X + l I)^-1 X'Y on standardised features, l from seven by a held-back fifth. Returns mean,
    scale, W."""
    mean, scale = x.mean(0), x.std(0) + 1e-6
    z = np.c_[(x - mean) / scale, np.ones(len(x))].astype(np.float64)
    order = np.random.default_rng(seed).permutation(len(z))
    cut = len(z) // 5

    def solve(rows: np.ndarray, penalty: float) -> np.ndarray:
        a = z[rows]
        if a.shape[1] > len(a):  # the dual form is smaller
            return a.T @ np.linalg.solve(a @ a.T + penalty * np.eye(len(a)), y[rows])
        return np.linalg.solve(a.T @ a + penalty * np.eye(a.shape[1]), a.T @ y[rows])

    def cosine(w: np.ndarray) -> float:
        guess, truth = z[order[:cut]] @ w, y[order[:cut]]
        return float(((guess * truth).sum(1) / np.linalg.norm(guess, axis=1)).mean())

    penalty = max(10.0 ** np.arange(-1, 6), key=lambda p: cosine(solve(order[cut:], p)))
    return mean, scale, solve(order, penalty)


def apply(fitted: tuple[np.ndarray, np.ndarray, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The fitted map's values (N, K)."""
    mean, scale, w = fitted
    return np.c_[(x - mean) / scale, np.ones(len(x))] @ w


def ridge_accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy of one-hot ridge regression."""
    targets = np.eye(int(labels.max()) + 1)[labels]
    return float((apply(ridge(train, targets), test).argmax(1) == truth).mean())


def pixels(images: Sequence[Image.Image], side: int = 24) -> np.ndarray:
    """Raw RGB pixels at `side` px, (N, 3 side^2), 0 to 1."""
    return np.stack(
        [np.asarray(i.resize((side, side), Image.Resampling.BOX)).reshape(-1) / 255 for i in images]
    )


def random_relu(x: np.ndarray, width: int = 2000, seed: int = 0) -> np.ndarray:
    """relu(x W + b) with W, b drawn once; x is centred and brought to unit mean norm first."""
    rng = np.random.default_rng(seed)
    x = (x - x.mean(0)) / np.linalg.norm(x - x.mean(0), axis=1).mean()
    return np.maximum(x @ rng.normal(size=(x.shape[1], width)) + rng.normal(size=width) * 0.5, 0)


def pooled(hidden: torch.Tensor) -> np.ndarray:
    """The tower's features: the class token beside the mean of the patch tokens, (N, 2H)."""
    return torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], 1).numpy()


def gridded(hidden: torch.Tensor) -> np.ndarray:
    """The patch tokens averaged in 3 x 3 blocks, kept side by side, (N, 9H)."""
    n, _, width = hidden.shape
    blocks = hidden[:, 1:].reshape(n, 3, 4, 3, 4, width).mean((2, 4))
    return blocks.reshape(n, -1).numpy()
