"""Builds the data files in training/data/ from the packages that publish them; run once, the result is
shipped.

    npm install emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 emojibase-data@17.0.0 \\
        @lobehub/fluent-emoji-3d@1.1.0 @lobehub/fluent-emoji-flat@1.1.0
    apt-get install dataset-fashion-mnist && pip install cairosvg
    python -m arr_coc.training.prepare_data node_modules /usr/share/datasets/fashion-mnist training/data

Only art whose licence allows shipping is read: Noto (Apache-2.0), Twemoji (CC-BY 4.0) and Microsoft's
Fluent Emoji, modelled and flat (MIT). Names and keywords are emojibase's (MIT), Fashion-MNIST is Zalando's
(MIT).
"""

import argparse
import gzip
import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SHEETS = {"noto": ("emoji-datasource-google", "google"), "twemoji": ("emoji-datasource-twitter", "twitter")}
FLUENT = {"fluent_3d": "@lobehub/fluent-emoji-3d", "fluent_flat": "@lobehub/fluent-emoji-flat"}
HELD_OUT_PERCENT = 15
SIDE = 48  # px: a cell of a 2x2 scene


def is_held_out(name: str) -> bool:
    """sha256(name) mod 100 < 15: the same concepts in every artwork, on every machine, in every release."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def concepts(emojibase: Path) -> list[dict]:
    """The base emoji (no skin tones, no components) in emojibase's order: hexcode, name, keywords, group."""
    groups = {
        g["order"]: g["message"]
        for g in json.loads((emojibase / "en" / "messages.json").read_text())["groups"]
    }
    return [
        {
            "hexcode": row["hexcode"],
            "name": row["label"].lower(),
            "keywords": [str(tag).lower() for tag in row.get("tags", [])],
            "group": groups[row["group"]].lower(),
            "held_out": is_held_out(row["label"].lower()),
        }
        for row in json.loads((emojibase / "en" / "data.json").read_text())
        if row.get("group") is not None and groups[row["group"]] != "components"
    ]


def bare(hexcode: str) -> str:
    """The code points without variation selectors, by which both packages agree."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def webp(image: Image.Image, **options: object) -> bytes:
    """The image as WebP bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", method=6, **options)
    return buffer.getvalue()


def sheet_files(node_modules: Path, package: str, folder: str) -> dict[str, Path]:
    """Bare hexcode -> picture of an emoji-datasource package."""
    root = node_modules / package
    rows = json.loads((root / "emoji.json").read_text())
    return {bare(row["unified"]): root / "img" / folder / "64" / row["image"] for row in rows}


def fluent_files(node_modules: Path, package: str) -> dict[str, Path]:
    """Bare hexcode -> picture (WebP or SVG) of a Fluent package, which names its files by code points."""
    return {bare(path.stem): path for path in sorted((node_modules / package / "assets").iterdir())}


def picture(path: Path) -> Image.Image:
    """A picture as RGBA; an SVG is drawn at 144 px."""
    if path.suffix != ".svg":
        return Image.open(path).convert("RGBA")
    import cairosvg  # for preparing data only

    drawn = cairosvg.svg2png(url=str(path), output_width=144, output_height=144)
    return Image.open(io.BytesIO(drawn)).convert("RGBA")


def emoji_table(emojibase: Path, files: dict[str, Path]) -> pa.Table:
    """One row a concept that this artwork has: name, keywords, group, held_out and a 48 px WebP image."""
    rows = []
    for concept in concepts(emojibase):
        path = files.get(bare(concept["hexcode"]))
        if path is not None and path.is_file():
            art = picture(path).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            rows.append(concept | {"image": webp(art, quality=92)})
    return pa.Table.from_pylist(rows)


def idx(path: Path) -> np.ndarray:
    """An IDX file (the MNIST format) as a uint8 array. Raises ValueError if it is none."""
    raw = gzip.decompress(path.read_bytes())
    if raw[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is no IDX file of unsigned bytes")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def fashion_table(folder: Path, prefix: str, count: int) -> pa.Table:
    """The first `count` garments: label and its 28 x 28 grey bytes, as they are."""
    images = idx(folder / f"{prefix}-images-idx3-ubyte.gz")[:count]
    labels = idx(folder / f"{prefix}-labels-idx1-ubyte.gz")[:count]
    pixels = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(784), count, [None, pa.py_buffer(images.tobytes())]
    )
    return pa.table({"label": pa.array(labels), "pixels": pixels})


def main() -> None:
    """Writes the four artworks and the two Fashion-MNIST files, and prints what each holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("node_modules", type=Path)
    parser.add_argument("fashion", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    files = {name: sheet_files(args.node_modules, *where) for name, where in SHEETS.items()}
    files |= {name: fluent_files(args.node_modules, package) for name, package in FLUENT.items()}
    tables = {name: emoji_table(args.node_modules / "emojibase-data", f) for name, f in files.items()}
    tables["fashion_mnist_train"] = fashion_table(args.fashion, "train", 20_000)
    tables["fashion_mnist_test"] = fashion_table(args.fashion, "t10k", 10_000)
    for name, table in tables.items():
        path = args.out / f"{name}.parquet"
        pq.write_table(table, path, compression="zstd", compression_level=19)
        print(f"{path}: {table.num_rows} rows, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
