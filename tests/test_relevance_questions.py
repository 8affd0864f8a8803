"""P2: baselines of a generative model against passes written out by hand, and an exam whose scores are
known."""

import numpy as np
import pytest
import torch
from torch import Tensor

from arr_coc.adapters import embedded
from arr_coc.eval import question_maps as maps
from arr_coc.eval import relevance_questions as exam
from arr_coc.eval import relevance_questions_report as report
from arr_coc.eval.mosaic_questions import mosaics
from arr_coc.training.collate import AnswerCollator

DRAW = torch.Generator()


@pytest.fixture(scope="module")
def built_in():
    return embedded.load("generative")


@pytest.fixture(scope="module")
def asked(built_in) -> maps.Prompts:
    model, processor = built_in
    rows = exam.rows_of(mosaics(2, 4, 0))
    collate = AnswerCollator(processor, model)
    return maps.prompts_of(model, processor, collate.prompts(rows), [r["answer"] for r in rows])


def alone(asked: maps.Prompts, sample: int) -> maps.Prompts:
    """The same question without its neighbours and their padding."""
    real = asked.inputs["attention_mask"][sample].bool()
    inputs = {n: t[sample : sample + 1] for n, t in asked.inputs.items()}
    inputs |= {n: inputs[n][:, real] for n in ("input_ids", "attention_mask")}
    gone = int((~real).sum())
    one = slice(sample, sample + 1)
    return maps.Prompts(
        asked.model,
        inputs,
        asked.first[one],
        asked.where[one] - gone,
        asked.grid,
        asked.words[one][:, real],
    )


LOOKING = [
    maps.raw_attention,
    maps.middle_attention,
    maps.rollout,
    maps.gradient_attention,
    maps.layer_gradients,
    maps.patch_text,
    maps.occlusion,
]


@pytest.mark.parametrize("method", LOOKING)
def test_padding_changes_no_map_and_nothing_is_left_behind(
    method: maps.Baseline, asked: maps.Prompts
) -> None:
    before = [p.requires_grad for p in asked.model.parameters()]
    together = method(asked, DRAW)
    assert together.shape == (8, 144)
    shortest = int(asked.inputs["attention_mask"].sum(1).argmin())
    assert not asked.inputs["attention_mask"][shortest].all()
    by_itself = method(alone(asked, shortest), DRAW)[0]
    scale = by_itself.abs().max()
    torch.testing.assert_close(together[shortest] / scale, by_itself / scale, rtol=1e-3, atol=1e-4)
    assert [p.requires_grad for p in asked.model.parameters()] == before
    assert all(p.grad is None for p in asked.model.parameters())
    # transformers itself leaves hooks that record outputs, once and for all
    left = [
        h for m in asked.model.modules() for h in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    ]
    assert [h for h in left if "transformers" not in h.__module__] == []
    assert asked.model.config.text_config._attn_implementation == "sdpa"
    assert asked.model.config.vision_config._attn_implementation == "sdpa"


def embeds_of(asked: maps.Prompts) -> Tensor:
    """The sequence that the language model is given, built from the model's own parts."""
    model = asked.model
    embeds = model.get_input_embeddings()(asked.inputs["input_ids"])
    seen = model.get_image_features(pixel_values=asked.inputs["pixel_values"])
    seen = torch.stack(list(getattr(seen, "pooler_output", seen)))
    rows = torch.arange(len(embeds)).unsqueeze(1)
    embeds[rows, asked.where] = seen.to(embeds)
    return embeds


