"""Dirty streams: what is wrong is skipped, counted by its reason, and leaves no trace in what is learned."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from arr_coc import ArrCocConfig
from arr_coc.training import streams
from arr_coc.training.learn_image_folder import Readable
from arr_coc.training.trainer import ArrCocTrainer
from training_data import arguments, learned, same


def png(seed: int, size: tuple[int, int] = (40, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(Image.fromarray(pixels))


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def claimed(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is this large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def not_a_number() -> bytes:
    values = np.full((20, 20), np.nan, dtype=np.float32)
    return encoded(Image.fromarray(values), "TIFF")


def cut(seed: int) -> bytes:
    return png(seed)[:-600]


WRONG: dict[str, tuple[bytes | None, str]] = {
    "no picture": (b"no picture at all", "unreadable image (UnidentifiedImageError)"),
    "empty": (b"", "unreadable image (UnidentifiedImageError)"),
    "none": (None, "no image"),
    "cut": (cut(5), "unreadable image (OSError)"),
    "nan": (not_a_number(), "image with NaN or infinity"),
    "one pixel": (png(1, (1, 1)), "tiny image"),
    "three rows": (png(1, (40, 3)), "tiny image"),
    "huge": (claimed(10_000, 9_000), "huge image"),
    "bomb": (claimed(60_000, 60_000), "unreadable image (DecompressionBombError)"),
}


def rows(images: list[bytes | None], labels: list[Any], texts: list[Any]) -> datasets.Dataset:
    cells = [None if data is None else {"bytes": data, "path": None} for data in images]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("string"), "asked": datasets.Value("string")}
    )
    return datasets.Dataset.from_dict({"image": cells, "label": labels, "asked": texts}, features=features)


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_cannot_be_used_is_counted_by_its_reason(what: str) -> None:
    data, why = WRONG[what]
    stream = streams.from_dataset(rows([png(1), data, png(2)], ["cat", "dog", "dog"], ["a"] * 3))
    assert [sample["index"] for sample in stream] == [0, 2]
    assert stream.skipped == {why: 1}


@pytest.mark.parametrize("label", [None, "", "  ", [1], {"a": 1}, 0.5, float("nan"), b"x"])
def test_what_names_no_class_is_no_label(label: Any) -> None:
    assert streams._class_text(label, None, "a {}") is None
    assert streams._class_text(label, ["x", "y"], "a {}") is None


def test_whatever_a_decoder_says_of_damaged_bytes_is_a_bad_row() -> None:
    """300 pictures with some bytes changed: each is a picture or a bad row, never another error."""
    draw, kept = np.random.default_rng(0), 0
    kinds = ["PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"]
    for i in range(300):
        data = bytearray(encoded(Image.open(io.BytesIO(png(i, (12, 12)))), kinds[i % 6]))
        for place in draw.integers(0, len(data), 8):
            data[place] = int(draw.integers(0, 256))
        stream = streams.from_dataset(rows([bytes(data)], ["cat"], ["a"]))
        kept += len(list(stream))
        assert kept + sum(stream.skipped.values()) >= 1
    assert 30 < kept < 270


def collate(samples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    pictures = [np.asarray(s["image"].resize((32, 32)), dtype=np.float32) / 127.5 - 1 for s in samples]
    given = tiny.dual_inputs(batch=1, texts=5)
    return {
        "input_ids": given["input_ids"],
        "attention_mask": given["attention_mask"],
        "pixel_values": torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous(),
        "context_ids": torch.tensor([[1, 2 + len(s["context"]), 49] for s in samples]),
        "labels": torch.tensor([s["candidates"].index(s["label"]) for s in samples]),
    }


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_what_is_learned_is_what_the_clean_rows_teach(tmp_path: Path, share: float) -> None:
    """Bad rows of every kind among 80 good ones; the batches, and every bit of the state, are the same."""
    names, draw = ["ant", "bee", "cow", "dog", "eel"], np.random.default_rng(4)
    good = [(png(i), names[i % 5], "what is it" + "?" * (i % 3)) for i in range(80)]
    bad: list[tuple[Any, Any, Any]] = [(data, "cow", "what?") for data, _ in WRONG.values()]
    bad += [(png(7), None, "what?"), (png(7), " ", "what?"), (png(7), "cow", None), (png(7), "cow", " ")]
    mixed = list(good)
    count = round(share / (1 - share) * len(good))
    for i in range(count):
        mixed.insert(int(draw.integers(0, len(mixed) + 1)), bad[i % len(bad)])
    found = []
    for name, table in (("clean", good), ("dirty", mixed)):
        stream = streams.from_dataset(rows(*(list(c) for c in zip(*table, strict=True))), context="asked")
        stream.classes.sort()  # the first row may be a bad one, and classes come in the order of the rows
        config = ArrCocConfig(width=16, expansion=8)
        args = arguments(tmp_path / name, per_device_train_batch_size=3, remove_unused_columns=False)
        one = ArrCocTrainer(tiny.dual(), args, collate, Readable(stream), adapter=config)
        one.train()
        found.append(learned(one))
        assert sum(stream.skipped.values()) == (count if name == "dirty" else 0)
        assert int(one.attached.learner.step) == 80
    assert same(*found)
