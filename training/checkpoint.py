"""What a training needs besides the adapter to go on exactly: safetensors and JSON, no pickle."""

import contextlib
import json
import logging
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from arr_coc.adapters import saving
from arr_coc.adapters.attached import ArrCocModel
from arr_coc.adapters.saving import CONFIG, STATE

logger = logging.getLogger(__name__)
ARGS = "training_args.json"


def random_file(rank: int, ranks: int) -> str:
    """Where a rank keeps its generators' states."""
    return "rng_state.safetensors" if ranks == 1 else f"rng_state_{rank}.safetensors"


def save_random(path: Path) -> None:
    """Write the states of Python's, numpy's and torch's global generators (all CUDA devices)."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
    tensors = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    about = {"python": [version, gauss], "numpy": [kind, position, has_gauss, cached]}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={"about": json.dumps(about)})


def load_random(path: Path) -> None:
    """The inverse of `save_random`; generators of CUDA devices that are not here are left out."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    version, gauss = about["python"]
    kind, position, has_gauss, cached = about["numpy"]
    random.setstate((version, tuple(tensors["python"].tolist()), gauss))
    np.random.set_state((kind, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(tensors["torch"])
    for i in range(torch.cuda.device_count()):
        if f"cuda.{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda.{i}"], i)


def restore_random(folder: Path, rank: int, ranks: int) -> None:
    """Load a rank's generators from a checkpoint; where they are not in it, say so."""
    path = folder / random_file(rank, ranks)
    if path.is_file():
        load_random(path)
    else:
        logger.warning("%s is missing: it was saved by another number of processes", path)


def save_nested(path: Path, value: Any) -> None:
    """Write nested dicts, lists, numbers, texts and tensors: PATH.safetensors and PATH.json.

    Raises:
        TypeError: for anything else in it; nothing was written.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(value, "", tensors))
    save_file(tensors, path.with_suffix(".safetensors"))
    path.with_suffix(".json").write_text(text)


def load_nested(path: Path) -> Any:
    """The inverse of `save_nested`; tuples come back as lists."""
    tensors = load_file(path.with_suffix(".safetensors"))
    return _rebuilt(json.loads(path.with_suffix(".json").read_text()), tensors)


def _plain(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        pairs = [[k, _plain(v, f"{name}.{k}", tensors)] for k, v in value.items()]
        return {"dict": pairs}  # as pairs: the keys of an optimizer's state are numbers
    if isinstance(value, list | tuple):
        return [_plain(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is {type(value).__name__}: only tensors and plain values can be saved")


def _rebuilt(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_rebuilt(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    return {k: _rebuilt(v, tensors) for k, v in value["dict"]}


def read_adapters(folder: Path, attached: ArrCocModel) -> dict[str, saving.Saved]:
    """The saved form of every adapter of an attached model, by name.

    Raises:
        FileNotFoundError, ValueError: where one is missing or damaged, or has another config.
    """
    names = attached.adapters
    saved = {name: saving.read(folder if name == names[0] else folder / name) for name in names}
    for name, one in saved.items():
        there = one.header.config
        if there != replace(attached.adapter(name).config, sites=there.sites):
            raise ValueError(f"{folder} holds {name!r} with another config; attach with the one it has")
    return saved


@contextlib.contextmanager
def whole_or_gone(folder: Path) -> Iterator[None]:
    """Inside, a checkpoint is written, and is not complete before its end, if there was one of that step
    before; if that fails (a full disk, say), none of it is left, and the ones before stay as they are.

    Raises:
        OSError: where a file could not be written, whoever wrote it.
    """
    (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
    try:
        yield
    except BaseException as error:
        if not complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, SafetensorError):
            raise OSError(f"{folder} could not be written: {error}") from error
        raise


def tidy(folder: Path) -> None:
    """Remove the scratch folders that a process which was killed while it saved has left in a training's
    folder."""
    for path in folder.glob(f".{PREFIX_CHECKPOINT_DIR}-*"):
        shutil.rmtree(path, ignore_errors=True)


def last_complete(folder: str | Path) -> Path:
    """The newest checkpoint in a training's folder that was written to its end.

    Raises:
        FileNotFoundError: if there is none; says what was found.
    """
    found = [p for p in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if p.name.split("-")[-1].isdigit()]
    for path in sorted(found, key=lambda p: int(p.name.split("-")[-1]), reverse=True):
        if complete(path):
            return path
    cut = f" ({len(found)} were begun and never finished)" if found else ""
    raise FileNotFoundError(f"{folder} holds no checkpoint to resume from{cut}")


def complete(checkpoint: Path) -> bool:
    """Whether a checkpoint has the adapter and, written last, the trainer's state."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False
    return all((checkpoint / name).is_file() for name in (CONFIG, STATE))
