"""What is read from a model is what the model itself computes: attention rows against the kernels' own
weights, token scores by hand, grids from the pictures' shapes, answers behind prompts."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import CLIPModel, Gemma2Config, LlavaConfig, LlavaForConditionalGeneration

import tiny
from arr_coc import ArrCocConfig, attach
from arr_coc.adapters.answers import behind, labels_for, new_tokens
from arr_coc.adapters.capture import Capture
from arr_coc.adapters.families import Family
from arr_coc.adapters.rows import agreed
from arr_coc.adapters.structure import kind_of
from arr_coc.eval import sweep
from arr_coc.eval.tiny_inputs import example, ids_of
from arr_coc.eval.tiny_models import tiny_model

SMALL = ArrCocConfig(width=16, expansion=8)

# -- attention rows ------------------------------------------------------------------------------------------


def capped() -> Any:
    """A LLaVA over Gemma 2, whose attention logits go through a soft cap that bites."""
    torch.manual_seed(0)
    words = Gemma2Config(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=60,
        attn_logit_softcapping=0.05,
        query_pre_attn_scalar=1,
    )
    vision = {**tiny.VISION, "model_type": "clip_vision_model", "projection_dim": 24}
    return LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=words, image_token_index=tiny.IMAGE, vision_feature_layer=-1
        )
    ).eval()


def heard(attached: Any, inputs: dict[str, Any], labels: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The percept, and the eager kernels' own weights of the tapped modules: mean over heads, geometric mean
    over modules."""
    weights: list[torch.Tensor] = []
    hooks = [
        module.register_forward_hook(lambda m, args, out: weights.append(out[-1]))
        for _, module in attached.body.taps
    ]
    seen = attached.perceive(labels=labels, **inputs).percept
    for hook in hooks:
        hook.remove()
    product = torch.stack([w.double().mean(1) for w in weights]).prod(0)
    return seen, product.pow(1 / len(weights)).float()


@pytest.mark.parametrize("kind", ["tiny", "capped", "qwen2_5_vl", "gemma3", "internvl"])
def test_attention_is_the_kernels_own_row_of_the_answers_place(kind: str) -> None:
    made = {"tiny": tiny.generative, "capped": capped}
    model = made[kind]() if kind in made else tiny_model(kind, "generative")
    inputs = tiny.generative_inputs() if kind in made else example(model)
    model.set_attn_implementation("eager")
    attached = attach(model, SMALL)
    given, labels = sweep.taught(attached, inputs)
    labels[:, -2] = given["input_ids"][:, -2]  # two places are taught: their rows must not be mixed up
    seen, weights = heard(attached, given, labels)
    image = given["input_ids"] == (tiny.IMAGE if kind in made else ids_of(model)[0])
    for sample in range(2):
        for order, place in enumerate((-3, -2)):  # each label is answered from the place before it
            want = weights[sample, place][: image.shape[1]][image[sample]]
            torch.testing.assert_close(seen.attention[2 * sample + order], want, atol=1e-5, rtol=1e-4)
    attached.detach()


@pytest.mark.parametrize(("layers", "blocks"), [(1, [0]), (2, [1]), (3, [1]), (4, [1, 2]), (9, [1, 4])])
def test_an_early_and_the_middle_block_are_heard(layers: int, blocks: list[int]) -> None:
    attached = attach(tiny.generative(layers=layers), SMALL)
    assert [int(path.split(".")[-2]) for path, _ in attached.body.taps] == blocks
    attached.detach()


def test_what_two_blocks_attend_to_is_their_geometric_mean() -> None:
    """exp((log a + log b) / 2), of the eager kernels' own rows; a block alone is itself, bit for bit."""
    model, inputs = tiny.generative("eager", layers=6), tiny.generative_inputs()
    attached = attach(model, SMALL)
    given, labels = sweep.taught(attached, inputs)
    seen, weights = heard(attached, given, labels)
    assert len(attached.body.taps) == 2
    image = given["input_ids"] == tiny.IMAGE
    for sample in range(2):
        want = weights[sample, -2][image[sample]]
        torch.testing.assert_close(seen.attention[sample], want, atol=1e-6, rtol=1e-4)
    attached.detach()
    one, other = torch.tensor([0.5, 0.0, 0.2]), torch.tensor([0.02, 0.5, 0.2])
    torch.testing.assert_close(agreed(torch.stack([one, other])), torch.tensor([0.1, 0.5e-12**0.5, 0.2]))
    assert torch.equal(agreed(one[None]), one)


