"""Baselines against independent computations: numpy by hand, attention perturbed numerically, towers
unrolled."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import tiny
from arr_coc.adapters import attach
from arr_coc.eval import relevance_baselines as rb
from arr_coc.eval import relevance_gradients as rg
from arr_coc.eval.explicit_attention import explicit

KINDS = ("clip", "siglip")
DRAW = torch.Generator()
AGNOSTIC = (rb.uniform, rb.centre, rb.contrast, rb.raw_attention, rb.rollout)
ASKED = (rb.patch_text, rb.patch_text_softmax, rg.gradient_attention, rg.layer_gradients, rb.occlusion)


def seen(kind: str, queries: int = 2) -> tuple[rb.Eye, torch.Tensor, torch.Tensor]:
    """A tiny model of double precision, two images and texts for each of them."""
    model = tiny.dual(kind).double()
    for p in model.parameters():
        p.requires_grad_(False)
        if p.dim() > 1:
            p.mul_(3)  # so that attention is not even
    eye = rb.open_eye(model)
    draw = torch.Generator().manual_seed(3)
    texts = torch.randn(2, queries, eye.body.head.width, generator=draw, dtype=torch.float64)
    return eye, tiny.dual_inputs(2)["pixel_values"].double(), F.normalize(texts, dim=-1)


def occlusion(eye: rb.Eye, pixels: torch.Tensor, texts: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    return rb.occlusion(eye, pixels, texts.float(), draw, cells=2)


def test_rollout_of_two_blocks_by_hand() -> None:
    """Two tokens, one head: A1 = [[.8, .2], [.4, .6]], A2 = [[.5, .5], [0, 1]]."""
    a1, a2 = ([[0.8, 0.2], [0.4, 0.6]], [[0.5, 0.5], [0.0, 1.0]])
    mixed = np.array([[0.75, 0.25], [0, 1]]) @ np.array([[0.9, 0.1], [0.2, 0.8]])
    found = rb.rolled([torch.tensor([[a1]]), torch.tensor([[a2]])])
    assert found[0].numpy() == pytest.approx(mixed)
    assert mixed[0] == pytest.approx([0.725, 0.275])


def test_gradient_times_attention_of_two_blocks_by_hand() -> None:
    """The positive part of dA * A alone counts, heads are averaged, R adds up from the identity."""
    draw = np.random.default_rng(0)
    maps, gradients = draw.random((2, 3, 4, 4)), draw.normal(size=(2, 3, 4, 4))
    expected = np.eye(4)
    for a, da in zip(maps, gradients, strict=True):
        expected = expected + np.maximum(a * da, 0).mean(0) @ expected
    found = rg.chefer_self(
        [torch.from_numpy(a[None]) for a in maps], [torch.from_numpy(g[None]) for g in gradients]
    )
    assert found[0].numpy() == pytest.approx(expected)
    even = rg.normalised(found)
    assert (even - torch.eye(4)).sum(-1) == pytest.approx(torch.ones(1, 4))
    assert torch.equal(rg.normalised(torch.eye(3).unsqueeze(0)), torch.eye(3).unsqueeze(0))


@pytest.mark.parametrize("kind", KINDS)
def test_attention_written_out_changes_nothing_and_leaves_nothing(kind: str) -> None:
    eye, pixels, _ = seen(kind)
    with torch.no_grad():
        plain = rb.image_embedding(eye, pixels)
        configs = [m.config for m in eye.model.modules() if hasattr(m, "config")]
        with explicit(eye.body) as record:
            assert torch.allclose(plain, rb.image_embedding(eye, pixels), atol=1e-6)
        with pytest.raises(RuntimeError, match="inside"), explicit(eye.body):
            raise RuntimeError("inside")
        with explicit(eye.body), pytest.raises(RuntimeError, match="one tower at a time"), explicit(eye.body):
            pass
        assert torch.equal(plain, rb.image_embedding(eye, pixels))
    assert len(record.maps) == 4
    assert torch.allclose(record.maps[0].sum(-1), torch.ones(()).double())
    after = [m.config for m in eye.model.modules() if hasattr(m, "config")]
    assert all(a is b for a, b in zip(configs, after, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in eye.model.modules())


def test_attention_is_what_transformers_itself_returns() -> None:
    eye, pixels, _ = seen("clip")
    eye.model.set_attn_implementation("eager")
    with torch.no_grad():
        own = eye.model.vision_model(pixel_values=pixels, output_attentions=True).attentions
        with explicit(eye.body) as record:
            rb.image_embedding(eye, pixels)
    assert len(own) == len(record.maps)
    for a, b in zip(own, record.maps, strict=True):
        assert torch.allclose(a.double(), b, atol=1e-6)
    row = rb.raw_attention(eye, pixels, torch.zeros(2, 1, 24), DRAW)
    assert torch.allclose(row[:, 0].double(), own[-1].mean(1)[:, 0, 1:].double(), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "block"), [("clip", 0), ("clip", 2), ("siglip", 0), ("siglip", 2), ("siglip", -1)]
)
def test_gradients_of_attention_are_those_of_a_numeric_perturbation(kind: str, block: int) -> None:
    """d cos / dA by central differences of a pass whose attention is changed by hand, against autograd."""
    eye, pixels, texts = seen(kind)
    pixels, text = pixels[:1], texts[:1, 0]
    with torch.enable_grad(), explicit(eye.body) as record:
        score = (eye.model.get_image_features(pixel_values=pixels).pooler_output.double() * text).sum()
        wanted = record.pool if block == -1 else record.maps[block]
        (gradient,) = torch.autograd.grad(score, wanted)

    def moved(place: tuple[int, ...], step: float) -> float:
        def change(number: int, a: torch.Tensor) -> torch.Tensor:
            if number != block:
                return a
            a = a.clone()
            a[place] += step
            return a

        with torch.no_grad(), explicit(eye.body, change):
            return float((eye.model.get_image_features(pixel_values=pixels).pooler_output * text).sum())

    row = 0
    for place in ((0, 0, row, 1), (0, 1, row, 7), (0, 1, row, 15)):
        numeric = (moved(place, 1e-5) - moved(place, -1e-5)) / 2e-5
        assert float(gradient[place]) == pytest.approx(numeric, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_baselines_are_autograds_on_a_model_with_grad_and_eager_attention(kind: str) -> None:
    """The same from weights that do require gradients; and they still require them, with none accumulated."""
    eye, pixels, texts = seen(kind)
    frozen = [f(eye, pixels, texts, DRAW) for f in (rg.gradient_attention, rg.layer_gradients)]
    for p in eye.model.parameters():
        p.requires_grad_(True)
    eye.model.set_attn_implementation("eager")
    loose = [f(eye, pixels, texts, DRAW) for f in (rg.gradient_attention, rg.layer_gradients)]
    for a, b in zip(frozen, loose, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-12)
        assert (a >= 0).all()
        assert a.std() > 0
    assert all(p.requires_grad and p.grad is None for p in eye.model.parameters())


def test_gradient_attention_from_output_attentions_by_hand() -> None:
    """CLIP: transformers' own eager attentions, retained gradients, the paper's loop in numpy."""
    eye, pixels, texts = seen("clip", 1)
    found = rg.gradient_attention(eye, pixels, texts, DRAW)
    eye.model.set_attn_implementation("eager")
    pixels = pixels.clone().requires_grad_()
    out = eye.model.vision_model(pixel_values=pixels, output_attentions=True)
    seen_ = F.normalize(eye.model.visual_projection(out.pooler_output).float(), dim=-1)
    gradients = torch.autograd.grad((seen_ * texts[:, 0]).sum(), out.attentions)
    for i in range(2):
        r = np.eye(17)
        for a, g in zip(out.attentions, gradients, strict=True):
            r = r + np.maximum((a[i] * g[i]).detach().numpy(), 0).mean(0) @ r
        assert found[i, 0].numpy() == pytest.approx(r[0, 1:], rel=1e-4)


def test_layer_gradients_by_hand() -> None:
    """CLIP: the class token of block l is x + W_o sum_j A_0j v_j and what the MLP makes of it; its head's
    cosine."""
    eye, pixels, texts = seen("clip", 1)
    found = rg.layer_gradients(eye, pixels, texts, DRAW)
    tower, total = eye.model.vision_model, 0
    with torch.no_grad():
        hidden = tower.pre_layrnorm(tower.embeddings(pixels))
    for block in tower.encoder.layers:
        with torch.no_grad():
            x = block.layer_norm1(hidden)
            q, k, v = (
                f(x).unflatten(2, (2, 16)).transpose(1, 2)
                for f in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)
            )
            a = (q @ k.mT / 4).softmax(-1)
        row = a[:, :, 0].clone().requires_grad_()  # (B, H, N)
        mixed = torch.einsum("bhn,bhnd->bhd", row, v).flatten(1)
        z = hidden[:, 0] + block.self_attn.out_proj(mixed)
        z = z + block.mlp(block.layer_norm2(z))
        embedded = F.normalize(eye.model.visual_projection(tower.post_layernorm(z)).float(), dim=-1)
        (gradient,) = torch.autograd.grad((embedded * texts[:, 0]).sum(), row)
        total = total + gradient.clamp_min(0).mean(1)[:, 1:] / 17 / 4
        with torch.no_grad():
            hidden = block(hidden, None)
    assert found[:, 0].numpy() == pytest.approx(total.numpy(), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_patch_text_is_the_own_relevance_that_arr_coc_starts_from(kind: str) -> None:
    model, inputs = tiny.dual(kind), tiny.dual_inputs(2)
    eye = rb.open_eye(model)
    attached = attach(model)
    try:
        ids = inputs["input_ids"][:2]
        percept = attached.perceive(
            **inputs, context_ids=ids, context_attention_mask=torch.ones_like(ids)
        ).percept
    finally:
        attached.detach()
    found = rb.patch_text(eye, inputs["pixel_values"], percept.context.unsqueeze(1), DRAW)[:, 0]
    assert torch.allclose(found * eye.body.head.scale, percept.own, atol=1e-4)
    shares = rb.patch_text_softmax(eye, inputs["pixel_values"], percept.context.unsqueeze(1), DRAW)
    assert torch.allclose(shares.sum(-1), torch.ones(2, 1))
    assert (shares[:, 0].argsort(-1) == found.argsort(-1)).float().mean() > 0.9


def test_contrast_is_the_spread_of_a_patchs_pixels() -> None:
    eye, _, _ = seen("clip")
    pixels = torch.zeros(1, 3, 32, 32)
    pixels[0, :, 8:16, 16:20] = 2.0  # half of the patch in row 1, column 2
    found = rb.contrast(eye, pixels, torch.zeros(1, 1, 24), DRAW)[0, 0].reshape(4, 4)
    expected = torch.zeros(4, 4)
    expected[1, 2] = 1.0
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_occlusion_is_the_fall_of_the_cosine(kind: str) -> None:
    model = tiny.dual(kind)
    eye, pixels = rb.open_eye(model), tiny.dual_inputs(2)["pixel_values"]
    texts = F.normalize(torch.randn(2, 3, eye.body.head.width), dim=-1)
    found = rb.occlusion(eye, pixels, texts, DRAW, cells=2).reshape(2, 3, 4, 4)
    from arr_coc.eval.token_dropping import cosines

    lower_right = torch.tensor([10, 11, 14, 15])
    keep = torch.tensor([[i for i in range(16) if i not in lower_right.tolist()]])
    for b in range(2):
        one = pixels[b : b + 1]
        fall = cosines(model, one, texts[b]) - cosines(model, one, texts[b], keep, 16)
        assert torch.allclose(found[b, :, 2:, 2:], fall[0][:, None, None].expand(3, 2, 2), atol=1e-6)
    with pytest.raises(ValueError, match="do not divide"):
        rb.occlusion(eye, pixels, texts, DRAW, cells=3)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_who_listens(kind: str) -> None:
    eye, pixels, texts = seen(kind)
    model: Any = eye.model.float()
    eye = rb.open_eye(model)
    for baseline in (*AGNOSTIC, *ASKED, rb.random):
        f = occlusion if baseline is rb.occlusion else baseline
        found = f(eye, pixels.float(), texts.float(), DRAW.manual_seed(0))
        assert found.shape == (2, 2, 16)
        assert found.isfinite().all()
        assert torch.equal(found[:, 0], found[:, 1]) == (baseline in AGNOSTIC)


def test_a_model_that_does_not_say_its_grid_is_refused() -> None:
    model = tiny.dual()
    model.config.vision_config.image_size = None
    with pytest.raises(ValueError, match="image_size=None"):
        rb.open_eye(model)
