"""permuted-fashion and rotated-fashion: the same ten garments in one domain after another.

Domain-incremental: the classes never change, the pictures do, and nobody says which domain one is from. A
domain of `permuted-fashion` is one permutation of the 784 pixels (Goodfellow et al. 2013; the first domain is
as it was taken), of `rotated-fashion` one angle, drawn from the d-th of equal slices of 0 to 180 degrees
(GEM, Lopez-Paz & Ranzato 2017). There the same images come back in every domain; here every image comes once,
in one domain, so that nothing is seen twice.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from arr_coc.training.items import fashion
from arr_coc.training.stream_fashion import checked, drawn, enlarged
from arr_coc.training.streams import PROMPT, Rendered, Sample, Stream

OPTIONS = ("change", "domains", "n_train", "n_test")
CHANGES = ("permuted", "rotated")
_PIXELS = 28 * 28


@dataclass(frozen=True)
class _Key:
    """One image: the turn that its domain has, the domain, and its row in the split."""

    split: str
    turn: int
    domain: int
    index: int


def make(
    name: str,
    seed: int,
    order: int,
    change: str = "permuted",
    domains: int = 10,
    n_train: int = 20_000,
    n_test: int = 10_000,
) -> Stream:
    """Experiences are domains, in an order drawn from the seed and `order`; a domain has the same images and
    the same permutation or angle in every order of a seed. Candidates are always all ten classes.

    Args:
        change: what tells domains apart, "permuted" or "rotated".
        domains: how many.
        n_train, n_test: images, the same number for every domain.
    """
    if change not in CHANGES:
        raise ValueError(f"change={change!r}: possible are {', '.join(map(repr, CHANGES))}")
    checked(n_train, n_test)
    most = min(n_train, n_test)
    if isinstance(domains, bool) or not isinstance(domains, int) or not 1 <= domains <= most:
        raise ValueError(f"domains={domains!r}: 1 to {most} are possible with so many images")
    texts = [PROMPT.format(c) for c in fashion("train")[2]]
    turn = np.random.default_rng([seed, order, 7]).permutation(domains).tolist()
    shuffled, turned = permutations(seed, domains), angles(seed, domains)

    def render(key: _Key) -> Sample:
        images, labels, _ = fashion(key.split)
        pixels = images[key.index]
        if change == "permuted":
            pixels = pixels.reshape(-1)[shuffled[key.domain]].reshape(pixels.shape)
            picture = enlarged(pixels)
        else:
            picture = enlarged(pixels).rotate(turned[key.domain], Image.Resampling.BILINEAR)
        return {
            "image": picture,
            "candidates": texts,
            "label": texts[labels[key.index]],
            "context": None,
            "experience": key.turn,
            "mask": None,
            "index": key.index,
        }

    def keys(split: str, count: int) -> list[list[_Key]]:
        each = count // domains
        rows = drawn(split, seed, each * domains)
        return [[_Key(split, t, d, i) for i in rows[d * each : (d + 1) * each]] for t, d in enumerate(turn)]

    def told(key: _Key) -> str:
        return texts[fashion(key.split)[1][key.index]]

    train = [key for domain in keys("train", n_train) for key in domain]
    probes = [Rendered(some, render, told) for some in keys("test", n_test)]
    said = [
        [f"permutation {d}" if change == "permuted" else f"{turned[d]:.0f} degrees anticlockwise"]
        for d in turn
    ]
    return Stream(name, Rendered(train, render, told), said, texts, list(probes))


def permutations(seed: int, domains: int) -> list[np.ndarray]:
    """Of the pixels, (784,) for each domain; the first leaves them where they are."""
    rest = [np.random.default_rng([seed, 20, d]).permutation(_PIXELS) for d in range(1, domains)]
    return [np.arange(_PIXELS), *rest]


def angles(seed: int, domains: int) -> list[float]:
    """Degrees for each domain: the d-th is uniform on 180 d / domains to 180 (d + 1) / domains."""
    return (180 * (np.arange(domains) + np.random.default_rng([seed, 21]).random(domains)) / domains).tolist()
