"""The built-in generative model before training: tokenizer, processor, a LLaVA on the dual encoder's tower.

Its tokenizer has every word of its questions whole and single characters for the rest, so a word that it
never met ("dax") is split, never dropped.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from arr_coc.training.questions import CHAT, PROMPT

SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
IMAGE = "<image>"


def tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """WordPiece with the words of these texts and, for all others, their characters. Lower case."""
    normalise = normalizers.Lowercase()
    split = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("[?:.,!]"), "isolated")]
    )
    words: set[str] = set()
    for text in [*texts, PROMPT.replace(IMAGE, " ").format(question="?")]:
        words |= {w for w, _ in split.pre_tokenize_str(normalise.normalize_str(text))}
    characters = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    pieces = [*characters, *("##" + c for c in characters), *sorted(words)]
    tokens = dict.fromkeys([*SPECIAL.values(), IMAGE, *pieces])
    raw = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    raw.normalizer, raw.pre_tokenizer = normalise, split
    raw.decoder = decoders.WordPiece("##")
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, padding_side="left", additional_special_tokens=[IMAGE], **SPECIAL
    )


def processor(words: PreTrainedTokenizerFast, pictures: CLIPImageProcessor) -> LlavaProcessor:
    """The dual encoder's picture side, with 144 image tokens (no class token); questions as chat."""
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=CHAT,
    )


def build(
    words: PreTrainedTokenizerFast, dual: CLIPModel, width: int = 192, layers: int = 4
) -> LlavaForConditionalGeneration:
    """A LLaVA with the dual encoder's vision tower (copied) and an untrained Llama of width x layers."""
    image = words.get_vocab()[IMAGE]
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
    )
    config = LlavaConfig(  # type: ignore[call-arg]
        vision_config=dual.config.vision_config,
        text_config=text,
        image_token_index=image,
        image_token_id=image,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=144,
        tie_word_embeddings=True,
        pad_token_id=words.pad_token_id,
    )
    model = LlavaForConditionalGeneration._from_config(config, attn_implementation="eager")
    tower = model.model.vision_tower
    state = {k.removeprefix("vision_model."): v for k, v in dual.vision_model.state_dict().items()}
    prefix = "vision_model." if any(k.startswith("vision_model.") for k in tower.state_dict()) else ""
    tower.load_state_dict({prefix + k: v for k, v in state.items()})
    model.tie_weights()
    return model


@torch.no_grad()
def inherit(
    model: LlavaForConditionalGeneration,
    words: PreTrainedTokenizerFast,
    dual: CLIPModel,
    dual_words: PreTrainedTokenizerBase,
    pixel_values: torch.Tensor,
) -> None:
    """A start in which a visual token already lies where the word for it lies.

    In the dual encoder's shared space both have a place. The language model's embedding of a word is
    P (t - t0), t its text embedding and P the principal components of all of them; the projector is fitted so
    that a visual token v arrives near P (v - v0). Small inputs keep GELU all but linear:
    gelu(x) = x / 2 + O(x^2).

    Args:
        words, dual_words: the tokenizers of the two models.
        pixel_values: scenes to fit the projector on, (B, 3, 96, 96).
    """
    tower = cast(Any, dual)  # mypy takes a module's children for tensors
    table: Any = model.get_input_embeddings()
    width = table.weight.shape[1]
    whole = [w for w in words.get_vocab() if w.isalpha() and len(w) > 1]
    whole.sort(key=words.convert_tokens_to_ids)
    said = dual_words(whole, padding=True, truncation=True, return_tensors="pt")
    texts = tower.text_projection(tower.text_model(**said).pooler_output)
    texts = torch.nn.functional.normalize(texts.double(), dim=1)  # (W, D)
    _, size, axes = torch.linalg.svd(texts - texts.mean(0), full_matrices=False)
    basis = axes[:width].T / (size[:width].square().sum() / len(texts)).sqrt()  # mean square norm 1
    embedding = table.weight
    embedding.normal_(std=0.5 * width**-0.5)
    embedding[words.convert_tokens_to_ids(whole)] = ((texts - texts.mean(0)) @ basis).to(embedding)

    hidden = model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states[-1][:, 1:]
    shared = tower.visual_projection(tower.vision_model.post_layernorm(hidden)).flatten(0, 1)
    shared = torch.nn.functional.normalize(shared.double(), dim=1)
    target = (shared - shared.mean(0)) @ basis
    target /= target.square().sum(1).mean().sqrt()
    projector: Any = model.model.multi_modal_projector
    torch.nn.init.orthogonal_(projector.linear_1.weight)
    flat = hidden.flatten(0, 1)
    projector.linear_1.weight *= 0.3 / (flat @ projector.linear_1.weight.T).std()
    projector.linear_1.bias.zero_()
    bent = projector.act(projector.linear_1(flat)).double()
    bent = torch.cat([bent, torch.ones_like(bent[:, :1])], 1)
    gram = bent.T @ bent + 1e-4 * len(bent) * torch.eye(bent.shape[1], dtype=torch.float64)
    fitted = torch.linalg.solve(gram, bent.T @ target)  # (H + 1, width)
    projector.linear_2.weight.copy_(fitted[:-1].T)
    projector.linear_2.bias.copy_(fitted[-1])
