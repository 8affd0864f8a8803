"""Folders as the Hub has them: a tiny model of a real architecture, and the real processor that goes with it.

The tokenizer is trained on the spot on the words below; image processors and chat templates are transformers'
own classes in the shapes that the architecture's checkpoints have.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoModelForZeroShotImageClassification, AutoProcessor

from arr_coc.adapters.offloaded import weights
from arr_coc.eval.tiny_models import class_of, model_of, tiny_config

WORDS = "a photo of the red green blue square what colour is this which shape ? . user : assistant dax wug"
COLOURS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220)}
NAMES = ("dax", "wug", "square")


@dataclass(frozen=True)
class Kind:
    """How an architecture's checkpoints are made up.

    Args:
        task: "dual" or "generative".
        processor: class of its processor.
        eyes: class of its image processor, and its options.
        image: the token that stands for a picture, "" where there is none.
        further: other tokens that its processor asks for.
        shown: what its chat template writes for a picture; `image` by default, and no template for "".
        options: of the processor.
        config: dotted fields of the config, where a token's name stands for its id.
    """

    task: str
    processor: str
    eyes: tuple[str, dict[str, Any]]
    image: str = ""
    further: tuple[str, ...] = ()
    shown: str = ""
    options: tuple[tuple[str, Any], ...] = ()
    config: tuple[tuple[str, Any], ...] = ()


_PLACES = (("image_token_id", "<image>"), ("image_token_index", "<image>"))
_CLIP = {"size": {"shortest_edge": 128}, "crop_size": {"height": 128, "width": 128}}
KINDS: dict[str, Kind] = {
    "clip": Kind("dual", "CLIPProcessor", ("CLIPImageProcessor", _CLIP)),
    "siglip": Kind(
        "dual", "SiglipProcessor", ("SiglipImageProcessor", {"size": {"height": 64, "width": 64}})
    ),
    "llava": Kind(
        "generative",
        "LlavaProcessor",
        ("CLIPImageProcessor", {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}),
        image="<image>",
        shown="<image>\n",
        options=(
            ("patch_size", 14),
            ("vision_feature_select_strategy", "default"),
            ("num_additional_image_tokens", 1),
        ),
        config=_PLACES,
    ),
    "qwen2_5_vl": Kind(
        "generative",
        "Qwen2_5_VLProcessor",
        ("Qwen2VLImageProcessor", {"size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}}),
        image="<|image_pad|>",
        further=("<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
        shown="<|vision_start|><|image_pad|><|vision_end|>",
        config=(
            ("image_token_id", "<|image_pad|>"),
            ("video_token_id", "<|video_pad|>"),
            ("vision_start_token_id", "<|vision_start|>"),
            ("vision_end_token_id", "<|vision_end|>"),
        ),
    ),
    "idefics3": Kind(
        "generative",
        "Idefics3Processor",
        (
            "Idefics3ImageProcessor",
            {
                "size": {"longest_edge": 128},
                "max_image_size": {"longest_edge": 128},
                "do_image_splitting": False,
            },
        ),
        image="<image>",
        further=("<fake_token_around_image>", "<end_of_utterance>", "<global-img>"),
        shown="<image>",
        options=(("image_seq_len", 4),),
        config=_PLACES[:1],
    ),
    "paligemma": Kind(
        "generative",
        "PaliGemmaProcessor",
        ("SiglipImageProcessor", {"size": {"height": 56, "width": 56}, "image_seq_length": 16}),
        image="<image>",
        config=(*_PLACES, ("vocab_size", 2048), ("text_config.vocab_size", 2048)),
    ),
}
_SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def tokenizer(further: tuple[str, ...] = (), closed: bool = False) -> Any:
    """Byte-pair encoding trained on WORDS; a text begins with <s> and, where it is closed, ends with </s>, as
    CLIP's do. Prompts, which an answer goes on from, are padded in front."""
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*_SPECIAL.values(), *further],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator([WORDS] * 2, trainer)
    ends = [(token, raw.token_to_id(token)) for token in ("<s>", "</s>")]
    form = "<s> $A </s>" if closed else "<s> $A"
    raw.post_processor = processors.TemplateProcessing(single=form, special_tokens=ends)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        padding_side="right" if closed else "left",
        additional_special_tokens=list(further),
        **_SPECIAL,
    )


