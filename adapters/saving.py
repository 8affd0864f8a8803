"""The saved form: `arr_coc_config.json`, `arr_coc_model.safetensors` and a card; whole or not at all, and no
pickle."""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from arr_coc import state
from arr_coc._version import __version__
from arr_coc.adapters.structure import Inspection
from arr_coc.config import ArrCocConfig
from arr_coc.learner import Learner

CONFIG, STATE, CARD = "arr_coc_config.json", "arr_coc_model.safetensors", "README.md"


@dataclass(frozen=True)
class Saved:
    """An adapter as read from a folder."""

    config: ArrCocConfig
    meta: dict[str, Any]
    tensors: dict[str, Tensor]


def save(folder: Path, learner: Learner, inspection: Inspection) -> Path:
    """Write to a folder beside the target and rename, so that a crash leaves the old one or the new one.

    Raises:
        NotADirectoryError: if the target is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a folder is needed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch) / "new"
        new.mkdir()
        tensors = {k: t.detach().cpu().contiguous().clone() for k, t in state.tensors(learner).items()}
        save_file(tensors, new / STATE, metadata={"format": "pt"})
        meta = {
            "arr_coc_version": __version__,
            "architecture": inspection.architecture,
            "kind": inspection.kind,
            "adapter": json.loads(learner.config.to_json()),
            "learner": state.meta(learner),
            "sha256": hashlib.sha256((new / STATE).read_bytes()).hexdigest(),
        }
        (new / CONFIG).write_text(json.dumps(meta, indent=2))
        (new / CARD).write_text(_card(inspection, learner))
        for name in (STATE, CONFIG, CARD):
            with (new / name).open("rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            old = Path(scratch) / "old"
            folder.rename(old)
            try:
                new.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
            for other in old.iterdir():  # what else lay in the folder stays there
                if other.name not in (STATE, CONFIG, CARD):
                    shutil.move(str(other), folder / other.name)
        else:
            new.rename(folder)
    return folder


def read(folder: Path) -> Saved:
    """Read and check a saved adapter.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if a file is damaged or not what was written.
    """
    for name in (CONFIG, STATE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}; a folder written by save_pretrained is needed"
            )
    try:
        meta = json.loads((folder / CONFIG).read_text())
        config = ArrCocConfig.from_json(json.dumps(meta["adapter"]))
        promised, _ = meta["sha256"], meta["learner"]
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged: {error!r}") from error
    if hashlib.sha256((folder / STATE).read_bytes()).hexdigest() != promised:
        raise ValueError(
            f"{folder / STATE} is not the file that was saved: its checksum differs (truncated or changed)"
        )
    try:
        with safe_open(folder / STATE, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{folder / STATE} is damaged: {error}") from error
    return Saved(config, meta, tensors)


def restore(learner: Learner, saved: Saved) -> None:
    """Put a saved state into a fresh learner; every name, shape, dtype and value is checked before the first
    changes."""
    for name, tensor in saved.tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"the saved tensor {name} holds NaN or infinity")
    state.load(learner, saved.tensors, saved.meta["learner"])


def _card(inspection: Inspection, learner: Learner) -> str:
    classes = len(learner.classes)
    return (
        "---\nlibrary_name: arr-coc\ntags:\n- continual-learning\n- vision-language\n---\n"
        f"# An arr-coc adapter for {inspection.architecture}\n\n"
        f"Learned online, one pass: {int(learner.step)} samples, {classes} classes or answer tokens.\n\n"
        "```python\nfrom arr_coc import ArrCocModel\n\n"
        "attached = ArrCocModel.from_pretrained(model, folder, processor)\n```\n\n"
        f"```\n{inspection}\n```\n\n## Config\n\n```json\n{learner.config.to_json()}\n```\n"
    )
