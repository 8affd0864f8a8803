"""generate(keep_tokens=k) is the bare model on rows dropped by hand, whatever the cache, kernel, padding or
beams."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from arr_coc.adapters import ArrCocModel, attach
from arr_coc.adapters.rows import Bias
from arr_coc.adapters.shortening import Rows
from arr_coc.eval.tiny_inputs import example
from arr_coc.eval.tiny_models import tiny_model
from arr_coc.relevance.mixture import GRID

STEPS = 5
GREEDY: dict[str, Any] = {"max_new_tokens": STEPS, "do_sample": False, "suppress_tokens": [tiny.IMAGE, 2, 0]}


class Words:
    """Every id is a word of content but 1 to 9, which are function words."""

    all_special_ids = (0,)

    def convert_ids_to_tokens(self, token: int) -> str:
        return "what" if token < 10 else "circle"


@pytest.fixture
def attached() -> Iterator[ArrCocModel]:
    made = attach(tiny.generative(), processor=Words())
    yield made
    made.detach()


def by_hand(model: Any, inputs: dict[str, Tensor], kept: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Greedy tokens (B, STEPS) and logits (B, STEPS, V) of the bare model, a sample at a time, without a
    cache: rows taken out of its own inputs_embeds, position ids of the rows that stay."""
    written, said = [], []
    for b, places in enumerate(kept):
        attended = inputs["attention_mask"][b].bool()
        ids = inputs["input_ids"][b][attended]
        embedded = model.get_input_embeddings()(ids)
        visual = ids == tiny.IMAGE
        seen = model.model.get_image_features(pixel_values=inputs["pixel_values"][b : b + 1])
        embedded = embedded.masked_scatter(visual[:, None], torch.cat(list(seen.pooler_output)))
        rows = torch.cat([(~visual).nonzero().flatten(), visual.nonzero().flatten()[places]]).sort().values
        given, position = embedded[rows][None], rows[None]
        tokens, steps = [], []
        for step in range(STEPS):
            out = model.model.language_model(
                inputs_embeds=given,
                position_ids=position,
                attention_mask=torch.ones_like(position),
                use_cache=False,
            )
            logits = model.lm_head(out.last_hidden_state[0, -1])
            steps.append(logits)
            best = logits.clone()
            best[GREEDY["suppress_tokens"]] = -torch.inf
            tokens.append(best.argmax())
            given = torch.cat([given, model.get_input_embeddings()(tokens[-1])[None, None]], 1)
            position = torch.cat([position, torch.tensor([[len(ids) + step]])], 1)
        written.append(torch.stack(tokens))
        said.append(torch.stack(steps))
    return torch.stack(written), torch.stack(said)


