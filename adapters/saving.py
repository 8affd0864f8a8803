"""The saved form: configs, states and a card in a folder; whole or not at all, and no pickle.

    arr_coc_config.json  arr_coc_model.safetensors  arr_coc_base.safetensors  README.md  [relevance.png]
    NAME/arr_coc_config.json  NAME/arr_coc_model.safetensors  NAME/arr_coc_base.safetensors

The first adapter of a set lies in the folder itself, each further one in a subfolder of its name, which is a
saved form of its own. `arr_coc_base` holds a sample of the weights that the adapter was made on.
"""

import ctypes
import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from arr_coc import state
from arr_coc._version import __version__
from arr_coc.adapters import base, card
from arr_coc.adapters.checks import adapter_name, known_names
from arr_coc.config import ArrCocConfig
from arr_coc.learner import Learner

CONFIG, STATE, BASE = "arr_coc_config.json", "arr_coc_model.safetensors", "arr_coc_base.safetensors"
FILES = (CONFIG, STATE, BASE)
# 1: one adapter, and not what it was made on; 2: no mixes of kept tokens; 3: no confidence; 4: no `unlearned`
FORMAT = 5
_FIELDS = {
    "format": int,
    "arr_coc_version": str,
    "name": str,
    "base": dict,
    "sites": list,
    "adapter": dict,
    "learner": dict,
    "sha256": dict,
    "adapters": list,
    "active": list,
    "plastic": list,
}


@dataclass(frozen=True)
class Header:
    """What `arr_coc_config.json` says, checked.

    Args:
        name: of the adapter that lies beside it.
        base: what the adapter was made on.
        sites: the blocks of it that were read, whether the config said so or the structure.
        config: of the adapter.
        about: what of its state is no tensor.
        sha256: of the other files.
        adapters: names of the whole set, the one that lies here first.
        active: which of them answer, in this order.
        plastic: which of them learn.
    """

    name: str
    base: base.Base
    sites: tuple[int, ...]
    config: ArrCocConfig
    about: dict[str, Any]
    sha256: dict[str, str]
    adapters: list[str]
    active: list[str]
    plastic: list[str]


@dataclass(frozen=True)
class Saved:
    """An adapter as read from a folder: its header, its state, and the sample of its base's weights."""

    header: Header
    tensors: dict[str, Tensor]
    sample: dict[str, Tensor]


# -- writing -------------------------------------------------------------------------------------------------