@pytest.mark.parametrize("kind", ["mllama", "florence2", "t5gemma2", "pix2struct"])
def test_attention_to_what_stands_beside_the_decoder_is_the_kernels_own(kind: str) -> None:
    model = tiny_model(kind, "generative")
    inputs = example(model)
    model.set_attn_implementation("eager")
    attached = attach(model, SMALL)
    given, labels = sweep.taught(attached, inputs)
    seen, weights = heard(attached, given, labels)
    row = weights[:, 0 if attached.body.encoder_decoder else -2]
    if kind in ("florence2", "t5gemma2"):  # the encoder's words are no visual tokens
        image = given["input_ids"] == ids_of(model)[0]
        row = row[:, -image.shape[1] :][image].view(2, -1)
    if kind == "mllama":  # four tiles' places, of which the picture has the first
        row = row[:, : row.shape[1] // 4]
    row = row[:, -seen.attention.shape[1] :]
    torch.testing.assert_close(seen.attention, row, atol=1e-5, rtol=1e-4)
    assert (seen.attention.sum(1) > 0.1).all()
    attached.detach()


@pytest.mark.parametrize("tiles", [1, 2])
def test_a_sample_looks_at_its_own_tiles_and_at_all_of_them(tiles: int) -> None:
    """Mllama hands its states over with a row per tile: the second sample was read from the first one's
    second tile, the first from its first alone, and attention from a tile that is not there."""
    model = tiny_model("mllama", "generative")
    inputs = example(model)
    draw = torch.Generator().manual_seed(3)
    pixels = torch.zeros(2, 1, 4, *inputs["pixel_values"].shape[3:])
    pixels[:, :, :tiles] = torch.randn(pixels[:, :, :tiles].shape, generator=draw)
    there = torch.zeros(2, 1, 4, dtype=torch.long)
    there[:, :, :tiles] = 1
    seen = there.unsqueeze(1).repeat(1, inputs["input_ids"].shape[1], 1, 1)
    inputs = {**inputs, "pixel_values": pixels, "aspect_ratio_mask": there, "cross_attention_mask": seen}
    inputs["aspect_ratio_ids"] = torch.full((2, 1), tiles)
    attached = attach(model, SMALL)
    given, labels = sweep.taught(attached, inputs)
    both = attached.perceive(labels=labels, **given).percept
    patches = attached(**inputs).relevance.shape[1] // tiles
    assert both.tokens[0].shape[:2] == (2, patches * tiles)
    for sample in range(2):
        one = {k: v[sample : sample + 1] for k, v in given.items()}
        alone = attached.perceive(labels=labels[sample : sample + 1], **one).percept
        torch.testing.assert_close(both.tokens[0][sample], alone.tokens[0][0])
        torch.testing.assert_close(both.attention[sample], alone.attention[0])
    assert not torch.allclose(both.tokens[0][0], both.tokens[0][1])
    assert (both.attention.sum(1) > 0.5).all()
    relevance = attached(**inputs).relevance
    one = {k: v[1:] for k, v in inputs.items()}
    torch.testing.assert_close(relevance[1:], attached(**one).relevance)
    attached.detach()


def test_layers_that_see_the_whole_sequence_are_preferred() -> None:
    model = tiny_model("gemma3", "generative")
    kinds = model.config.text_config.layer_types
    assert set(kinds) == {"sliding_attention", "full_attention"}
    attached = attach(model, replace(SMALL, sites=(kinds.index("sliding_attention"),)))
    read = [int(path.split("layers.")[1].split(".")[0]) for path in attached.inspect().attention]
    assert [kinds[i] for i in read] == ["full_attention"]
    attached.detach()


# -- token scores --------------------------------------------------------------------------------------------


def by_hand(kind: str, model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Unit token embeddings from the last block's output: each model's own parts, written out."""
    tower = model.vision_model
    if kind == "align":  # an average over one place
        return normalize(hidden, dim=-1)
    normed = tower.post_layernorm(hidden)
    if kind in ("siglip", "siglip2"):  # attention to a single token is its value, whatever the query
        d, head = normed.shape[-1], tower.head
        weight, bias = head.attention.in_proj_weight[2 * d :], head.attention.in_proj_bias[2 * d :]
        pooled = head.attention.out_proj(normed @ weight.T + bias)
        return normalize(pooled + head.mlp(head.layernorm(pooled)), dim=-1)
    return normalize(model.visual_projection(normed), dim=-1)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2", "blip", "align"])
def test_own_scores_are_scaled_cosines_of_the_projected_tokens(kind: str) -> None:
    model = tiny_model(kind, "dual")
    if kind == "align":
        torch.nn.init.constant_(model.temperature, 0.2)
    inputs = example(model)
    last: list[torch.Tensor] = []
    attached = attach(model, SMALL)
    blocks = attached.body.tower.blocks
    hook = blocks[-1].register_forward_hook(
        lambda m, a, out: last.append(out[0] if isinstance(out, tuple) else out)
    )
    seen = attached.perceive(**inputs, context_ids=inputs["input_ids"][0]).percept
    hook.remove()
    hidden = last[0].flatten(2).mT if last[0].dim() == 4 else last[0]
    with torch.no_grad():
        tokens = by_hand(kind, model, hidden[:, -seen.attention.shape[1] :])
        said = model.get_text_features(input_ids=inputs["input_ids"][:1])
        said = said if isinstance(said, torch.Tensor) else said.pooler_output
        scale = 1 / 0.2 if kind == "align" else float(model.logit_scale.exp())
        want = scale * tokens @ normalize(said, dim=-1)[0]
    torch.testing.assert_close(seen.own, want, atol=1e-4, rtol=1e-4)
    attached.detach()


# -- grids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "want"),
    [
        ([[1, 4, 8], [1, 4, 8]], (2, 4)),  # merged two by two
        ([[1, 4, 4], [1, 2, 8]], None),  # as many tokens, in two grids
        ([[1, 8, 2], [1, 8, 2]], (4, 1)),
    ],
)
def test_the_grid_is_that_of_the_pictures_or_none(shapes: list[list[int]], want: Any) -> None:
    model = tiny_model("qwen2_5_vl", "generative")
    inputs, grid = example(model), torch.tensor(shapes)
    image, count = model.config.image_token_id, int(grid[0].prod()) // 4
    ids = inputs["input_ids"]
    words = ids[ids != image].view(2, -1)
    ids = torch.cat([words[:, :3], torch.full((2, count), image), words[:, 3:]], 1)
    pixels = torch.randn(int(grid.prod(1).sum()), inputs["pixel_values"].shape[1])
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == image).long(),
        "pixel_values": pixels,
        "image_grid_thw": grid,
    }
    attached = attach(model, SMALL)
    given, labels = sweep.taught(attached, inputs)
    assert attached.perceive(labels=labels, **given).percept.grid == want
    attached.detach()


def test_tokens_of_learned_queries_stand_in_no_grid() -> None:
    for kind in ("blip-2", "idefics2"):  # 4 and 64 tokens: squares by chance
        model = tiny_model(kind, "generative")
        attached = attach(model, SMALL)
        given, labels = sweep.taught(attached, example(model))
        assert attached.perceive(labels=labels, **given).percept.grid is None
        attached.detach()


# -- answers behind prompts ----------------------------------------------------------------------------------


def test_answers_stand_behind_a_prompt_in_every_input_that_has_a_value_per_place() -> None:
    family = Family(marker="image_mask", answer_type=1)
    inputs = {
        "input_ids": torch.tensor([[3, 4, 5]]),
        "attention_mask": torch.tensor([[0, 1, 1]]),
        "token_type_ids": torch.tensor([[0, 0, 0]]),
        "mm_token_type_ids": torch.tensor([[0, 1, 0]]),
        "image_mask": torch.tensor([[0, 1, 1]]),
        "cross_mask": torch.tensor([[[0, 0], [1, 0], [1, 0]]]),
        "pixel_values": torch.randn(1, 3, 2),
        "image_grid_thw": torch.tensor([[1, 2]]),
    }
    longer = behind(inputs, torch.tensor([[7, 8]]), family)
    assert longer["input_ids"].tolist() == [[3, 4, 5, 7, 8]]
    assert longer["attention_mask"].tolist() == [[0, 1, 1, 1, 1]]
    assert longer["token_type_ids"].tolist() == [[0, 0, 0, 1, 1]]
    assert longer["mm_token_type_ids"].tolist() == [[0, 1, 0, 0, 0]]
    assert longer["image_mask"].tolist() == [[0, 1, 1, 0, 0]]  # answers are no pictures
    assert longer["cross_mask"].tolist() == [[[0, 0], [1, 0], [1, 0], [1, 0], [1, 0]]]
    for name in ("pixel_values", "image_grid_thw"):
        assert longer[name] is inputs[name]
    assert labels_for(inputs, torch.tensor([[7, 0]]), 0, family).tolist() == [[-100, -100, -100, 7, -100]]
    assert labels_for(inputs, torch.tensor([[7, 0]]), None, family).tolist() == [[-100, -100, -100, 7, 0]]


def test_what_was_written_is_found_with_and_without_its_prompt() -> None:
    ids = torch.tensor([[3, 4, 5]])
    for written in ([[3, 4, 5, 7, 8]], [[7, 8]], [[9, 4, 5, 7, 8]]):  # whole, alone, begun by another token
        assert new_tokens(torch.tensor(written), ids, Family()).tolist() == [[7, 8]]
    separated = Family(separated=True)
    assert new_tokens(torch.tensor([[3, 4, 7, 8]]), ids, separated).tolist() == [[7, 8]]
    longer = behind({"input_ids": ids}, torch.tensor([[7]]), separated)
    assert longer["input_ids"].tolist() == [[3, 4, 7]]


# -- structure -----------------------------------------------------------------------------------------------


def test_a_subclass_that_says_nothing_of_its_output_is_still_a_dual_encoder() -> None:
    class Mine(CLIPModel):
        def forward(self, pixel_values, input_ids, attention_mask=None):
            return super().forward(
                pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask
            )

    model = Mine(tiny.dual().config).eval()
    assert kind_of(model) == "dual"
    attached = attach(model, SMALL)
    assert attached(**tiny.dual_inputs()).relevance.shape == (3, 16)
    attached.detach()


def test_a_hook_that_is_left_breaks_a_promise_of_the_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Capture, "remove", Capture.clear)
    record = sweep.one("git", "generative")  # no attention is tapped, so only hooks can be left
    assert record["built"]
    assert "no hook is left" in record["why"]
