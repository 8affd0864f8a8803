"""Tiny random models of every image-text architecture of the installed transformers, shrunk by rule.

A default config becomes a dict, every field is shrunk by what its name says, and what the rules cannot know
stands in `tiny_overrides`. The result has the architecture's own code and shapes, and no pretrained weights.
"""

import re
from copy import deepcopy
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
)

from arr_coc.eval.tiny_overrides import OVERRIDES

WIDTH, HEADS, HEAD, LAYERS, VOCABULARY = 64, 4, 16, 4, 1024
_SPECIAL = VOCABULARY - 150  # token ids that do not fit are moved to here, one by one

# field names, whole; the first that matches decides. An int shrinks to the value, never grows; 0 stays 0.
_RULES: list[tuple[str, int]] = [
    (r"(\w+_)?num_key_value_heads|linear_num_key_heads", 2),
    (
        r"(\w+_)?(num_(hidden_|encoder_|decoder_|spatial_|temporal_|auxiliary_|global_)?layers|depth|n_layers?"
        r"|layers)|max_window_layers",
        LAYERS,
    ),
    (r"(\w+_)?(attention_heads|num_heads|n_heads|num_attention_heads|heads|num_value_heads)", HEADS),
    (r"qk_rope_head_dim", HEAD // 2),
    (r"(\w+_)?head_dim|d_kv|resampler_dim_head", HEAD),
    (r"(\w+_)?(intermediate_size(_mlp)?|ffn_dim|mlp_dim)|d_ff|merged_hidden_size", 2 * WIDTH),
    (
        r"(\w+_)?(hidden_size|hidden_dim|embed_dim|lora_rank|projection_dim|projection_size|output_dim"
        r"|output_size|project_dim|embed_proj_dim)(_per_layer_input)?|d_model|projector_(in|out)put_dim|adapter_(in|out)_dim|adapter_input_size",
        WIDTH,
    ),
    (r"(unpadded_)?vocab_size(_per_layer_input)?", VOCABULARY),
    (r"(\w+_)?(num_experts|n_routed_experts|num_local_experts)", 4),
    (r"num_experts_per_tok|moe_topk|moe_k", 2),
    (r"n_group|topk_group|n_groups", 1),
    (r"max_position_embeddings", 512),
    (r"base_channels|num_filters", 32),  # group norms have 32 groups
    (r"hidden_sizes|latent_channels|codebook_dim", WIDTH),
    (r"num_res_blocks", 1),
]
_LAYER_NUMBERS = re.compile(
    r"cross_attention_layers|deepstack_visual_indexes|fullatt_block_indexes|global_attn_indexes"
    r"|full_attn_idxs|moe_layers|kv_source_layers|rope_scaling_layers|extract_layers"
    r"|intermediate_layers_indices|spatial_target_layers"
)


def architectures() -> list[tuple[str, str]]:
    """(model_type, "dual" or "generative") of all that transformers maps, in its order."""
    dual = [(kind, "dual") for kind in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES]
    writes = [(kind, "generative") for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES]
    return [*dual, ("vision-text-dual-encoder", "dual"), *writes]


def class_of(kind: str, task: str) -> Any:
    """The model class that transformers maps an architecture to."""
    if kind == "vision-text-dual-encoder":
        return transformers.VisionTextDualEncoderModel
    names = {
        "dual": MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
        "generative": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }[task]
    name = names[kind]
    return getattr(transformers, name if isinstance(name, str) else name[0])


def tiny_config(kind: str, task: str = "") -> Any:
    """The architecture's default config, shrunk; `task` where an architecture has two."""
    base: Any = CONFIG_MAPPING[kind]
    if kind == "vision-text-dual-encoder":
        parts = [
            CONFIG_MAPPING[name].from_dict(shrink(CONFIG_MAPPING[name]().to_dict()))
            for name in ("vit", "bert")
        ]
        return base.from_vision_text_configs(*parts, projection_dim=WIDTH)
    small = shrink(base().to_dict())
    for path, value in {**OVERRIDES.get(kind, {}), **OVERRIDES.get(f"{kind}/{task}", {})}.items():
        _put(small, path.split("."), value)
    return base.from_dict(small)


def tiny_model(kind: str, task: str, seed: int = 0) -> Any:
    """A model of the architecture with random weights, in float32, ready to answer."""
    return model_of(tiny_config(kind, task), class_of(kind, task), seed)


def model_of(config: Any, kind: Any, seed: int = 0) -> Any:
    """A model of this class and config, with random weights through which pictures come, in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
        for name, parameter in model.named_parameters():
            _enliven(name, parameter)
    return model.float().eval()


def _enliven(name: str, parameter: torch.nn.Parameter) -> None:
    """Weights are drawn for wide models: so narrow, or near 0, or gated, no picture would come through."""
    if name.endswith("gate") and parameter.numel() == 1:
        torch.nn.init.constant_(parameter, 0.5)
    if parameter.dim() < 2 or not parameter.is_floating_point():
        return
    scale = parameter[0].numel() ** -0.5
    if float(parameter.detach().std()) < scale / 2:
        torch.nn.init.normal_(parameter, std=scale)


def shrink(fields: dict[str, Any], ids: dict[int, int] | None = None) -> dict[str, Any]:
    """A config's fields with small numbers; equal token ids stay equal, through all its sub-configs."""
    ids = {} if ids is None else ids
    deep = _depth(fields)
    return {name: _shrunk(name, value, fields, deep, ids) for name, value in fields.items()}


def _depth(fields: dict[str, Any]) -> int:
    names = ("num_hidden_layers", "num_layers", "depth", "n_layers")
    return next((v for n in names if isinstance(v := fields.get(n), int)), -1)


def _shrunk(name: Any, value: Any, fields: dict[str, Any], deep: int, ids: dict[int, int]) -> Any:
    name = str(name)
    if name in ("id2label", "label2id"):
        return value
    if name == "patch_embed_hidden_size":  # as wide as a flattened patch, not as the tower
        return value
    if name == "per_layer_config" and isinstance(value, dict):
        return {k: shrink(v, ids) for k, v in value.items() if int(k) < LAYERS} or None
    if isinstance(value, dict):
        return shrink(value, ids)
    if isinstance(value, list):
        short = _short(name, value, deep)
        whole = all(isinstance(v, int) and not isinstance(v, bool) for v in short)
        return [min(v, _bound(name, fields, v)) for v in short] if whole else short
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if re.fullmatch(r".*(token_id|token_index|_patch_id|im_\w+_id)", name):
        return value if value < _SPECIAL else ids.setdefault(value, _SPECIAL + len(ids))
    return min(value, _bound(name, fields, value))


def _bound(name: str, fields: dict[str, Any], value: int) -> int:
    """The most that a field of that name is left with; its own value where no rule knows the name."""
    if name == "image_size":
        patch = fields.get("patch_size", 16)
        patch = patch[0] if isinstance(patch, list) else patch
        return 4 * (patch or 16)
    return next((size for pattern, size in _RULES if re.fullmatch(pattern, name)), value)


def _short(name: str, value: list[Any], deep: int) -> list[Any]:
    """Lists with one entry a layer are cut, lists of layer numbers point into what is left."""
    if _LAYER_NUMBERS.fullmatch(name):
        top = LAYERS - 1
        return sorted({min(v, top if i == len(value) - 1 else top - 1) for i, v in enumerate(value)})
    if name == "mrope_section":  # rotary halves for time, height and width
        side = HEAD // 6
        return [HEAD // 2 - 2 * side, side, side]
    if len(value) != deep:
        return value
    if name == "layer_types" and "full_attention" in value and "full_attention" not in value[:LAYERS]:
        return [*value[: LAYERS - 1], "full_attention"]
    return value[:LAYERS]


def _put(fields: dict[str, Any], path: list[str], value: Any) -> None:
    for step in path[:-1]:
        fields = fields[step]
    fields[path[-1]] = deepcopy(value)  # configs take apart what they are made from
