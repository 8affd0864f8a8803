"""Percepts on disk: a store as safetensors, found again by its samples and the model's fingerprint."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from arr_coc.eval.percepts import Progress, Store, TextBook, perceive_all
from arr_coc.training.streams import Sample, Stream


def fingerprint(model: nn.Module) -> str:
    """The first 16 digits of the SHA-256 over every weight of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def cache_path(folder: Path, stream: str, options: dict[str, Any], seed: int, model: nn.Module) -> Path:
    """Where a store of these samples under this model is kept."""
    said = json.dumps([stream, sorted(options.items()), seed, fingerprint(model)])
    plain = re.sub(r"[^\w.-]+", "-", stream)  # options stand behind a name with ? and &
    return folder / f"percepts-{plain}-{hashlib.sha256(said.encode()).hexdigest()[:16]}.safetensors"


_TENSORS = ("attention", "context", "own", "image", "pooled", "pixels", "label", "cue")


def save(store: Store, path: Path) -> None:
    """Write a store as safetensors; whole or not at all."""
    from safetensors.torch import save_file

    tensors = {name: getattr(store, name).contiguous() for name in _TENSORS}
    tensors |= {f"tokens_{i}": t.contiguous() for i, t in enumerate(store.tokens)}
    if store.mask is not None:
        tensors["mask"] = store.mask.contiguous()
    named = {
        "classes": store.classes,
        "contexts": store.contexts,
        "place": [[s, i, row] for (s, i), row in store.place.items()],
        "grid": store.grid,
        "seconds": store.seconds,
        "skipped": store.skipped,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    save_file(tensors, half, metadata={"store": json.dumps(named)})
    half.replace(path)


def restore(path: Path, texts: TextBook) -> Store:
    """Read what `save` wrote.

    Raises:
        ValueError: if the file is no store.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            named = json.loads(file.metadata()["store"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no store of percepts: {error}") from error
    sites = sorted(n for n in tensors if n.startswith("tokens_"))
    named["grid"] = tuple(named["grid"]) if named["grid"] else None
    return Store(
        tokens=tuple(tensors[n] for n in sites),
        mask=tensors.get("mask"),
        place={(s, i): row for s, i, row in named.pop("place")},
        texts=texts,
        **{n: tensors[n] for n in _TENSORS},
        **named,
    )


def of_stream(
    attached: Any,
    texts: TextBook,
    stream: Stream,
    cache: Path | None = None,
    batch: int = 32,
    progress: Progress | None = None,
) -> Store:
    """The store of a stream's samples and probes; from the cache where it is there.

    Args:
        attached: an `ArrCocModel`.
        cache: a file, see `cache_path`.
    """
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        # who comes second waits, and reads what the first one made
        with FileLock(cache.with_suffix(".lock")):
            if not cache.is_file():
                save(of_stream(attached, texts, stream, None, batch, progress), cache)
        return restore(cache, texts)
    groups: list[tuple[str, Sequence[Sample]]] = [("train", stream.samples)]
    groups += [("test", probe) for probe in stream.probes]
    return perceive_all(attached.perceive, texts, groups, list(stream.classes), batch, progress)
