"""Tiny models of every architecture and their inputs, beside what the real image processors give."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

from arr_coc.eval.sweep import OUTSIDE, scores
from arr_coc.eval.tiny_inputs import example, ids_of
from arr_coc.eval.tiny_models import architectures, tiny_model

DOZEN = [
    ("align", "dual"),  # convolutions
    ("blip-2", "dual"),  # a Q-Former
    ("siglip2", "dual"),  # patches in a row
    ("chameleon", "generative"),  # pictures become words of a codebook
    ("diffusion_gemma", "generative"),  # blocks at once
    ("gemma3n", "generative"),  # a timm tower
    ("idefics3", "generative"),  # several pictures a sample
    ("kosmos-2.5", "generative"),  # a mask for the places
    ("llava_next", "generative"),  # crops
    ("mllama", "generative"),  # tiles, attended to
    ("molmo2", "generative"),  # pooled patches
    ("pix2struct", "generative"),  # no prompt
    ("qwen2_5_vl", "generative"),  # grids
    ("video_llama_3", "generative"),
]
RUNS = [a for a in architectures() if a[0] not in OUTSIDE or a[0] == "diffusion_gemma"]
ALL = [pytest.param(*a, marks=[] if a in DOZEN else pytest.mark.slow) for a in RUNS]
LARGE = {  # in millions of parameters: what no config makes smaller
    "gemma3n": 20,  # the last layer of timm's MobileNetV5 has 2048 channels
    "deepseek_vl_hybrid": 8,  # convolutions of 256, 512 and 1024 channels
}
CROWDED = {"deepseek_ocr2": 145, "emu3": 72}  # 144 queries and a separator; 8 rows of 8 and their ends


def answers(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Logits: all of a dual encoder, those at the last place of a generative model."""
    with torch.no_grad():
        logits = scores(model(**inputs))
    return logits if logits.dim() == 2 else logits[:, -1]


def pixels(inputs: dict[str, Tensor]) -> str:
    """The name of the input that holds the pictures."""
    return next(n for n in inputs if n.startswith("pixel_values") or n == "flattened_patches")


@pytest.mark.parametrize(("kind", "task"), ALL)
def test_an_architecture_answers_by_what_it_sees(kind: str, task: str) -> None:
    model = tiny_model(kind, task)
    inputs, others = example(model), example(model, seed=1)
    logits = answers(model, inputs)
    assert torch.isfinite(logits).all()
    name = pixels(inputs)
    other = {**inputs, **{n: others[n] for n in inputs if n.endswith(name)}}  # deepseek_vl_hybrid has two
    seen = logits.abs() < 1e30  # chameleon forbids the words of its codebook
    change = (answers(model, other) - logits)[seen].abs().max()
    assert change > 0.1 * logits[seen].std()
    one, two = inputs[name].reshape(2, -1) if inputs[name].shape[0] > 1 else inputs[name].chunk(2, -1)
    assert not torch.equal(one, two)  # the pictures of a batch
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions < LARGE.get(kind, 5)


