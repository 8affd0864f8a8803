"""`arr-coc inspect`: what would be read from a model, by name, folder or config alone."""

import difflib
from pathlib import Path
from typing import Any

import torch

from arr_coc.adapters import attach, embedded
from arr_coc.adapters.structure import Inspection

_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")


def inspect_model(name: str, hub: bool = False) -> Inspection:
    """What `attach` would read, and why.

    Args:
        name: "dual" or "generative" (built in), a folder, a config.json, or with `hub` a name on the hub.
            Where there is a config and no weights, the model is laid out without memory for any.

    Raises:
        ValueError: for a name that is none of these. TypeError: for a model that cannot be attached to.
    """
    if name in ("dual", "generative"):
        return attach(embedded.load(name)[0]).inspect()
    path = Path(name)
    if not (path.is_dir() or path.is_file() or hub):
        near = difflib.get_close_matches(name, ("dual", "generative"), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{name!r} is no built-in model and no folder (use --hub for a download){hint}")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, local_files_only=not hub)
    kind = class_for(config)
    empty = path.is_file() or (path.is_dir() and not any(any(path.glob(w)) for w in _WEIGHTS))
    if empty:
        with torch.device("meta"):
            return attach(kind.from_config(config)).inspect()
    return attach(kind.from_pretrained(name, local_files_only=not hub)).inspect()


def class_for(config: Any) -> Any:
    """The Auto class that makes the most of a config: one that writes, else one that scores, else any."""
    from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForZeroShotImageClassification

    for kind in (AutoModelForImageTextToText, AutoModelForZeroShotImageClassification):
        if type(config) in kind._model_mapping:
            return kind
    return AutoModel
