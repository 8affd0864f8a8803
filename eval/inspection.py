"""`arr-coc inspect`: what would be read from a model, by name, folder or config alone."""

from typing import Any

import torch

from arr_coc.adapters import attach, embedded, pretrained
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
    path = pretrained.known(name, hub)
    if name in embedded.NAMES:
        model, processor = embedded.load(name)
        return attach(model, processor=processor).inspect()
    config = pretrained.config_of(name, local_files_only=not hub)
    kind: Any = pretrained.class_for(config)
    if path is not None and (path.is_file() or not any(any(path.glob(w)) for w in _WEIGHTS)):
        with torch.device("meta"):
            return attach(kind.from_config(config)).inspect()
    return attach(kind.from_pretrained(name, local_files_only=not hub)).inspect()
