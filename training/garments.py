"""Garments (Fashion-MNIST) as plain rows and as a folder of images: the data that the scripts try out with.

python -m arr_coc.training.garments photos --count 1000      # photos/ankle boot/00001.png ...
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from arr_coc.training.items import fashion
from arr_coc.training.streams import Rendered

SIDE = 96  # px, of the built-in models


def rows(split: str, count: int, seed: int = 0, side: int = SIDE) -> Rendered:
    """`count` garments drawn without replacement: dicts with `image` (RGB), `label` (0..9) and `name`.

    Raises:
        ValueError: for an unknown split, or more than it has.
    """
    pixels, labels, names = fashion(split)
    if not 1 <= count <= len(labels):
        raise ValueError(f"count={count!r}: {split} has 1 to {len(labels)}")

    def render(place: int) -> dict[str, Any]:
        grey = Image.fromarray(pixels[place])
        image = grey.resize((side, side), Image.Resampling.BICUBIC).convert("RGB")
        return {"image": image, "label": int(labels[place]), "name": names[labels[place]]}

    return Rendered(np.random.default_rng(seed).permutation(len(labels))[:count].tolist(), render)


def export(folder: Path, split: str = "train", count: int = 1000, seed: int = 0) -> int:
    """Write garments as PNG files, a folder per class; returns how many."""
    drawn = rows(split, count, seed)
    for number in range(len(drawn)):
        row = drawn[number]
        target = folder / row["name"] / f"{number:05d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(target)
    return len(drawn)


def main(
    folder: Annotated[Path, typer.Argument(help="to write to; it must be new or empty")],
    split: Annotated[str, typer.Option(help="train or test")] = "train",
    count: Annotated[int, typer.Option(min=1)] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="of the draw")] = 0,
) -> None:
    """Garments as a folder of images."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise typer.BadParameter(f"{folder} is no empty folder")
    typer.echo(f"{export(folder, split, count, seed)} garments in {folder}")


if __name__ == "__main__":
    typer.run(main)