@torch.no_grad()
def test_occlusion_is_what_the_answer_loses_without_a_tiles_rows(asked: maps.Prompts) -> None:
    one = alone(asked, 0)
    embeds, length = embeds_of(one), one.inputs["input_ids"].shape[1]
    found = maps.occlusion(one, DRAW, cells=2)[0].reshape(12, 12)
    position = torch.arange(length)

    def said(keep: Tensor) -> Tensor:
        out = one.model(inputs_embeds=embeds[:, keep], position_ids=position[keep].unsqueeze(0))
        return out.logits[0, -1].log_softmax(0)[one.first[0]]

    whole = said(position >= 0)
    for cell in range(4):
        inside = torch.zeros(12, 12, dtype=torch.bool)
        row, column = divmod(cell, 2)
        inside[row * 6 : row * 6 + 6, column * 6 : column * 6 + 6] = True
        keep = torch.ones(length, dtype=torch.bool)
        keep[one.where[0][inside.flatten()]] = False
        torch.testing.assert_close(found[inside], (whole - said(keep)).expand(36), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_words_cosine_is_between_what_the_language_model_is_given(asked: maps.Prompts) -> None:
    one = alone(asked, 1)
    embeds = embeds_of(one)[0]
    last = int(one.where[0, -1])
    words = embeds[last + 1 :].mean(0)
    tokens = embeds[one.where[0]]
    expected = torch.nn.functional.normalize(tokens, dim=1) @ torch.nn.functional.normalize(words, dim=0)
    torch.testing.assert_close(maps.patch_text(one, DRAW)[0], expected, rtol=1e-4, atol=1e-5)


def test_attention_with_a_graph_is_attention_and_its_gradient_that_of_the_logit(asked: maps.Prompts) -> None:
    """The last block's (dA A)+ by a difference: a change of A there reaches the logit through A v alone."""
    one = alone(asked, 2)
    bare, graph = maps.looked(one), maps.looked(one, graph=True)
    for a, b in zip(bare.maps, graph.maps, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    score = graph.logits[0, one.first[0]]
    (gradient,) = torch.autograd.grad(score, graph.maps[-1])
    attention = one.decoder.layers[-1].self_attn
    head, place, step = 1, int(one.where[0, 40]), 1e-2
    values: list[Tensor] = []
    hook = attention.v_proj.register_forward_hook(lambda module, args, out: values.append(out))
    try:
        maps.looked(one)
    finally:
        hook.remove()
    width = attention.head_dim
    kv = head // attention.num_key_value_groups
    moved = torch.zeros(attention.o_proj.in_features)
    moved[head * width : (head + 1) * width] = step * values[0][0, place, kv * width : (kv + 1) * width]
    add = attention.o_proj.register_forward_pre_hook(lambda module, args: (push(args[0], moved),))

    def push(hidden: Tensor, by: Tensor) -> Tensor:
        hidden = hidden.clone()
        hidden[:, -1] += by
        return hidden

    try:
        after = maps.looked(one).logits[0, one.first[0]]
    finally:
        add.remove()
    measured = float((after - score.detach()) / step)
    assert measured == pytest.approx(float(gradient[0, head, -1, place]), rel=0.05, abs=1e-3)


def test_gradient_maps_are_their_papers_formulas_at_the_answering_position(asked: maps.Prompts) -> None:
    """Written out with loops over blocks and heads, from the attention and its gradient tested above."""
    one = alone(asked, 1)
    seen = maps.looked(one, graph=True)
    token, place = one.first[0], one.where[0]
    gradients = torch.autograd.grad(seen.logits[0, token], seen.maps, retain_graph=True)
    relevance = torch.eye(seen.maps[0].shape[-1])
    for a, da in zip(seen.maps, gradients, strict=True):
        heads = [(da[0, h] * a[0, h]).clamp(min=0) for h in range(a.shape[1])]
        relevance = relevance + sum(heads) / len(heads) @ relevance  # type: ignore[operator]
    torch.testing.assert_close(
        maps.gradient_attention(one, DRAW)[0], relevance[-1, place].detach(), rtol=1e-4, atol=1e-6
    )
    total = torch.zeros(144)
    for a, state in zip(seen.maps, seen.states, strict=True):
        logit = one.model.lm_head(one.decoder.norm(state[:, -1]))[0, token]
        (da,) = torch.autograd.grad(logit, a, retain_graph=True)
        heads = [da[0, h, -1].clamp(min=0) for h in range(a.shape[1])]
        total = total + (sum(heads) / len(heads))[place] / len(seen.maps)  # type: ignore[operator]
    torch.testing.assert_close(maps.layer_gradients(one, DRAW)[0], total, rtol=1e-4, atol=1e-7)


def test_maps_that_ignore_the_question_have_no_contrast_and_the_truth_has_all(
    built_in, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, processor = built_in

    def oracle(model, processor, name, rows, grid, taught, seed):
        truth = np.stack([row["mask"].ravel() for row in rows]).astype(float)
        even = np.full_like(truth, 1 / 144)
        blind = np.repeat(truth[::2], 2, 0)  # what the first question asks for, for both
        return {"arr-coc": truth, "uniform": even, "centre": blind}[name]

    monkeypatch.setattr(exam, "maps_of", oracle)
    found = exam.exam(model, processor, 2, [0], 6, taught=2, methods=["arr-coc", "uniform", "centre"])
    assert found.right.any()
    values = {m: float(np.nanmean(exam.by_image(found.scores[m]["pointing"]))) for m in found.scores}
    assert values["arr-coc"] == 1
    assert values["uniform"] == pytest.approx(0.25)
    contrast = {m: v[np.isfinite(v)] for m, v in found.contrast.items()}
    assert (contrast["arr-coc"] == 1).all()
    assert (contrast["uniform"] == 0).all()
    assert (contrast["centre"] == 0).all()
    assert (np.isnan(found.contrast["arr-coc"]) == ~found.right.all(1)).all()
    assert (np.isnan(found.flips) == ~found.right).all()
    located = {row[0]: row for row in report.located(found, 2).rows}
    assert located["arr-coc, nothing learned"][-1] == "1.000"
    assert located["chance"][5] == "25.0"
    assert len(report.answered(found).rows) == 5
    (paired,) = report.paired(found, 2)
    assert paired.rows[0][0] == "uniform"
    assert paired.rows[0][1].startswith("+75.0")


def test_an_image_counts_by_its_right_answers() -> None:
    values = np.array([[1.0, np.nan], [0.0, 1.0], [np.nan, np.nan]])
    np.testing.assert_array_equal(exam.by_image(values), [1.0, 0.5, np.nan])


def test_by_its_words_a_question_finds_its_tile_before_anything_is_read(built_in) -> None:
    model, processor = built_in
    rows = exam.rows_of(mosaics(2, 12, 7))
    found = exam.maps_of(model, processor, exam.ASKED, rows, 2, [], 0)
    np.testing.assert_allclose(found.sum(1), 1)
    hits = [row["mask"].ravel()[r.argmax()] for r, row in zip(found, rows, strict=True)]
    assert np.mean(hits) > 0.6  # chance .25


@pytest.mark.parametrize("way", list(exam.TAUGHT))
def test_a_row_that_learns_learns_from_others_and_leaves_the_model_alone(way: str, built_in) -> None:
    model, processor = built_in
    before = {n: p.clone() for n, p in model.state_dict().items()}
    rows = exam.rows_of(mosaics(2, 2, 0))
    others = exam.rows_of(
        mosaics(2, 24, 0, split="train")
    )  # three batches: the first has nothing to feed back
    bare = exam.maps_of(model, processor, "arr-coc", rows, 2, others, 0)
    taught = exam.maps_of(model, processor, f"arr-coc-{way}", rows, 2, others, 0)
    assert bare.shape == taught.shape == (4, 144)
    assert not np.allclose(bare, taught)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    with pytest.raises(ValueError, match="no method 'who'"):
        exam.exam(model, processor, 2, [0], 1, methods=["who"])
