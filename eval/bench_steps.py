"""The steps whose cost is measured: of one model, bare and attached, beside each other.

Weights are random: costs do not depend on them. Every attached copy shares the bare model's weights, so that
no two of them differ in where in memory these lie; LoRA has a copy of its own.
"""

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from arr_coc.adapters import attach
from arr_coc.adapters.attached import ArrCocModel
from arr_coc.config import ArrCocConfig
from arr_coc.eval.methods_lora import with_lora
from arr_coc.eval.trained import held_bytes

TEXTS = 10
ANSWER = 2  # taught tokens
WRITTEN = 4  # generated tokens
BARE, LORA = "bare forward", "LoRA + AdamW"
_IMAGE, _WORDS = 3, 12  # the id that stands for a visual token; words in a prompt

_small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
_dual: dict[str, dict[str, Any]] = {
    "B/32": {},
    "B/16": {"vision_config": {"patch_size": 16}},
    "tiny": {
        "vision_config": {**_small, "image_size": 32, "patch_size": 8},
        "text_config": {**_small, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 99},
        "projection_dim": 16,
    },
}
_wide = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
_generative: dict[str, dict[str, Any]] = {
    "LLaVA": {"vision_config": {}, "text_config": {**_wide, "vocab_size": 8192}},
    "tiny-LLaVA": {
        "vision_config": {**_small, "image_size": 32, "patch_size": 8, "projection_dim": 16},
        "text_config": {**_small, "vocab_size": 100},
    },
}
SHAPES = (*_dual, *_generative)


class Tokens:
    """A stand-in for a tokenizer: every second id is a word of content, and the first hundred of the others
    are function words, so that a question costs what one costs."""

    all_special_ids = ()

    def convert_ids_to_tokens(self, token: int) -> str:
        return "circle" if token % 2 else "what"

    def get_vocab(self) -> dict[str, int]:
        return {"\u2581" * i + "what": 2 * i for i in range(100)}


@dataclass(frozen=True)
class Step:
    """One thing that is done again and again.

    Args:
        name: of it.
        run: does it once.
        beside: the name of the step that it is compared with.
        bound: what its seconds may be times those of that step; None where none was set.
        adapter: the attached model that it runs on.
        state: bytes of what it keeps between steps, where that is no adapter's.
    """

    name: str
    run: Callable[[], Any]
    beside: str = BARE
    bound: float | None = None
    adapter: ArrCocModel | None = None
    state: Callable[[], int] | None = None


