"""Pictures for tiny models: the tensors that an architecture's image processor gives for small random ones.

The names in the model's forward say which form its pictures have. What they cannot tell stands in a table of
functions, one a form.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SIDE = 4  # patches along a side, before a projector merges them


def look_of(model: Any) -> Any:
    """The config of the part that sees, of the first where two see one behind the other."""
    for name in ("vision_config", "encoder", "vlm_config", "vq_config"):
        found = getattr(model.config, name, None)
        if found is not None:
            return getattr(found, "sam_config", found)
    return model.config


def first_of(config: Any, *names: str, default: int) -> int:
    """The first of the fields that says a number, the last of several; `default` if none does."""
    for name in names:
        value = getattr(config, name, None)
        value = value[-1] if isinstance(value, list | tuple) and value else value
        if isinstance(value, int) and value:
            return value
    return default


def pictures(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """The picture inputs by the names in the model's forward."""
    config, takes = look_of(model), inspect.signature(model.forward).parameters
    patch = first_of(config, "patch_size", default=16)
    channels = first_of(config, "num_channels", "in_chans", default=3)
    n, grid = SIDE * SIDE, torch.tensor([[SIDE, SIDE]] * batch)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    if "flattened_patches" in takes:
        seen = {"flattened_patches": numbered(noise(batch, n, channels * patch * patch))}
        return seen if "input_ids" in takes else {**seen, "attention_mask": torch.ones(batch, n)}
    if "image_grid_thw" in takes:
        frames = first_of(config, "temporal_patch_size", "patch_temporal", default=1)
        whole = torch.cat([torch.ones(batch, 1, dtype=torch.long), grid], 1)
        return {"pixel_values": noise(batch * n, channels * frames * patch * patch), "image_grid_thw": whole}
    if "image_grid_hw" in takes:
        return {"pixel_values": noise(batch * n, channels * patch * patch), "image_grid_hw": grid}
    if "spatial_shapes" in takes:
        there = torch.ones(batch, n, dtype=torch.int32)
        flat = noise(batch, n, channels * patch * patch)
        return {"pixel_values": flat, "spatial_shapes": grid, "pixel_attention_mask": there}
    side = first_of(config, "image_size", "resolution", default=SIDE * patch)
    if "pixel_values" not in takes and "pixel_values_videos" in takes:
        return {
            "pixel_values_videos": noise(
                batch, first_of(config, "num_frames", default=4), channels, side, side
            )
        }
    seen = {"pixel_values": noise(batch, channels, side, side)}
    if "image_sizes" in takes and "image_sizes" in of_features(model):
        seen["image_sizes"] = torch.tensor([[side, side]] * batch)
    if "pixel_mask" in takes:
        seen["pixel_mask"] = torch.ones(batch, side, side, dtype=torch.bool)
    return seen


def with_features(model: Any) -> Any:
    """The outermost part of a model that tells its picture features; None if none does."""
    return next((m for m in model.modules() if hasattr(m, "get_image_features")), None)


def of_features(model: Any) -> dict[str, Any]:
    """The parameters of `get_image_features`; none where there is no such method."""
    owner = with_features(model)
    return {} if owner is None else dict(inspect.signature(owner.get_image_features).parameters)


