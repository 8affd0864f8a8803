"""split-fashion: the ten classes of Fashion-MNIST, two after another, in one pass."""

import numpy as np
from PIL import Image

from arr_coc.training.items import fashion
from arr_coc.training.scenes import SIDE
from arr_coc.training.streams import PROMPT, Rendered, Sample, Stream

OPTIONS = ("n_train", "n_test", "per_experience")


def make(
    name: str, seed: int, order: int, n_train: int = 20_000, n_test: int = 10_000, per_experience: int = 2
) -> Stream:
    """Class-incremental: the candidates while learning are the classes met so far, those of a probe are all
    ten.

    Args:
        seed: of the order of samples and, with `order`, of the classes.
        n_train, n_test: images, drawn from the 20,000 and 10,000 that are shipped.
        per_experience: classes per experience; a divisor of 10.
    """
    checked(n_train, n_test)
    if per_experience not in (1, 2, 5, 10):
        raise ValueError(f"per_experience={per_experience!r}: possible are 1, 2, 5, 10")
    texts = [PROMPT.format(c) for c in fashion("train")[2]]
    turn = np.random.default_rng([seed, order, 7]).permutation(10)
    taught = [turn[i : i + per_experience] for i in range(0, 10, per_experience)]
    met = [[texts[c] for e in taught[: k + 1] for c in e] for k in range(len(taught))]
    everything = met[-1]

    def chosen(split: str, count: int) -> list[tuple[str, int, int]]:
        labels = fashion(split)[1]
        draw = drawn(split, seed, count)
        return [(split, i, e) for e, classes in enumerate(taught) for i in draw if labels[i] in classes]

    def render(key: tuple[str, int, int]) -> Sample:
        split, index, experience = key
        images, labels, _ = fashion(split)
        return {
            "image": enlarged(images[index]),
            "candidates": met[experience] if split == "train" else everything,
            "label": texts[labels[index]],
            "context": None,
            "experience": experience,
            "mask": None,
            "index": index,
        }

    def told(key: tuple[str, int, int]) -> str:
        return texts[fashion(key[0])[1][key[1]]]

    test = chosen("test", n_test)
    probes = [Rendered([k for k in test if k[2] == e], render, told) for e in range(len(taught))]
    experiences = [[texts[c] for c in classes] for classes in taught]
    samples = Rendered(chosen("train", n_train), render, told)
    return Stream(name, samples, experiences, everything, list(probes))


def checked(n_train: int, n_test: int) -> None:
    """Raises:
    ValueError: for more images than are shipped, or none."""
    for what, given, split in (("n_train", n_train, "train"), ("n_test", n_test, "test")):
        most = len(fashion(split)[1])
        if isinstance(given, bool) or not isinstance(given, int) or not 1 <= given <= most:
            raise ValueError(f"{what}={given!r}: 1 to {most} are possible")


def drawn(split: str, seed: int, count: int) -> list[int]:
    """The first `count` rows of a split in the order that a seed gives it."""
    chance = np.random.default_rng([seed, 0 if split == "train" else 1])
    return chance.permutation(len(fashion(split)[1]))[:count].tolist()


def enlarged(pixels: np.ndarray) -> Image.Image:
    """Grey (28, 28) as an RGB picture of the built-in models' size."""
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
