"""Inputs for tiny models: what an architecture's processor would give for small random pictures and words.

The names in the model's forward say which form its pictures have; its own `get_image_features` says how many
placeholders one picture needs. What that cannot tell stands in a table of functions, one an architecture.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SIDE = 4  # patches along a side, before a projector merges them
_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
CANDIDATES = 3


def example(model: Any, batch: int = 2, seed: int = 0, words: int = 6) -> dict[str, Tensor]:
    """Inputs of the model's own forward: pictures, and questions about them or (dual) candidate texts.

    Args:
        model: of `tiny_models.tiny_model`.
        batch: samples, one picture each.
        seed: of pictures and words.
        words: tokens of a question or a candidate.
    """
    draw = torch.Generator().manual_seed(seed)
    kind = model.config.model_type
    takes = inspect.signature(model.forward).parameters
    seen = PICTURES.get(kind, pictures)(model, batch, draw)
    vocabulary = getattr(model.config.get_text_config(decoder=True), "vocab_size", 200)
    writes = model.can_generate()
    text = torch.randint(10, min(200, vocabulary), (batch if writes else CANDIDATES, words), generator=draw)
    if writes:
        text = placed(model, seen, text, batch)
    inputs = {**seen, "input_ids": text}
    if "attention_mask" in takes and "attention_mask" not in seen:
        inputs["attention_mask"] = torch.ones_like(text)
    if "mm_token_type_ids" in takes:
        inputs["mm_token_type_ids"] = torch.isin(text, torch.tensor(ids_of(model))).long()
    if kind in FURTHER:
        inputs = FURTHER[kind](model, inputs, batch, draw)
    return inputs


def ids_of(model: Any) -> list[int]:
    """The token ids that stand for a picture's tokens in a prompt; none where it has no place."""
    found = [getattr(model.config, name, None) for name in _TOKENS]
    found.append((getattr(model.config, "vocabulary_map", None) or {}).get("<image>"))
    return [int(i) for i in found if i is not None][:1]


def placed(model: Any, seen: dict[str, Tensor], text: Tensor, batch: int) -> Tensor:
    """The words with the placeholders of one picture a sample behind the second of them."""
    ids = ids_of(model)
    if not ids:
        return text
    many = COUNTS.get(model.config.model_type, counted)(model, seen, batch)
    between = torch.full((batch, many), ids[0])
    return torch.cat([text[:, :2], between, text[:, 2:]], 1)


def counted(model: Any, seen: dict[str, Tensor], batch: int) -> int:
    """How many visual tokens a picture becomes, by the model's own features; 0 where it offers none."""
    takes = _of_features(model)
    if not takes:
        return 0
    given = {k: v for k, v in seen.items() if k in takes or "kwargs" in takes}
    with torch.inference_mode():
        return rows_in(_with_features(model).get_image_features(**given)) // batch


def rows_in(features: Any) -> int:
    """The number of feature vectors in what `get_image_features` returned."""
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(features, name, None) is not None:
            features = getattr(features, name)
            break
    if isinstance(features, list | tuple):
        return sum(rows_in(f) for f in features)
    return features.numel() // features.shape[-1]


def _of_first_depth(model: Any, seen: dict[str, Tensor], batch: int) -> int:
    """Granite 4 gives its features layer by layer: (layer, features) pairs, each with all tokens."""
    with torch.inference_mode():
        _, features = model.get_image_features(**seen).deepstack_features[0]
    return rows_in(features) // batch


def look_of(model: Any) -> Any:
    """The config of the part that sees."""
    for name in ("vision_config", "encoder", "vlm_config", "vq_config"):
        if getattr(model.config, name, None) is not None:
            return getattr(model.config, name)
    return model.config


def _first(config: Any, *names: str, default: int) -> int:
    for name in names:
        value = getattr(config, name, None)
        value = value[-1] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int) and value:
            return value
    return default


