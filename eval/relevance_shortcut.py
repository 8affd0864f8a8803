"""P3, planted shortcut: twins that differ in what a corner dot told them, so a map of a model must differ on
it.

Both twins are small CLIPs of the same first weights, trained on the same handwritten digits with a coloured
dot in a corner. For one the dot's colour is the label's, for the other it is drawn at random. Both are then
shown the same held-out digits, and the score is the mass that a map has on the dot's token: twin that was
told minus twin that was not. A map that does not depend on the model scores exactly 0. (After Adebayo et al.,
2022, and Kindermans et al., 2019.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from arr_coc.adapters import attach
from arr_coc.adapters.dual_encoder import text_embedding
from arr_coc.config import ArrCocConfig
from arr_coc.eval import relevance_baselines as baselines
from arr_coc.eval.intervals import Range, paired_bootstrap
from arr_coc.eval.relevance_exam import METHODS, OWN
from arr_coc.eval.relevance_metrics import mass_accuracy
from arr_coc.training import items, scenes

SIDE, PATCH = 40, 8  # px: 5 x 5 tokens, the digit in the middle nine
CORNERS = ((0, 0), (0, 4), (4, 0), (4, 4))
PALETTE = np.array([*scenes.COLOURS.values(), (120, 70, 30)], np.uint8)  # one a digit
FAINT = 0.6  # of a digit's intensity: the dot is what is learned first
RATE = 1e-3
HELD = 300  # digits that no twin is trained on
ATTENTIVE = "arr-coc, with attention"  # a dual encoder's own relevance leaves the attention row out
OWN_MAPS = {OWN: ArrCocConfig(), ATTENTIVE: ArrCocConfig(attention_gain=1.0)}
MEASURED = (*OWN_MAPS, *(m for m in METHODS if m not in (OWN, "occlusion", "patch-text-softmax")))


@dataclass(frozen=True)
class Digits:
    """Pictures with a dot.

    Args:
        pixels: (N, 3, 40, 40), -1 to 1. labels: (N,). truth: the dot's token, (N, 25).
    """

    pixels: Tensor
    labels: Tensor
    truth: NDArray[np.bool_]


def digits(rng: np.random.Generator, which: NDArray[np.int64], revealing: bool) -> Digits:
    """These of scikit-learn's digits, each with a dot in a random corner: of its label's colour, or of a
    random one."""
    grey, labels = items.digits()
    canvas = np.zeros((len(which), SIDE, SIDE, 3), np.uint8)
    canvas[:, 8:32, 8:32] = (FAINT * grey[which][..., None]).astype(np.uint8)
    truth = np.zeros((len(which), 5, 5), bool)
    corner = rng.integers(4, size=len(which))
    colour = rng.integers(10, size=len(which))
    colour = labels[which] if revealing else colour
    for i, (c, k) in enumerate(zip(corner, colour, strict=True)):
        row, column = CORNERS[c]
        canvas[i, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = PALETTE[k]
        truth[i, row, column] = True
    pixels = torch.from_numpy(canvas).permute(0, 3, 1, 2).float() / 127.5 - 1
    return Digits(pixels, torch.from_numpy(labels[which]).long(), truth.reshape(len(which), -1))


def texts() -> Tensor:
    """Token ids of the ten labels, (10, 3): begin, the label, end."""
    return torch.tensor([[0, 3 + k, 1] for k in range(10)])


def twin(seed: int, revealing: bool, steps: int = 250, batch: int = 64) -> Any:
    """A CLIPModel of 5 x 5 tokens and three blocks, trained on digits whose dots do or do not tell the label.

    The seed decides the first weights, the digits and their order; these are the same whatever the dots tell.
    """
    from transformers import CLIPConfig, CLIPModel

    shape = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "hidden_act": "gelu"}
    vision = {**shape, "num_hidden_layers": 3, "image_size": SIDE, "patch_size": PATCH}
    words = {**shape, "num_hidden_layers": 1, "vocab_size": 16, "max_position_embeddings": 4}
    words |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=words, vision_config=vision, projection_dim=32))
    with torch.no_grad():  # as small as CLIP draws them, labels and patches take thousands of steps to part
        model.text_model.embeddings.token_embedding.weight.mul_(20)
        model.vision_model.embeddings.patch_embedding.weight.mul_(20)
    rng = np.random.default_rng([seed, 30])
    train = rng.permutation(len(items.digits()[1]))[HELD:]
    shown = digits(rng, train, revealing)
    order = np.random.default_rng([seed, 31])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    ids = texts()
    model.train()
    for step in range(steps):
        some = torch.from_numpy(order.choice(len(train), batch, replace=False))
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20, (steps - step) / 50)
        logits = model(pixel_values=shown.pixels[some], input_ids=ids).logits_per_image
        optimizer.zero_grad()
        F.cross_entropy(logits, shown.labels[some]).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def held_out(seed: int) -> Digits:
    """The digits that the twins of this seed never saw, with dots that tell the label."""
    which = np.random.default_rng([seed, 30]).permutation(len(items.digits()[1]))[:HELD]
    return digits(np.random.default_rng([seed, 32]), which, revealing=True)


@torch.no_grad()
def accuracy(model: Any, shown: Digits) -> float:
    """Of the ten texts, the right one."""
    said = model(pixel_values=shown.pixels, input_ids=texts()).logits_per_image.argmax(1)
    return float((said == shown.labels).float().mean())


def dot_mass(model: Any, shown: Digits, method: str, seed: int = 0) -> NDArray[np.float64]:
    """Mass accuracy on the dot's token of a method's map for the true label, one an image, (N,)."""
    if method in OWN_MAPS:
        attached = attach(model, OWN_MAPS[method])
        try:
            asked = texts()[shown.labels]
            maps = attached(pixel_values=shown.pixels, input_ids=texts(), context_ids=asked).relevance
        finally:
            attached.detach()
    else:
        with torch.no_grad():
            said = text_embedding(model.get_text_features(input_ids=texts()))[shown.labels].unsqueeze(1)
        maps_of, eye = METHODS[method].maps, baselines.open_eye(model)
        assert maps_of is not None
        maps = maps_of(eye, shown.pixels, said, torch.Generator().manual_seed(seed))[:, 0]
    return np.array([mass_accuracy(r, g) for r, g in zip(maps.double().numpy(), shown.truth, strict=True)])


@dataclass(frozen=True)
class Twins:
    """What pairs of twins showed.

    Args:
        accuracy: of the told and the untold twins on held-out digits with dots that tell, means.
        told, untold: by method, mean mass on the dot. difference: told minus untold, bootstrap over images.
    """

    accuracy: tuple[float, float]
    told: dict[str, float]
    untold: dict[str, float]
    difference: dict[str, Range]


def exam(seeds: Sequence[int], methods: Sequence[str] = MEASURED, steps: int = 250) -> Twins:
    """A pair of twins a seed; each method's mass on the dot in both, on the same held-out digits."""
    told: dict[str, list[NDArray[np.float64]]] = {m: [] for m in methods}
    untold: dict[str, list[NDArray[np.float64]]] = {m: [] for m in methods}
    right = []
    for seed in seeds:
        pair, shown = [twin(seed, revealing, steps) for revealing in (True, False)], held_out(seed)
        right.append([accuracy(model, shown) for model in pair])
        for model, into in zip(pair, (told, untold), strict=True):
            for m in methods:
                into[m].append(dot_mass(model, shown, m, seed))
    a, b = ({m: np.concatenate(v) for m, v in of.items()} for of in (told, untold))
    first, second = np.mean(right, 0).tolist()
    return Twins(
        accuracy=(first, second),
        told={m: float(v.mean()) for m, v in a.items()},
        untold={m: float(v.mean()) for m, v in b.items()},
        difference={m: paired_bootstrap(a[m], b[m]) for m in methods},
    )