def save(
    folder: Path,
    adapters: Mapping[str, Learner],
    active: Sequence[str],
    plastic: Sequence[str],
    model: nn.Module,
    sites: Sequence[int],
    told: card.Told,
) -> Path:
    """Write to a folder beside the target and rename, so that a crash leaves the old one or the new one.

    What else lies in the target stays there, but for adapters of an earlier save that are gone.

    Raises:
        NotADirectoryError: if the target is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a folder is needed")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch) / "new"
        about, values = told.base.to_dict(), base.sample(model)
        for place, (name, learner) in enumerate(adapters.items()):
            parts = [list(adapters), list(active), list(plastic)] if place == 0 else [[name]] * 3
            said = {
                "base": about,
                "sites": list(sites),
                **dict(zip(("adapters", "active", "plastic"), parts, strict=True)),
            }
            _write(new / name if place else new, name, learner, said, values)
        card.write(new, adapters, told)
        for path in filter(Path.is_file, new.rglob("*")):
            with path.open("rb") as file:
                os.fsync(file.fileno())
        _swap(new, folder, Path(scratch) / "old")
    return folder


def _write(
    folder: Path, name: str, learner: Learner, said: dict[str, Any], sample: dict[str, Tensor]
) -> None:
    folder.mkdir()
    tensors = {k: t.detach().cpu().contiguous().clone() for k, t in state.tensors(learner).items()}
    save_file(tensors, folder / STATE, metadata={"format": "pt"})
    save_file(sample, folder / BASE, metadata={"format": "pt"})
    meta = {
        "format": FORMAT,
        "arr_coc_version": __version__,
        "name": name,
        "adapter": json.loads(learner.config.to_json()),
        "learner": state.meta(learner),
        "sha256": {file: _checksum(folder / file) for file in (STATE, BASE)},
        **said,
    }
    (folder / CONFIG).write_text(json.dumps(meta, indent=2))


def _swap(new: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        new.rename(folder)
        return
    earlier = _earlier(folder)
    if _exchanged(new, folder):
        new.rename(old)
    else:
        folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            old.rename(folder)
            raise
    for gone in earlier:
        for file in FILES:
            (old / gone / file).unlink(missing_ok=True)
    _keep(old, folder)


def _exchanged(one: Path, two: Path) -> bool:
    """Whether two folders have changed places in one step, so that a process which is killed leaves no moment
    without either; False where the system cannot (it is Linux's renameat2)."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(here, os.fsencode(one.absolute()), here, os.fsencode(two.absolute()), exchange) == 0


def _earlier(folder: Path) -> list[str]:
    """The subfolders of adapters that an earlier save left; none where its config cannot be read."""
    try:
        return read_header(folder).adapters[1:]
    except (OSError, ValueError):
        return []


def _keep(old: Path, folder: Path) -> None:
    for other in list(old.iterdir()):  # what else lay in the folder stays there
        if other.is_dir() and (folder / other.name).is_dir():
            _keep(other, folder / other.name)
        elif not (folder / other.name).exists() and not (other.is_dir() and not any(other.iterdir())):
            shutil.move(str(other), folder / other.name)


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# -- reading -------------------------------------------------------------------------------------------------


def read_header(folder: Path) -> Header:
    """Read and check `arr_coc_config.json`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged, has fields that are not known, or comes from another release.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {CONFIG}; a folder written by save_pretrained is needed"
            + ("" if folder.is_dir() else " (and it is no folder)")
        )
    try:
        meta = json.loads(path.read_text())
        _check_fields(meta, path)
        sha256 = {file: str(meta["sha256"][file]) for file in (STATE, BASE)}
        config = ArrCocConfig.from_json(json.dumps(meta["adapter"]))
        # an adapter's name is a folder's name: a config that leads elsewhere is refused here
        names = [adapter_name(name) for name in meta["adapters"]]
        if not names or names[0] != meta["name"]:
            raise ValueError(f"{path} is damaged: it is of {meta['name']!r} in the set {names}")
        active, plastic = known_names(meta["active"], names), known_names(meta["plastic"], names)
    except (json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    made_on = base.Base.from_dict(meta["base"])
    sites = tuple(meta["sites"])
    return Header(meta["name"], made_on, sites, config, meta["learner"], sha256, names, active, plastic)


def _check_fields(meta: Any, path: Path) -> None:
    if not isinstance(meta, dict):
        raise ValueError(f"{path} holds a {type(meta).__name__}; a JSON object is needed")
    found = meta.get("format", 1)
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        raise ValueError(
            f"{path} has format {found!r}, written by arr-coc {meta.get('arr_coc_version', 'unknown')}; this "
            f"release ({__version__}) reads format {FORMAT}: "
            + (
                "a newer release is needed"
                if newer
                else "train the adapter again, or load it with that release"
            )
        )
    for name in meta:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.0)
            raise ValueError(f"{path} has an unknown field {name!r}; the nearest known is {near[0]!r}")
    for name, kind in _FIELDS.items():
        if not isinstance(meta[name], kind):
            raise ValueError(f"{path} is damaged: {name} is {meta[name]!r}, and no {kind.__name__}")


def read(folder: Path) -> Saved:
    """Read and check the adapter that lies in a folder.

    Raises:
        FileNotFoundError: if one of its files is missing.
        ValueError: if a file is damaged or not what was written, a tensor holds NaN or infinity, or the
            config asks for other sizes than the state has.
    """
    header = read_header(folder)
    read_files = {}
    for file in (STATE, BASE):
        path = folder / file
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no {file}; a folder written by save_pretrained is needed"
            )
        if _checksum(path) != header.sha256[file]:
            raise ValueError(
                f"{path} is not the file that was saved: its checksum differs (truncated or changed)"
            )
        try:
            with safe_open(path, framework="pt") as opened:
                read_files[file] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    for name, tensor in read_files[STATE].items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"the saved tensor {name} holds NaN or infinity")
    state.check_sizes(header.config, read_files[STATE])
    return Saved(header, read_files[STATE], read_files[BASE])