def padded(inputs: dict[str, Tensor], width: int = 3) -> dict[str, Tensor]:
    """The first sample with padding on its left, as if the others were longer."""
    ids = torch.cat([torch.zeros(len(inputs["input_ids"]), width).long(), inputs["input_ids"]], 1)
    mask = torch.cat([torch.zeros_like(ids[:, :width]), inputs["attention_mask"]], 1)
    ids[1:, :width], mask[1:, :width] = 11, 1
    return {**inputs, "input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def check(attached: ArrCocModel, inputs: dict[str, Tensor], keep: Any, **options: Any) -> None:
    out = attached.generate(
        **inputs, **{**GREEDY, **options}, keep_tokens=keep, return_dict_in_generate=True, output_logits=True
    )
    assert attached.kept is not None
    kept = attached.kept.tokens
    written, said = by_hand(attached.model, inputs, kept)
    assert torch.equal(out.sequences[:, -STEPS:], written)
    torch.testing.assert_close(torch.stack(out.logits, 1), said, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("keep", [4, 1 / 9, [4, 9, 15], torch.tensor([1, 16, 2])])
def test_rows_dropped_by_hand_give_the_same(attention: str, keep: Any) -> None:
    attached = attach(tiny.generative(attention), processor=Words())
    check(attached, tiny.generative_inputs(3), keep)
    check(attached, padded(tiny.generative_inputs(3)), keep)
    attached.detach()


@pytest.mark.parametrize("options", [{"cache_implementation": "static"}, {"use_cache": False}])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_any_cache_will_do(attention: str, options: dict[str, Any]) -> None:
    attached = attach(tiny.generative(attention), processor=Words())
    for keep in (4, [4, 9, 15]):
        check(attached, padded(tiny.generative_inputs(3)), keep, **options)
    attached.detach()


def test_without_a_mask_gaps_are_no_ends_of_sequences(attached: ArrCocModel) -> None:
    inputs = tiny.generative_inputs(2)
    first = attached.generate(**inputs, **GREEDY, keep_tokens=5)
    del inputs["attention_mask"]
    assert torch.equal(first, attached.generate(**inputs, **GREEDY, keep_tokens=5))


@pytest.mark.parametrize("keep", [16, 1.0, [16, 16, 16], None])
def test_all_tokens_are_plain_generate_bit_for_bit(attached: ArrCocModel, keep: Any) -> None:
    how: dict[str, Any] = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    inputs = tiny.generative_inputs(3)
    with attached.disable():
        bare = attached.model.generate(**inputs, **how)
    out = attached.generate(**inputs, **how, keep_tokens=keep)
    assert torch.equal(out.sequences, bare.sequences)
    assert all(torch.equal(a, b) for a, b in zip(out.logits, bare.logits, strict=True))


def test_a_sample_is_answered_as_it_is_alone(attached: ArrCocModel) -> None:
    inputs = padded(tiny.generative_inputs(3))
    together = attached.generate(**inputs, **GREEDY, keep_tokens=[4, 9, 2])
    kept = attached.kept
    assert kept is not None
    for b, k in enumerate([4, 9, 2]):
        front = int((inputs["attention_mask"][b] == 0).sum())
        alone = {name: v[b : b + 1] for name, v in inputs.items()}
        alone = {n: v[:, front:] if n != "pixel_values" else v for n, v in alone.items()}
        out = attached.generate(**alone, **GREEDY, keep_tokens=k)
        assert attached.kept is not None
        assert torch.equal(attached.kept.tokens[0], kept.tokens[b])
        assert torch.equal(out[0, -STEPS:], together[b, -STEPS:])


def test_right_padding_moves_no_choice(attached: ArrCocModel) -> None:
    """`generate` itself goes on behind the padding, as it does without keep_tokens; the choice ignores it."""
    inputs = tiny.generative_inputs(2)
    attached.generate(**inputs, **GREEDY, keep_tokens=4)
    assert attached.kept is not None
    before = attached.kept.tokens
    ids = torch.cat([inputs["input_ids"], torch.zeros(2, 3).long()], 1)
    mask = torch.cat([inputs["attention_mask"], torch.zeros(2, 3).long()], 1)
    attached.generate(**{**inputs, "input_ids": ids, "attention_mask": mask}, **GREEDY, keep_tokens=4)
    assert all(torch.equal(a, b) for a, b in zip(attached.kept.tokens, before, strict=True))


def test_beams_and_drawn_sequences_keep_the_same_tokens(attached: ArrCocModel) -> None:
    inputs = tiny.generative_inputs(3)
    attached.generate(**inputs, **GREEDY, keep_tokens=[4, 9, 2])
    assert attached.kept is not None
    kept = attached.kept.tokens
    for how in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}):
        out = attached.generate(**inputs, **{**GREEDY, **how}, keep_tokens=[4, 9, 2])
        assert len(out) == 3 * how.get("num_return_sequences", 1)
        assert all(torch.equal(a, b) for a, b in zip(attached.kept.tokens, kept, strict=True))
    one = attached.generate(
        **inputs, **{**GREEDY, "num_beams": 2, "num_return_sequences": 2}, keep_tokens=[4, 9, 2]
    )
    assert len(one) == 6