def pictures(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """The picture inputs by the names in the model's forward."""
    config, takes = look_of(model), inspect.signature(model.forward).parameters
    patch = _first(config, "patch_size", default=16)
    channels = _first(config, "num_channels", "in_chans", default=3)
    n, grid = SIDE * SIDE, torch.tensor([[SIDE, SIDE]] * batch)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    if "flattened_patches" in takes:
        return {"flattened_patches": numbered(noise(batch, n, channels * patch * patch))}
    if "image_grid_thw" in takes:
        frames = _first(config, "temporal_patch_size", "patch_temporal", default=1)
        whole = torch.cat([torch.ones(batch, 1, dtype=torch.long), grid], 1)
        return {"pixel_values": noise(batch * n, channels * frames * patch * patch), "image_grid_thw": whole}
    if "image_grid_hw" in takes:
        return {"pixel_values": noise(batch * n, channels * patch * patch), "image_grid_hw": grid}
    if "spatial_shapes" in takes:
        there = torch.ones(batch, n, dtype=torch.long)
        flat = noise(batch, n, channels * patch * patch)
        return {"pixel_values": flat, "spatial_shapes": grid, "pixel_attention_mask": there}
    side = _first(config, "image_size", "resolution", default=SIDE * patch)
    if "pixel_values" not in takes and "pixel_values_videos" in takes:
        return {
            "pixel_values_videos": noise(batch, _first(config, "num_frames", default=4), channels, side, side)
        }
    seen = {"pixel_values": noise(batch, channels, side, side)}
    if "image_sizes" in takes and "image_sizes" in _of_features(model):
        seen["image_sizes"] = torch.tensor([[side, side]] * batch)
    return seen


def _with_features(model: Any) -> Any:
    """The model or its inner one, whichever tells its picture features; None if neither does."""
    inner = getattr(model, "model", None)
    return next((m for m in (model, inner) if hasattr(m, "get_image_features")), None)


def _of_features(model: Any) -> dict[str, Any]:
    """The parameters of `get_image_features`; none where there is no such method."""
    owner = _with_features(model)
    return {} if owner is None else dict(inspect.signature(owner.get_image_features).parameters)


def numbered(patches: Tensor) -> Tensor:
    """Flattened patches (B, n, d) with their row and column, from 1, in front: (B, n, 2 + d)."""
    place = torch.arange(patches.shape[1])
    where = torch.stack([place // SIDE + 1, place % SIDE + 1], 1).expand(len(patches), -1, -1)
    return torch.cat([where.to(patches), patches], 2)


def _of_patches(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Patches as small pictures, (batch n, C, p, p), with their grids."""
    seen = pictures(model, batch, draw)
    patch = _first(look_of(model), "patch_size", default=16)
    return {**seen, "pixel_values": seen["pixel_values"].reshape(len(seen["pixel_values"]), -1, patch, patch)}


def _several(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """(B, pictures, C, H, W), and which pixels are no padding."""
    pixels = pictures(model, batch, draw)["pixel_values"].unsqueeze(1)
    return {"pixel_values": pixels, "pixel_attention_mask": torch.ones_like(pixels[:, :, 0]).bool()}


def _tiles(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """(B, tiles, C, H, W), and which tiles there are."""
    pixels = pictures(model, batch, draw)["pixel_values"].unsqueeze(1)
    return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(batch, 1, dtype=torch.bool)}


def _film(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """(B, frames, C, H, W) in the place of pictures."""
    side = _first(look_of(model), "image_size", default=56)
    return {"pixel_values": torch.randn(batch, 4, 3, side, side, generator=draw)}


def _folded(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Patches with time first and channels last, (patches, t, p, p, C), as Inkling takes them."""
    config = look_of(model)
    shape = batch * 4, config.temporal_patch_size, config.patch_size, config.patch_size, 3
    return {"pixel_values": torch.randn(*shape, generator=draw)}


def _one_tile(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    side = model.config.vision_config.model_args["img_size"][0]
    return {"pixel_values": torch.randn(batch, 1, 3, side, side, generator=draw)}


def _cropped(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """(B, crops, C, H, W): the whole picture and one crop, as for a picture of the smallest size."""
    side = _first(look_of(model), "image_size", default=56)
    pixels = torch.randn(batch, 2, 3, side, side, generator=draw)
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[side, side]] * batch)}


def _tiled(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """(B, pictures, tiles, C, H, W) with one picture of one tile, as mllama takes them."""
    side, tiles = _first(look_of(model), "image_size", default=56), look_of(model).max_num_tiles
    pixels = torch.zeros(batch, 1, tiles, 3, side, side)
    pixels[:, :, 0] = torch.randn(batch, 1, 3, side, side, generator=draw)
    there = torch.zeros(batch, 1, tiles, dtype=torch.long)
    there[..., 0] = 1
    return {
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.ones(batch, 1, dtype=torch.long),
        "aspect_ratio_mask": there,
    }


def _gemma4(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Flat patches (B, n, d), in [0, 1], with their places (x, y)."""
    config = look_of(model)
    side = config.patch_size * (
        config.pooling_kernel_size if model.config.model_type == "gemma4_unified" else 1
    )
    place = torch.arange(SIDE * SIDE)
    where = torch.stack([place % SIDE, place // SIDE], 1).expand(batch, -1, -1)
    pixels = torch.rand(batch, SIDE * SIDE, 3 * side * side, generator=draw)
    return {"pixel_values": pixels, "image_position_ids": where}


def _minicpm(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """All pictures' patches in a row, (1, C, p, batch n p), with their sizes in patches."""
    patch, n = look_of(model).patch_size, 64
    pixels = torch.randn(1, 3, patch, batch * n * patch, generator=draw)
    return {"pixel_values": pixels, "target_sizes": torch.tensor([[8, 8]] * batch)}


def _molmo(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """One crop of n patches a picture, and which four of them each visual token pools."""
    config = look_of(model)
    patch = config.patch_size
    n = SIDE * SIDE
    place = torch.arange(n).view(SIDE // 2, 2, SIDE // 2, 2).transpose(1, 2).reshape(-1, 4)
    pooling = torch.cat([place + i * n for i in range(batch)])
    return {
        "pixel_values": torch.randn(batch, n, 3 * patch * patch, generator=draw),
        "image_token_pooling": pooling,
        "image_grids": torch.tensor([[SIDE // 2, SIDE // 2, 0, 0]] * batch),
        "image_num_crops": torch.ones(batch, dtype=torch.long),
    }


def _fuyu(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    patch = model.config.patch_size
    return {"pixel_values": torch.randn(batch, SIDE * SIDE, 3 * patch * patch, generator=draw)}


def _hybrid(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    seen = pictures(model, batch, draw)
    side = _first(model.config.high_res_vision_config, "image_size", default=64)
    return {**seen, "high_res_pixel_values": torch.randn(batch, 3, side, side, generator=draw)}


def _merging(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    return {**pictures(model, batch, draw), "image_merge_sizes": torch.ones(batch, dtype=torch.long)}


def _channels_last(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Merged patches with their channels last, as Inkling 2 takes them."""
    config = look_of(model)
    merge, patch = config.spatial_merge_size, config.patch_size
    pixels = torch.randn(batch * 4, merge * patch, merge * patch, config.num_channels, generator=draw)
    grid = torch.tensor([[1, 2, 2]] * batch)
    return {"pixel_values": pixels, "image_grid_thw": grid}


def _masked(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Kosmos: the places of its latent queries are said by a mask."""
    many, text = model.config.latent_query_num, inputs["input_ids"]
    mask = torch.cat(
        [torch.zeros(batch, 2), torch.ones(batch, many), torch.zeros(batch, text.shape[1] - 2)], 1
    )
    ids = torch.cat([text[:, :2], torch.full((batch, many), 5), text[:, 2:]], 1)
    return {
        **inputs,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_embeds_position_mask": mask.long(),
    }


def _mllama(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """The picture stands behind the second word, and words from there on see its one tile."""
    text = inputs["input_ids"].clone()
    text[:, 1] = ids_of(model)[0]
    seen = torch.zeros(batch, text.shape[1], 1, look_of(model).max_num_tiles, dtype=torch.long)
    seen[:, 1:, :, 0] = 1
    return {
        **inputs,
        "input_ids": text,
        "attention_mask": torch.ones_like(text),
        "cross_attention_mask": seen,
    }


def _idefics(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    seen = torch.ones(*inputs["input_ids"].shape, 1, dtype=torch.long)
    rest = {k: v for k, v in inputs.items() if k != "pixel_attention_mask"}
    return {**rest, "image_attention_mask": seen}


def _instructed(
    model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator
) -> dict[str, Tensor]:
    text = torch.randint(10, 200, (batch, 5), generator=draw)
    return {**inputs, "qformer_input_ids": text, "qformer_attention_mask": torch.ones_like(text)}


def _queried(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """BLIP-2's candidates carry placeholders for its queries in front."""
    if model.can_generate():
        return inputs
    text = inputs["input_ids"]
    front = torch.full((len(text), model.config.num_query_tokens), model.config.image_token_index)
    text = torch.cat([front, text], 1)
    return {**inputs, "input_ids": text, "attention_mask": torch.ones_like(text)}


def start_of(model: Any) -> int:
    """The token that an encoder-decoder's answers start from."""
    known = (model.generation_config, model.config, model.config.get_text_config(decoder=True))
    found = (getattr(config, "decoder_start_token_id", None) for config in known)
    return next((int(i) for i in found if i is not None), 0)


def _begun(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """BLIP's prompts begin with a token that `generate` would put there."""
    if model.can_generate():
        inputs["input_ids"][:, 0] = model.config.text_config.bos_token_id
    return inputs


def _boxed(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    boxes = torch.rand(*inputs["input_ids"].shape, 4, generator=draw)
    return {**inputs, "bbox": boxes, "decoder_input_ids": torch.full((batch, 1), start_of(model))}


def _decoded(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """A model that only looks and writes: its decoder starts from one token."""
    rest = {
        k: v
        for k, v in inputs.items()
        if k != "input_ids" and (k != "attention_mask" or v.is_floating_point())
    }
    return {**rest, "decoder_input_ids": torch.full((batch, 1), start_of(model))}


def _begins(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    return {**inputs, "decoder_input_ids": torch.full((batch, 1), start_of(model))}


Pictures = Callable[[Any, int, torch.Generator], dict[str, Tensor]]
PICTURES: dict[str, Pictures] = {
    **dict.fromkeys(("kimi_k25",), _of_patches),
    "paddleocr_vl": _of_patches,
    **dict.fromkeys(("idefics", "idefics2", "idefics3", "smolvlm"), _several),
    "granite_docling": _tiles,
    "instructblipvideo": _film,
    "inkling_mm_model": _folded,
    "perception_lm": _one_tile,
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision", "granite4_vision"), _cropped),
    "mllama": _tiled,
    **dict.fromkeys(("gemma4", "gemma4_unified"), _gemma4),
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), _minicpm),
    "molmo2": _molmo,
    "fuyu": _fuyu,
    "deepseek_vl_hybrid": _hybrid,
    "video_llama_3": _merging,
    **dict.fromkeys(("inkling2", "inkling2_loop"), _channels_last),
}
COUNTS: dict[str, Callable[[Any, dict[str, Tensor], int], int]] = {
    "mllama": lambda model, seen, batch: 0,
    "granite4_vision": _of_first_depth,
    "instructblipvideo": lambda model, seen, batch: 4 * model.config.num_query_tokens,
    **dict.fromkeys(("blip-2", "instructblip"), lambda model, seen, batch: model.config.num_query_tokens),
}
FURTHER: dict[str, Callable[[Any, dict[str, Tensor], int, torch.Generator], dict[str, Tensor]]] = {
    **dict.fromkeys(("kosmos-2", "kosmos-2.5"), _masked),
    "mllama": _mllama,
    "idefics": _idefics,
    **dict.fromkeys(("instructblip", "instructblipvideo"), _instructed),
    "blip-2": _queried,
    "blip": _begun,
    "udop": _boxed,
    **dict.fromkeys(("pix2struct", "vision-encoder-decoder", "pp_formulanet"), _decoded),
    "t5gemma2": _begins,
}
