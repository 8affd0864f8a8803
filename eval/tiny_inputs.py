"""Inputs for tiny models: what an architecture's processor would give for small random pictures and words.

The names in the model's forward say which form its pictures have; its own `get_image_features` says how many
placeholders one picture needs. What that cannot tell stands in a table of functions, one an architecture.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from arr_coc.eval.tiny_pictures import PICTURES, look_of, of_features, pictures, with_features

CANDIDATES = 3
_TOKENS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
_BOUNDS = [  # config fields of the tokens that a processor or a chat template puts around a picture
    ("vision_start_token_id", "vision_end_token_id"),
    ("image_start_token_id", "image_end_token_id"),
    ("boi_token_id", "eoi_token_id"),
    ("boi_token_index", "eoi_token_index"),
    ("im_start_id", "im_end_id"),
]
_FRONT = (
    "blip-2",
    "instructblip",
    "instructblipvideo",
    "paligemma",
    "fuyu",
)  # pictures stand before the first word


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
    if "moe_mm_token_type_ids" in takes:
        inputs["moe_mm_token_type_ids"] = torch.isin(
            text, torch.tensor(ids_of(model) + bounds_of(model))
        ).long()
    if "token_type_ids" in takes and writes:  # of PaliGemma's prompts all are prefix: 0
        shown = [] if kind == "paligemma" else ids_of(model)
        inputs["token_type_ids"] = torch.isin(text, torch.tensor(shown)).long()
    if kind in FURTHER:
        inputs = FURTHER[kind](model, inputs, batch, draw)
    return inputs


def ids_of(model: Any) -> list[int]:
    """The token ids that stand for a picture's tokens in a prompt; none where it has no place."""
    found = [getattr(model.config, name, None) for name in _TOKENS]
    found.append((getattr(model.config, "vocabulary_map", None) or {}).get("<image>"))
    return [int(i) for i in found if i is not None][:1]


def bounds_of(model: Any) -> list[int]:
    """The tokens before and behind a picture; none where the config names none."""
    named = ([getattr(model.config, name, None) for name in pair] for pair in _BOUNDS)
    return next(([int(i) for i in pair if i is not None] for pair in named if None not in pair), [])


def placed(model: Any, seen: dict[str, Tensor], text: Tensor, batch: int) -> Tensor:
    """The words with one picture's placeholders behind the second of them or in front, (batch, words + n)."""
    ids = ids_of(model)
    if not ids:
        return text
    kind = model.config.model_type
    many = COUNTS.get(kind, counted)(model, seen, batch)
    start, end = bounds_of(model)[:1], bounds_of(model)[1:]
    between = torch.tensor([start + ids * many + end] * batch, dtype=torch.long)
    place = 0 if kind in _FRONT else 2
    return torch.cat([text[:, :place], between, text[:, place:]], 1)


def counted(model: Any, seen: dict[str, Tensor], batch: int) -> int:
    """How many visual tokens a picture becomes, by the model's own features; 0 where it offers none."""
    takes = of_features(model)
    if not takes:
        return 0
    given = {k: v for k, v in seen.items() if k in takes or "kwargs" in takes}
    with torch.inference_mode():
        return rows_in(with_features(model).get_image_features(**given)) // batch


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


def _masked(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """Kosmos: a mask says where its latent queries stand, between two tokens (-1 in Kosmos-2.5)."""
    many, text = model.config.latent_query_num, inputs["input_ids"]
    edge = -1 if model.config.model_type == "kosmos-2.5" else 0
    mask = torch.tensor([[0, edge, *[1] * many, edge, *[0] * (text.shape[1] - 2)]] * batch)
    ids = torch.cat([text[:, :2], torch.full((batch, many + 1), 5), text[:, 2:]], 1)
    return {
        **inputs,
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "image_embeds_position_mask": mask,
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
    """The picture stands behind the second word, and words from there on see it."""
    seen = torch.ones(*inputs["input_ids"].shape, 1, dtype=torch.long)
    seen[:, :1] = 0
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
    """UDOP: where on the page each word stands, (left, top, right, bottom) in [0, 1]."""
    corner = torch.rand(*inputs["input_ids"].shape, 2, generator=draw) * 0.8
    boxes = torch.cat([corner, corner + 0.2], -1)
    return {**inputs, "bbox": boxes, "decoder_input_ids": torch.full((batch, 1), start_of(model))}


def _decoded(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """A model that only looks and writes: its decoder starts from one token."""
    rest = {
        k: v
        for k, v in inputs.items()
        if k != "input_ids" and (k != "attention_mask" or v.is_floating_point())
    }
    return {**rest, "decoder_input_ids": torch.full((batch, 1), start_of(model))}


def _canvas(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    """The block of random tokens that a diffusion model makes an answer of."""
    noise = torch.randint(10, 200, (batch, model.config.canvas_length), generator=draw)
    return {**inputs, "decoder_input_ids": noise}


def _begins(model: Any, inputs: dict[str, Tensor], batch: int, draw: torch.Generator) -> dict[str, Tensor]:
    return {**inputs, "decoder_input_ids": torch.full((batch, 1), start_of(model))}


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
    "diffusion_gemma": _canvas,
}