def test_what_was_learned_answers_from_the_kept_tokens(attached: ArrCocModel) -> None:
    """The readout reads kept tokens at their own places: tokens that are not kept have no relevance."""
    inputs = tiny.generative_inputs(2)
    answers = torch.tensor([[11], [12]])
    taught = tiny.answered(inputs, answers)
    labels = taught.pop("labels")
    for _ in range(12):
        attached.learn(labels, **taught)
    seen = []
    hook = attached.model.register_forward_hook(lambda module, args, out: seen.append(out))
    attached.generate(**inputs, **GREEDY, keep_tokens=[5, 9])
    hook.remove()
    assert attached.kept is not None
    for output in seen:
        assert output.relevance.shape == (2, 16)
        torch.testing.assert_close(output.relevance.sum(1), torch.ones(2))
        for b, k in enumerate(attached.kept.tokens):
            assert set(output.relevance[b].nonzero().flatten().tolist()) <= set(k.tolist())


def test_a_steered_model_is_steered_at_the_kept_tokens(attached: ArrCocModel) -> None:
    inputs = padded(tiny.generative_inputs(2))
    plain = attached.generate(**inputs, **GREEDY, keep_tokens=[4, 9])
    with attached.steer(0.0):
        still = attached.generate(**inputs, **GREEDY, keep_tokens=[4, 9])
    assert torch.equal(plain, still)
    how: dict[str, Any] = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    logits = []
    for options in ({}, {"use_cache": False}):
        with attached.steer(3.0, click=(0.2, 0.2)):
            logits.append(attached.generate(**inputs, **how, **options, keep_tokens=[4, 9]).logits)
    for one, other in zip(*logits, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    bare = attached.generate(**inputs, **how, keep_tokens=[4, 9]).logits
    assert not torch.allclose(bare[0], logits[0][0])


def test_rows_go_where_they_are_said_to() -> None:
    keep = torch.tensor([[1, 0, 1, 0, 1, 1], [0, 0, 1, 0, 0, 1]]).bool()
    rows = Rows(keep)
    there = torch.arange(12.0).reshape(2, 6, 1)
    short = rows.taken(there)
    assert short[0, :, 0].tolist() == [0, 2, 4, 5]
    assert short[1, 2:, 0].tolist() == [8, 11]
    assert rows.real.tolist() == [[True] * 4, [False, False, True, True]]
    assert torch.equal(rows.restored(short), there * keep[..., None])
    bias = Bias(
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1, 2], [2, 3]]), torch.tensor([2, 3]), 6
    )
    moved = rows.bias(bias)
    assert moved.place is not None
    assert moved.last is not None
    assert moved.added.tolist() == [[0.0, 2.0], [3.0, 0.0]]
    assert [int(moved.place[0, 1]), int(moved.place[1, 0])] == [1, 2]
    assert (moved.last.tolist(), moved.length) == ([1, 2], 4)


# -- errors --------------------------------------------------------------------------------------------------