def numbered(patches: Tensor) -> Tensor:
    """Flattened patches (B, n, d) with their row and column, from 1, in front: (B, n, 2 + d)."""
    place = torch.arange(patches.shape[1])
    where = torch.stack([place // SIDE + 1, place % SIDE + 1], 1).expand(len(patches), -1, -1)
    return torch.cat([where.to(patches), patches], 2)


def _of_patches(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Patches as small pictures, (batch n, C, p, p), with their grids."""
    seen = pictures(model, batch, draw)
    patch = first_of(look_of(model), "patch_size", default=16)
    return {**seen, "pixel_values": seen["pixel_values"].reshape(len(seen["pixel_values"]), -1, patch, patch)}


def _several(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """(B, pictures, C, H, W), and which pixels are no padding."""
    pixels = pictures(model, batch, draw)["pixel_values"].unsqueeze(1)
    return {"pixel_values": pixels, "pixel_attention_mask": torch.ones_like(pixels[:, :, 0]).long()}


def _tiles(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """(B, tiles, C, H, W), and which tiles there are."""
    pixels = pictures(model, batch, draw)["pixel_values"].unsqueeze(1)
    return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(batch, 1, dtype=torch.bool)}


def _film(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """(B, frames, C, H, W) in the place of pictures."""
    side = first_of(look_of(model), "image_size", default=56)
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
    side = first_of(look_of(model), "image_size", default=56)
    pixels = torch.randn(batch, 2, 3, side, side, generator=draw)
    seen = {"pixel_values": pixels, "image_sizes": torch.tensor([[side, side]] * batch)}
    if "batch_num_images" in inspect.signature(model.forward).parameters:
        seen["batch_num_images"] = torch.ones(batch, dtype=torch.long)
    return seen


def _tiled(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """(B, pictures, tiles, C, H, W) with one picture of one tile, as mllama takes them."""
    side, tiles = first_of(look_of(model), "image_size", default=56), look_of(model).max_num_tiles
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
    return {"pixel_values": pixels, "target_sizes": torch.tensor([[8, 8]] * batch, dtype=torch.int32)}


def _molmo(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """A whole picture and one crop of it, n patches each, and which four of them each visual token pools."""
    patch, n = look_of(model).patch_size, SIDE * SIDE
    place = torch.arange(n).view(SIDE // 2, 2, SIDE // 2, 2).transpose(1, 2).reshape(-1, 4)
    return {
        "pixel_values": torch.randn(2 * batch, n, 3 * patch * patch, generator=draw),
        "image_token_pooling": torch.cat([place + i * n for i in range(2 * batch)]),
        "image_grids": torch.tensor([[SIDE // 2] * 4] * batch),
        "image_num_crops": torch.full((batch,), 2),
    }


def _fuyu(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """All pictures' flat patches in a row, (batch n, 3 p p)."""
    patch = model.config.patch_size
    return {"pixel_values": torch.randn(batch * SIDE * SIDE, 3 * patch * patch, generator=draw)}


def _hybrid(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    seen = pictures(model, batch, draw)
    side = first_of(model.config.high_res_vision_config, "image_size", default=64)
    return {**seen, "high_res_pixel_values": torch.randn(batch, 3, side, side, generator=draw)}


def _without_views(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """A picture too small for views of its parts."""
    return {**pictures(model, batch, draw), "num_local_patches": torch.zeros(batch, dtype=torch.long)}


def _measured(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Flattened patches, and the size that the picture had in pixels."""
    size = torch.full((batch,), 64)
    return {**pictures(model, batch, draw), "width": size, "height": size}


def _merging(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    return {**pictures(model, batch, draw), "image_merge_sizes": torch.ones(batch, dtype=torch.long)}


def _channels_last(model: Any, batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Merged patches with their channels last, as Inkling 2 takes them."""
    config = look_of(model)
    merge, patch = config.spatial_merge_size, config.patch_size
    pixels = torch.randn(batch * 4, merge * patch, merge * patch, config.num_channels, generator=draw)
    grid = torch.tensor([[1, 2, 2]] * batch)
    return {"pixel_values": pixels, "image_grid_thw": grid}


Pictures = Callable[[Any, int, torch.Generator], dict[str, Tensor]]
PICTURES: dict[str, Pictures] = {
    **dict.fromkeys(("kimi_k25", "paddleocr_vl"), _of_patches),
    **dict.fromkeys(("idefics", "idefics2", "idefics3", "smolvlm"), _several),
    "granite_docling": _tiles,
    "instructblipvideo": _film,
    "inkling_mm_model": _folded,
    "perception_lm": _one_tile,
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision", "granite4_vision"), _cropped),
    "mllama": _tiled,
    **dict.fromkeys(("gemma4", "gemma4_unified", "diffusion_gemma"), _gemma4),
    **dict.fromkeys(("minicpm_ocr", "minicpmv4_6", "minicpmv4_7"), _minicpm),
    "molmo2": _molmo,
    "fuyu": _fuyu,
    "deepseek_vl_hybrid": _hybrid,
    "kosmos-2.5": _measured,
    **dict.fromkeys(("deepseek_ocr2", "step3p7"), _without_views),
    "video_llama_3": _merging,
    **dict.fromkeys(("inkling2", "inkling2_loop"), _channels_last),
}