def chat_template(shown: str) -> str:
    """Every message as "role: what it says", with `shown` where a picture is."""
    return (
        "{% for message in messages %}{{ message['role'] + ': ' }}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}{{ " + repr(shown) + " }}{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )


def save(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint: config, weights, tokenizer, image processor and, where there is one, a template."""
    said = KINDS[kind]
    special = tuple(t for t in (said.image, *said.further) if t)
    words = tokenizer(special, closed=said.task == "dual")
    config = tiny_config(kind, said.task)
    for path, value in said.config:
        *inner, name = path.split(".")
        owner = config
        for step in inner:
            owner = getattr(owner, step)
        setattr(owner, name, words.convert_tokens_to_ids(value) if value in special else value)
    for owner in (config, config.get_text_config()):
        for name in ("pad", "bos", "eos"):
            if hasattr(owner, f"{name}_token_id"):
                setattr(owner, f"{name}_token_id", getattr(words, f"{name}_token_id"))
    model_of(config, class_of(kind, said.task), seed).save_pretrained(folder)
    eyes, options = said.eyes
    parts = {"image_processor": getattr(transformers, eyes)(**options), "tokenizer": words}
    if said.image == "<|image_pad|>":
        parts["video_processor"] = transformers.Qwen2VLVideoProcessor()
    further = {"chat_template": chat_template(said.shown)} if said.shown else {}
    getattr(transformers, said.processor)(**parts, **dict(said.options), **further).save_pretrained(folder)
    return folder


def load(kind: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    """Model and processor by the Auto classes alone, as from a name of the Hub; options of the model's."""
    dual = KINDS[kind].task == "dual"
    auto: Any = AutoModelForZeroShotImageClassification if dual else AutoModelForImageTextToText
    return auto.from_pretrained(folder, **options), AutoProcessor.from_pretrained(folder)


def picture(colour: str) -> Image.Image:
    """A square of a colour on grey."""
    image = Image.new("RGB", (112, 112), (200, 200, 200))
    image.paste(COLOURS[colour], (28, 28, 84, 84))
    return image


def questions(kind: str, processor: Any) -> dict[str, Any]:
    """Three pictures and what goes with them: NAMES as candidates, or one question, by the chat template
    where the architecture's checkpoints have one."""
    pictures = [picture(colour) for colour in COLOURS]
    if KINDS[kind].task == "dual":
        return dict(processor(text=list(NAMES), images=pictures, return_tensors="pt", padding=True))
    if not KINDS[kind].shown:
        asked = [KINDS[kind].image + "what is this ?"] * len(pictures)
        made = processor(text=asked, images=pictures, return_tensors="pt", padding=True)
        return {name: value for name, value in made.items() if name != "labels"}
    said = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": one}, {"type": "text", "text": "what is this ?"}],
            }
        ]
        for one in pictures
    ]
    return dict(
        processor.apply_chat_template(
            said,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            processor_kwargs={"padding": True},
        )
    )


def lesson(kind: str, processor: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """`asked` with the labels of a step: each picture is called one of NAMES, its own."""
    count = len(NAMES)
    if KINDS[kind].task == "dual":
        return {**asked, "labels": torch.arange(count)}
    words = processor.tokenizer
    told = [[*words(f" {name}", add_special_tokens=False)["input_ids"], words.eos_token_id] for name in NAMES]
    most = max(map(len, told))
    answers = torch.tensor([row + [words.pad_token_id] * (most - len(row)) for row in told])
    there = answers != words.pad_token_id
    taught = {**asked}
    for name, value in (
        ("input_ids", answers),
        ("attention_mask", there.long()),
        ("mm_token_type_ids", torch.zeros_like(answers)),
        ("token_type_ids", torch.ones_like(answers)),  # PaliGemma: no prefix
    ):
        if name in asked:
            taught[name] = torch.cat([asked[name], value], 1)
    none = torch.full_like(asked["input_ids"], -100)
    return {**taught, "labels": torch.cat([none, answers.masked_fill(~there, -100)], 1)}


def said(kind: str, processor: Any, model: Any, asked: dict[str, Any]) -> list[str]:
    """What the model calls each picture: the best candidate, or what it writes."""
    if KINDS[kind].task == "dual":
        return [NAMES[int(row)] for row in model(**asked).logits_per_image.argmax(1)]
    made = model.generate(**asked, max_new_tokens=5, do_sample=False)[:, asked["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(made, skip_special_tokens=True)]


def logits(output: Any) -> Tensor:
    """The scores of an output: over candidates, or over the vocabulary."""
    return output.logits if hasattr(output, "logits") else output.logits_per_image


def bare(model: Any, asked: dict[str, Any]) -> Tensor:
    """The model's own scores."""
    with torch.no_grad():
        return logits(model(**asked))


def values(model: Any) -> dict[str, Tensor]:
    """A copy of every weight."""
    return {name: tensor.clone() for name, tensor in weights(model)}


def hooks(model: Any) -> int:
    """How many hooks hang on a model's modules, whoever hung them."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
