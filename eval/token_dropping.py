"""Drop patch tokens from a vision tower's sequence, position embeddings kept.

x'_k = x_{keep[k]}: a pre-hook on the first block takes rows out of what the embeddings made, so every token
that stays has the position embedding that it had, and whatever follows sees a shorter sequence. Tokens that
stand for no patch (class token, registers) stay. The hook goes with the `with`, after an exception too.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from arr_coc.adapters.dual_encoder import text_embedding
from arr_coc.adapters.families import family_of
from arr_coc.adapters.structure import find_tower


class NothingLeft(ValueError):
    """Every token was dropped from a tower that has none but its patches."""


@contextmanager
def kept(model: Any, keep: Tensor, patches: int) -> Iterator[None]:
    """Inside, the vision tower of a dual encoder sees these patches only.

    Args:
        model: a dual encoder whose blocks take (B, prefix + patches, d) as their first argument.
        keep: (B or 1, K), indices of the patches that stay, each row rising.
        patches: n, how many there are.

    Raises:
        ValueError: for an index that is no patch; inside, for a tower whose sequence is shorter than n, and
            `NothingLeft` where nothing is left.
    """
    if keep.dim() != 2 or (keep.numel() and not 0 <= int(keep.min()) <= int(keep.max()) < patches):
        raise ValueError(
            f"keep of shape {tuple(keep.shape)}: rows of patch numbers 0 to {patches - 1} are needed"
        )
    tower = find_tower(model, "vision_config", family_of(model).blocks)

    def shorten(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tokens = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(tokens, Tensor) or tokens.dim() != 3 or tokens.shape[1] < patches:
            raise ValueError(
                f"{type(module).__name__} takes no (B, N, d) sequence of {patches} patches or more"
            )
        prefix = tokens.shape[1] - patches
        head = torch.arange(prefix, device=tokens.device).expand(len(tokens), prefix)
        rows = torch.cat([head, keep.to(tokens.device).expand(len(tokens), -1) + prefix], 1)
        short = tokens.gather(1, rows.unsqueeze(2).expand(-1, -1, tokens.shape[2]))
        if not short.shape[1]:
            raise NothingLeft(
                f"{type(module).__name__}: no token is left, and the tower has none but its patches"
            )
        return ((short, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": short})

    handle = tower.blocks[0].register_forward_pre_hook(shorten, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def cosines(
    model: Any, pixels: Tensor, texts: Tensor, keep: Tensor | None = None, patches: int = 0
) -> Tensor:
    """Cosine of each image with each text, (B, C), of pixels (B, 3, H, W) and unit text embeddings (C, P); of
    the kept patches only where `keep` says which (see `kept`)."""
    if keep is None:
        return text_embedding(model.get_image_features(pixel_values=pixels)) @ texts.T
    with kept(model, keep, patches):
        return text_embedding(model.get_image_features(pixel_values=pixels)) @ texts.T


def target(
    model: Any, pixels: Tensor, texts: Tensor, matched: int, patches: int, batch: int = 64
) -> Callable[[Sequence[ArrayLike]], NDArray[np.float64]]:
    """What faithfulness scores for a dual encoder: cosine to the matched text minus the mean cosine to the
    others.

    Args:
        pixels: (1, 3, H, W), one image. texts: unit embeddings (C, P), two or more. matched: a row of them.
        patches: n. batch: sets of one size that are scored in one pass.

    Returns:
        For sets of kept patches, their scores; where nothing at all is left to look at, 0: no text is
        preferred.

    Raises:
        ValueError: for fewer than two texts or more than one image.
    """
    if len(texts) < 2 or len(pixels) != 1 or not 0 <= matched < len(texts):
        raise ValueError(
            f"{len(pixels)} images, {len(texts)} texts, matched={matched}: one image, two or more texts and "
            "a row of them are needed"
        )
    others = torch.tensor([i for i in range(len(texts)) if i != matched])

    def score(sets: Sequence[ArrayLike]) -> NDArray[np.float64]:
        rows = [torch.as_tensor(np.asarray(s, dtype=np.int64)) for s in sets]
        found = np.empty(len(rows))
        for size in {len(r) for r in rows}:  # sequences of one length go through the tower together
            same = [i for i, r in enumerate(rows) if len(r) == size]
            for start in range(0, len(same), batch):
                some = same[start : start + batch]
                shown = pixels.expand(len(some), -1, -1, -1)
                try:
                    c = cosines(model, shown, texts, torch.stack([rows[i] for i in some]), patches)
                except NothingLeft:
                    found[some] = 0.0
                    continue
                found[some] = (c[:, matched] - c[:, others].mean(1)).double().numpy()
        return found

    return score
