"""Models and their processors by name: built in, in a folder, or on the Hub when a download is allowed."""

import difflib
from pathlib import Path
from typing import Any

import torch

from arr_coc.adapters import embedded


def known(name: str, hub: bool = False) -> Path | None:
    """The folder or config.json that a name stands for; None for a built-in model or a name on the Hub.

    Raises:
        ValueError: for a name that is neither built in nor there, without `hub`.
    """
    path = Path(name)
    if name in embedded.NAMES:
        return None
    if path.is_dir() or path.is_file():
        return path
    if hub:
        return None
    near = difflib.get_close_matches(name, embedded.NAMES, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name!r} is no built-in model and no folder (use --hub for a download){hint}")


def config_of(name: str, **where: Any) -> Any:
    """The config in a folder, a config.json or a repo.

    Args:
        where: as `AutoConfig.from_pretrained` takes it.

    Raises:
        ValueError: where transformers knows the model and a field of it cannot be; OSError: where there is
            none.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, **where)
    except StrictDataclassError as error:  # which is no ValueError
        raise ValueError(f"the config of {name} cannot be: {' '.join(str(error).split())}") from error


def class_for(config: Any) -> Any:
    """The Auto class that makes the most of a config: one that writes, else one that scores, else any."""
    from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForZeroShotImageClassification

    for kind in (AutoModelForImageTextToText, AutoModelForZeroShotImageClassification):
        if type(config) in kind._model_mapping:
            return kind
    return AutoModel


def load(
    name: str,
    hub: bool = False,
    dtype: str | torch.dtype = "auto",
    device_map: str | dict[str, Any] | None = None,
    revision: str | None = None,
) -> tuple[Any, Any]:
    """A vision-language model, in eval mode, and its processor. No code of a repository is run.

    Args:
        name: "dual" or "generative" (built in), a folder in save_pretrained form or, with `hub`, a name on
            the Hub.
        dtype: of the weights, such as "float32"; "auto": as they are stored (float32 for a built-in model).
        device_map, revision: see transformers' `from_pretrained`.

    Raises:
        ValueError: for a name that is none of these, or a dtype that torch does not have.
    """
    if known(name, hub) is None and name in embedded.NAMES:
        model, processor = embedded.load(name, torch.float32 if dtype == "auto" else _dtype(dtype))
        return model, processor
    from transformers import AutoProcessor

    where = {"local_files_only": not hub, "revision": revision or "main"}
    kind = class_for(config_of(name, **where))
    wanted = dtype if dtype == "auto" else _dtype(dtype)
    model = kind.from_pretrained(name, dtype=wanted, device_map=device_map, **where)
    return model.eval(), AutoProcessor.from_pretrained(name, **where)


def _dtype(name: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, name, None) if isinstance(name, str) else name
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype={name!r}: possible are 'auto', 'float32', 'bfloat16', 'float16'")
    return found
