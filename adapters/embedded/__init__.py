"""The built-in models: small, shipped, loaded from this folder without a network.

    model, processor = load("dual")          # CLIPModel, CLIPProcessor
    model, processor = load("generative")    # LlavaForConditionalGeneration, LlavaProcessor

Each has a card beside its weights (`card`): what it was trained on, how, and its held-out scores.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

__all__ = ["NAMES", "card", "load", "path"]

NAMES = ("dual", "generative")


def path(name: str) -> Path:
    """The folder of a built-in model, in save_pretrained form.

    Raises:
        ValueError: an unknown name; the nearest known one is said.
        FileNotFoundError: the weights are not there (a checkout without them, or a broken installation).
    """
    if name not in NAMES:
        near = get_close_matches(str(name), NAMES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no built-in model {name!r}: there are {', '.join(NAMES)}{hint}")
    folder = Path(__file__).parent / name
    if missing := [f for f in ("config.json", "model.safetensors") if not (folder / f).is_file()]:
        raise FileNotFoundError(
            f"the built-in model {name!r} lacks {' and '.join(missing)} in {folder}; reinstall arr-coc, "
            f"or train it with `python -m arr_coc.training.train_{name}`"
        )
    return folder


def load(name: str, dtype: torch.dtype = torch.float32, folder: Path | str | None = None) -> tuple[Any, Any]:
    """A built-in model in eval mode and its processor, from this folder alone.

    Args:
        name: "dual" (CLIPModel) or "generative" (LlavaForConditionalGeneration).
        dtype: weights are stored in float16 and cast to this.
        folder: another model of that kind, in save_pretrained form; by default the shipped one.
    Returns:
        (model, processor).
    Raises:
        ValueError, FileNotFoundError: see `path`; a `folder` that is none.
    """
    if name not in NAMES or folder is None:
        folder = path(name)
    elif not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no folder; a {name} model in save_pretrained form is needed")
    if name == "dual":
        from transformers import CLIPModel as Model
        from transformers import CLIPProcessor as Processor
    else:
        from transformers import LlavaForConditionalGeneration as Model  # type: ignore[assignment]
        from transformers import LlavaProcessor as Processor  # type: ignore[assignment]
    model = Model.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.eval(), Processor.from_pretrained(folder, local_files_only=True)


def card(name: str) -> str:
    """The model's card (README.md) as text."""
    return (path(name) / "README.md").read_text(encoding="utf-8")