def model(shape: str) -> Any:
    """A model with random weights: a `CLIPModel` ("B/32" or "B/16" at 224 px); a
    `LlavaForConditionalGeneration` with the tower of B/32 and a Llama of 8 blocks, 512 wide ("LLaVA"); or one
    of either kind for a try ("tiny", "tiny-LLaVA").

    Raises:
        ValueError: for another shape.
    """
    from transformers import CLIPConfig, CLIPModel, LlavaConfig, LlavaForConditionalGeneration

    if shape not in SHAPES:
        raise ValueError(f"shape={shape!r}: possible are {', '.join(SHAPES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if shape in _dual:
            return CLIPModel(CLIPConfig(**_dual[shape])).eval()
        said = _generative[shape]
        vision = {
            "model_type": "clip_vision_model",
            "image_size": 224,
            "patch_size": 32,
            **said["vision_config"],
        }
        words = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        further: dict[str, Any] = {"image_token_index": _IMAGE, "image_seq_length": _patches(vision)}
        config = LlavaConfig(vision_config=vision, text_config={**words, **said["text_config"]}, **further)
        made = LlavaForConditionalGeneration(config).eval()
        made.generation_config.pad_token_id = 0
        return made


def _patches(vision: dict[str, Any]) -> int:
    return (vision["image_size"] // vision["patch_size"]) ** 2


def inputs(model: Any, batch: int, texts: int = TEXTS) -> dict[str, Tensor]:
    """Noise and token ids of a dual encoder: pixel_values (batch, 3, S, S), input_ids and attention_mask
    (texts, 8)."""
    draw = torch.Generator().manual_seed(1)
    size, words = model.config.vision_config.image_size, model.config.text_config
    ids = torch.randint(2, words.vocab_size - 2, (texts, 8), generator=draw)
    ids[:, -1] = words.eos_token_id
    pixels = torch.randn(batch, 3, size, size, generator=draw)
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}


def prompts(model: Any, batch: int) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Noise and token ids of a generative model: a prompt of a picture and words, the same with answers
    behind it, and labels (batch, T) that teach those."""
    draw = torch.Generator().manual_seed(1)
    vision, words = model.config.vision_config, model.config.text_config
    count = _patches({"image_size": vision.image_size, "patch_size": vision.patch_size})
    ids = torch.randint(4, words.vocab_size, (batch, 1 + count + _WORDS), generator=draw)
    ids[:, 0], ids[:, 1 : 1 + count] = words.bos_token_id, _IMAGE
    answers = torch.randint(4, words.vocab_size, (batch, ANSWER), generator=draw)
    pixels = torch.randn(batch, 3, vision.image_size, vision.image_size, generator=draw)

    def given(ids: Tensor) -> dict[str, Tensor]:
        return {"pixel_values": pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids)}

    labels = torch.cat([torch.full_like(ids, -100), answers], 1)
    return given(ids), given(torch.cat([ids, answers], 1)), labels


def sharing(model: Any) -> Any:
    """A copy of a model with the very same weights: what one of them is attached to, the other is not."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def steps(model: Any, batch: int, config: ArrCocConfig | None = None) -> list[Step]:
    """The steps of a model, the bare forward first; each twice or oftener in a process before it is timed."""
    made = _speaking if hasattr(model, "generate") else _scoring
    return made(model, batch, config)


def _frozen(model: Any, inputs: dict[str, Tensor]) -> Callable[[], Any]:
    def forward() -> Any:
        with torch.inference_mode():
            return model(**inputs)

    return forward


def _off(attached: ArrCocModel, call: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        with attached.disable():
            return call()

    return run


def _forwards(model: Any, given: dict[str, Tensor], fitted: ArrCocModel, fresh: ArrCocModel) -> list[Step]:
    """The bare forward, twice, for what differs by chance; and the attached one."""
    return [
        Step(BARE, _frozen(model, given)),
        Step("bare forward, again", _frozen(model, given)),
        Step("forward, learning off", _off(fitted, lambda: fitted(**given)), bound=1.02),
        Step("forward, nothing learned", lambda: fresh(**given), bound=1.05),
        Step("forward, relevance on", lambda: fitted(**given), bound=1.05),
    ]


def _acting(attached: ArrCocModel, act: Callable[[], Any], batch: int) -> Callable[[], Any]:
    """An action and its reward: every second sample is right, and the others the next time."""
    turns = itertools.count()

    def run() -> Any:
        return attached.reward(act(), ((torch.arange(batch) + next(turns)) % 2).float())

    return run


def _tuned(model: Any, tower: str, loss: Callable[[Any], Tensor]) -> Step:
    tuned = with_lora(model, tower=tower)
    tuned.train()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        loss(tuned).backward()
        optimizer.step()

    return Step(LORA, run, state=lambda: held_bytes(trained, optimizer))


def _scoring(model: Any, batch: int, config: ArrCocConfig | None) -> list[Step]:
    given, labels = inputs(model, batch), torch.arange(batch) % TEXTS
    asked = {"context_ids": inputs(model, 1, 1)["input_ids"]}
    fitted, fresh, plain, cued, actor = (attach(sharing(model), config) for _ in range(5))
    for turn in range(4):
        fitted.learn(labels=(labels + turn) % TEXTS, **given)

    def loss(tuned: Any) -> Tensor:
        return torch.nn.functional.cross_entropy(tuned(**given).logits_per_image, labels)

    def learn(attached: ArrCocModel, **further: Any) -> Callable[[], Any]:
        return lambda: attached.learn(labels=labels, **given, **further)

    act = _acting(actor, lambda: actor.act(**given), batch)
    return [
        *_forwards(model, given, fitted, fresh),
        Step("learn", learn(plain), bound=1.1, adapter=plain),
        Step("learn, with a context", learn(cued, **asked), bound=1.1, adapter=cued),
        Step("act and reward", act, adapter=actor),
        _tuned(model, "vision_model", loss),
    ]


def _speaking(model: Any, batch: int, config: ArrCocConfig | None) -> list[Step]:
    asked, given, labels = prompts(model, batch)
    fitted, fresh, plain, actor = (attach(sharing(model), config, Tokens()) for _ in range(4))
    for _ in range(4):
        fitted.learn(labels=labels, **given)
    how: dict[str, Any] = {"max_new_tokens": WRITTEN, "min_new_tokens": WRITTEN, "do_sample": False}

    def write() -> Any:
        with torch.inference_mode():
            return model.generate(**asked, **how)

    def loss(tuned: Any) -> Tensor:
        logits = tuned(**given).logits[:, -1 - ANSWER : -1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, -ANSWER:].flatten())

    act = _acting(actor, lambda: actor.act(**asked, **how), batch)
    bare = "bare generate"
    return [
        *_forwards(model, given, fitted, fresh),
        Step("learn", lambda: plain.learn(labels=labels, **given), bound=1.1, adapter=plain),
        _tuned(model, "language_model", loss),
        Step(bare, write, bare),
        Step("generate, learning off", _off(fitted, lambda: fitted.generate(**asked, **how)), bare, 1.02),
        Step("generate, relevance on", lambda: fitted.generate(**asked, **how), bare, 1.05),
        Step("act and reward", act, bare, adapter=actor),
    ]
