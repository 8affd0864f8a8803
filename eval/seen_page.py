"""`arr-coc relevance IMAGE "text"`: the page of one picture, with other methods' maps and scores beside it.

The score is the faithfulness gap: how much longer the text's match lasts when the least relevant patches are
dropped first than when the most relevant ones are (random: 0; see `relevance_faithfulness`).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from arr_coc.adapters import pretrained
from arr_coc.adapters.attach import ArrCocModel, attach
from arr_coc.adapters.dual_encoder import DualEncoderBody
from arr_coc.eval import relevance_baselines as baselines
from arr_coc.eval.relevance_exam import METHODS, embedded_texts
from arr_coc.eval.relevance_faithfulness import FlatScore, curves
from arr_coc.eval.relevance_randomised import redrawn
from arr_coc.eval.report import check_target, write
from arr_coc.eval.seen import Beside, Map, Seen, see
from arr_coc.eval.token_dropping import target

SHOWN = ("attention", "rollout", "patch-text", "gradient-attention", "legrad", "centre")
NEUTRAL = "a picture"  # what the text's match is measured against


def compared(attached: ArrCocModel, image: Image.Image, text: str, seen: Seen) -> list[Beside]:
    """Other maps of the same picture and text, each with its score: for a dual encoder those of `SHOWN`, and
    for every model what relevance would be had its weights been drawn at random."""
    found = [_redrawn(attached, image, text)]
    if not isinstance(attached.body, DualEncoderBody):
        return found
    try:
        eye = baselines.open_eye(attached.model)
    except ValueError:  # patches that its config does not tell
        return found
    if eye.grid != seen.whole.shape:
        return found
    with attached.disable():
        shown = attached.processor(images=[image], return_tensors="pt")["pixel_values"].to(
            attached.model.dtype
        )
        said = embedded_texts(eye.model, attached.processor, [(text, NEUTRAL)])
        draw = torch.Generator().manual_seed(0)
        maps: dict[str, Map] = {"arr-coc": seen.whole}
        for name in SHOWN:
            make = METHODS[name].maps
            assert make is not None
            made = make(eye, shown, said[:, :1], draw)[0, 0].detach().double().clamp_min(0)
            maps[METHODS[name].about] = _shares(made).reshape(eye.grid).numpy()
        maps[found[0].name] = found[0].relevance
        score = target(eye.model, shown, said[0], 0, eye.patches)
        return [Beside(name, relevance, _gap(relevance, score)) for name, relevance in maps.items()]


def _redrawn(attached: ArrCocModel, image: Image.Image, text: str) -> Beside:
    """The same relevance from weights that know nothing."""
    body = attached.body
    forget = body.forget_texts if isinstance(body, DualEncoderBody) else lambda: None
    with redrawn(attached.model, 0):
        forget()
        relevance = see(attached, image, text).whole
    forget()
    return Beside("arr-coc, the model's weights drawn anew", relevance)


def _shares(relevance: torch.Tensor) -> torch.Tensor:
    """A map that sums to 1; even where there is nothing."""
    total = relevance.sum()
    return relevance / total if total > 0 else torch.full_like(relevance, 1 / relevance.numel())


def _gap(relevance: Map, score: Any) -> str:
    try:
        return f"faithfulness gap {curves(relevance, score).gap:+.2f}"
    except FlatScore:
        return "no gap: without any patch the text fits as well"


def opened(path: Path) -> Image.Image:
    """A picture, RGB.

    Raises:
        FileNotFoundError: no such file. ValueError: for one that is no picture.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is no picture that can be read ({type(error).__name__})") from error


def page_of(
    image: Path,
    text: str,
    out: Path,
    model: str = "dual",
    hub: bool = False,
    adapter: Path | None = None,
    names: Sequence[str] | None = None,
) -> Seen:
    """Write the page of a picture and a text, and return what it shows.

    Args:
        model, hub: see `pretrained.load`.
        adapter: a folder that `save_pretrained` wrote; by default nothing was learned.
        names: which adapters of that folder; all by default.

    Raises:
        FileNotFoundError, ValueError: before anything is written.
    """
    out, picture = check_target(out), opened(image)
    bare, processor = pretrained.load(model, hub)
    if adapter is None:
        attached = attach(bare, None, processor)
    else:
        attached = ArrCocModel.from_pretrained(bare, adapter, processor, adapters=names)
    seen = see(attached, picture, text)
    beside = compared(attached, picture, text, seen)
    shown = Seen(seen.image, text, seen.answer, seen.words, seen.maps, seen.whole, seen.kept, beside)
    write(out, shown.page())
    return shown