@pytest.mark.parametrize(("kind", "task"), ALL)
def test_a_seed_says_the_weights_and_the_inputs(kind: str, task: str) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    model, again, other = (tiny_model(kind, task, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    same = zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)
    inputs, repeated = example(model), example(again)
    assert inputs.keys() == repeated.keys()
    assert all(torch.equal(inputs[n], repeated[n]) for n in inputs)


@pytest.mark.parametrize(("kind", "task"), [p for p in ALL if p.values[1] == "generative"])
def test_a_generative_architecture_writes(kind: str, task: str) -> None:
    model = tiny_model(kind, task)
    inputs = example(model)
    places = ids_of(model)
    if places and "input_ids" in inputs and kind not in ("mllama", "kosmos-2", "kosmos-2.5"):
        many = (inputs["input_ids"] == places[0]).sum(1)
        assert (many == CROWDED.get(kind, many[0])).all()
        assert kind in CROWDED or 4 <= many[0] <= 70
    written = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert len(getattr(written, "sequences", written)) == 2


# of 4 x 4 patches, from how each architecture is described: merged 2 x 2, pooled, queried, with line ends
TOKENS = {
    "llava": 16,
    "llava_next": 16 + 4 * (4 + 1),  # the whole, and a crop with a newline a row
    "qwen2_5_vl": 4,
    "hunyuan_vl": 2 * (2 + 1) + 2,  # a newline a row, a begin and an end
    "idefics3": 4 * 4 // 2**2,
    "gemma3": 4,
    "molmo2": 4 + 4,  # the whole and a crop, pooled 2 x 2
    "instructblip": 4,  # queries
    "unlimited_ocr": 2 * (2 + 1) + 1,  # a newline a row, a separator
    "apertus1p5": 4 * 4,  # 64 pixels, halved four times
}


@pytest.mark.parametrize("kind", TOKENS)
def test_a_prompt_has_as_many_places_as_the_picture_has_tokens(kind: str) -> None:
    model = tiny_model(kind, "generative")
    ids = example(model, words=5)["input_ids"]
    where = ids == ids_of(model)[0]
    assert where.sum(1).tolist() == [TOKENS[kind]] * 2
    assert int(where[0].float().diff().abs().sum()) <= 2  # in one run


def test_tokens_around_a_picture_and_the_types_of_all() -> None:
    model = tiny_model("ernie4_5_vl_moe", "generative")
    inputs, config = example(model, words=4), model.config
    around = [config.image_start_token_id, *[config.image_token_id] * 4, config.image_end_token_id]
    assert inputs["input_ids"][:, 2:-2].tolist() == [around] * 2
    assert inputs["mm_token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 0, 0, 0]] * 2
    assert inputs["moe_mm_token_type_ids"].tolist() == [[0, 0, 1, 1, 1, 1, 1, 1, 0, 0]] * 2


def test_placeholders_stand_in_front_where_a_processor_puts_them_there() -> None:
    model = tiny_model("paligemma", "generative")
    inputs = example(model, words=3)
    assert (inputs["input_ids"] == model.config.image_token_index).tolist() == [[True] * 16 + [False] * 3] * 2
    assert not inputs["token_type_ids"].any()  # a prompt is all prefix


def processed(kind: str, **options: Any) -> dict[str, Any]:
    """What the architecture's own image processor gives for two random pictures of 64 x 64, or `side`."""
    side = options.pop("side", 64)
    names = IMAGE_PROCESSOR_MAPPING_NAMES[kind]
    name = names.get("torchvision", names.get("pil"))
    draw = np.random.default_rng(0)
    shown = [Image.fromarray(draw.integers(0, 255, (side, side, 3), dtype=np.uint8)) for _ in range(2)]
    return getattr(transformers, name)(**options)(shown, return_tensors="pt")


UNLIKE = {
    "fuyu": "its processor, not its image processor, cuts the patches",
    "idefics": "its image processor returns a bare tensor",
    "udop": "needs Tesseract",
    "unlimited_ocr": "lists, for views that a small picture has none of",
    "video_llava": "a deprecated name of the same pixels",
}
PROCESSED = [p for p in ALL if p.values[0] in IMAGE_PROCESSOR_MAPPING_NAMES and p.values[0] not in UNLIKE]


@pytest.mark.parametrize(("kind", "task"), PROCESSED)
def test_inputs_have_what_the_image_processor_gives(kind: str, task: str) -> None:
    model = tiny_model(kind, task)
    inputs, takes = example(model), inspect.signature(model.forward).parameters
    given = {n: v for n, v in processed(kind).items() if n in takes}
    given.pop("attention_mask", None) if "input_ids" in takes else None  # kosmos-2.5: the words' replaces it
    assert set(given) <= set(inputs)
    for name, value in given.items():
        assert inputs[name].dim() == value.dim(), name
        assert inputs[name].is_floating_point() == value.is_floating_point(), name


EXACT = {  # options that give a picture 4 x 4 patches
    "siglip2": {"patch_size": 16, "max_num_patches": 16},
    "qwen2_5_vl": {},
    "ernie4_5_vl_moe": {},
    "minimax_m3_vl": {},
    "inkling2": {},
    "kimi_k25": {"side": 56},
    "llava_next": {
        "side": 56,
        "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56},
        "image_grid_pinpoints": [[56, 56]],
    },
    "pix2struct": {"max_patches": 16},
    "molmo2": {"side": 56, "size": {"height": 56, "width": 56}, "max_crops": 1, "overlap_margins": [0, 0]},
}


@pytest.mark.parametrize("kind", EXACT)
def test_inputs_have_the_image_processors_shapes(kind: str) -> None:
    model = tiny_model(kind, dict(RUNS)[kind])
    inputs, given = example(model), processed(kind, **EXACT[kind])
    for name in inspect.signature(model.forward).parameters:
        if name in given:
            assert inputs[name].shape == given[name].shape, name
            if "grid" in name or "sizes" in name or "shapes" in name or "position" in name:
                assert torch.equal(inputs[name].long(), torch.as_tensor(given[name]).long()), name


def test_a_batch_and_a_length_of_words_are_kept() -> None:
    model = tiny_model("qwen2_5_vl", "generative")
    inputs = example(model, batch=3, words=9)
    assert inputs["input_ids"].shape == (3, 9 + 4 + 2)  # words, a picture, its start and end
    assert inputs["image_grid_thw"].tolist() == [[1, 4, 4]] * 3
    dual = example(tiny_model("clip", "dual"), batch=4, words=5)
    assert dual["pixel_values"].shape[0] == 4
    assert dual["input_ids"].shape == (3, 5)  # candidates, whatever the batch