def hooks(model: torch.nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


@pytest.mark.parametrize(
    ("keep", "said"),
    [(0, "1 to 16"), (17, "1 to 16"), (0.0, "share"), (1.5, "share"), ([4], "each of 2"), ("4", "each of 2")],
)
def test_a_budget_that_cannot_be_changes_nothing(attached: ArrCocModel, keep: Any, said: str) -> None:
    inputs = tiny.generative_inputs(2)
    before, count = attached.generate(**inputs, **GREEDY), hooks(attached.model)
    with pytest.raises(ValueError, match=said):
        attached.generate(**inputs, **GREEDY, keep_tokens=keep)
    assert hooks(attached.model) == count
    assert torch.equal(before, attached.generate(**inputs, **GREEDY))


def test_an_error_inside_leaves_no_hook(attached: ArrCocModel, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tiny.generative_inputs(2)
    before, count = attached.generate(**inputs, **GREEDY, keep_tokens=4), hooks(attached.model)
    last = attached.model.model.language_model.layers[-1].mlp

    def broken(*args: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(last, "forward", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            attached.generate(**inputs, **GREEDY, keep_tokens=4)
    assert hooks(attached.model) == count
    assert attached.body.short is None  # type: ignore[union-attr]
    assert torch.equal(before, attached.generate(**inputs, **GREEDY, keep_tokens=4))


def test_prompts_without_pictures_and_other_models_are_refused(attached: ArrCocModel) -> None:
    inputs = tiny.generative_inputs(2)
    with pytest.raises(ValueError, match="visual tokens in input_ids"):
        attached.generate(input_ids=inputs["input_ids"][:, 17:], **GREEDY, keep_tokens=4)
    with pytest.raises(ValueError, match="keep_tokens is None"):
        attached.generate(**inputs, **GREEDY, mix=0.5)
    with pytest.raises(ValueError, match="mix"):
        attached.generate(**inputs, **GREEDY, keep_tokens=4, mix=2.0)
    dual = attach(tiny.dual())
    with pytest.raises(TypeError, match="cannot generate"):
        dual.generate(**tiny.dual_inputs(), keep_tokens=4)


@pytest.mark.parametrize("kind", ["florence2", "blip-2", "mllama", "granite4_vision", "git"])
def test_models_for_which_it_cannot_work_say_so(kind: str) -> None:
    model = tiny_model(kind, "generative")
    refused, inputs = attach(model), example(model)
    count = hooks(model)
    with pytest.raises(ValueError, match="keep_tokens does not work for"):
        refused.generate(**inputs, max_new_tokens=2, keep_tokens=2)
    assert hooks(model) == count


# mrope; visual tokens added again in later blocks; masks by kind of block; positions counted from the cache
@pytest.mark.parametrize("kind", ["qwen2_5_vl", "qwen3_vl", "gemma3", "gemma4", "exaone4_5", "idefics3"])
def test_other_families_write_the_same_with_a_cache_and_without(kind: str) -> None:
    model = tiny_model(kind, "generative")
    attached, inputs = attach(model), example(model)
    options: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "return_dict_in_generate": True}
    for keep in (2, [1, 3]):
        logits = [
            attached.generate(
                **{k: v.clone() for k, v in inputs.items()},
                **options,
                output_logits=True,
                use_cache=cached,
                keep_tokens=keep,
            ).logits
            for cached in (True, False)
        ]
        for one, other in zip(*logits, strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)


# -- the mix -------------------------------------------------------------------------------------------------


def test_a_mix_that_is_given_is_used(attached: ArrCocModel) -> None:
    attached.generate(**tiny.generative_inputs(2), **GREEDY, keep_tokens=4, mix=1.0)
    assert attached.kept is not None
    assert attached.kept.mixes == [1.0, 1.0]


def test_rewards_teach_the_mix_and_it_is_saved(attached: ArrCocModel, tmp_path: Path) -> None:
    inputs = tiny.generative_inputs(2)
    mixture = attached.learner.mixture
    for _ in range(3):
        handle = attached.act(**inputs, **GREEDY, keep_tokens=4)
        assert handle.kept is not None
        assert set(handle.kept.mixes) <= set(GRID)
        attached.reward(handle, torch.tensor([1.0, 0.0]))
    assert int(mixture.used.sum()) == 6
    handle = attached.act(**inputs, **GREEDY, keep_tokens=4, mix=0.5)  # nobody's choice is learned from
    attached.reward(handle, 1.0)
    assert int(mixture.used.sum()) == 6
    attached.save_pretrained(tmp_path / "saved")
    again = ArrCocModel.from_pretrained(tiny.generative(), tmp_path / "saved", Words())
    for name in mixture.state_names:
        assert torch.equal(again.learner.mixture.get_buffer(name), mixture.get_buffer(name))
    first = attached.generate(**inputs, **GREEDY, keep_tokens=4)
    assert torch.equal(first, again.generate(**inputs, **GREEDY, keep_tokens=4))
    assert again.kept is not None
    assert attached.kept is not None
    assert again.kept.mixes == attached.kept.mixes
