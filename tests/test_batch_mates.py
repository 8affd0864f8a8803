"""What is said of a sample does not depend on the others of its batch, whatever those show."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from arr_coc import ArrCocConfig, attach
from arr_coc.adapters.grid import grids_of
from arr_coc.eval.tiny_inputs import example
from arr_coc.eval.tiny_models import tiny_model
from arr_coc.learner import Learner
from arr_coc.percept import Percept
from arr_coc.relevance import concentration, on_grid, settle, spread
from arr_coc.teaching import evidence

CONFIG = ArrCocConfig(width=8, expansion=8, question_relevance=True)


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


# -- the learner ---------------------------------------------------------------------------------------------


def padded(shapes: list[tuple[int, int]], grids: bool = True) -> tuple[Percept, list[Percept]]:
    """Samples of these grids ((1, n): in none) in one percept, and each in one of its own."""
    torch.manual_seed(0)
    counts = [rows * columns for rows, columns in shapes]
    most = max(counts)
    mask = torch.arange(most) < torch.tensor(counts).unsqueeze(1)
    tokens, attention = torch.randn(len(shapes), most, 8), torch.rand(len(shapes), most)
    stands = torch.tensor([s if s[0] > 1 else (0, 0) for s in shapes])
    context = torch.randn(len(shapes), 5)
    whole = Percept((tokens,), attention, context, mask=mask, grids=stands if grids else None)
    alone = [
        Percept((tokens[b : b + 1, :n],), attention[b : b + 1, :n], context[b : b + 1], grid=shape)
        for b, (n, shape) in enumerate(zip(counts, shapes, strict=True))
    ]
    return whole, [p if s[0] > 1 else replace(p, grid=None) for p, s in zip(alone, shapes, strict=True)]


@pytest.mark.parametrize("lateral", [0.0, 1.2])
def test_a_learner_says_of_each_sample_what_it_says_of_it_alone(lateral: float) -> None:
    """Neighbours shared nothing once a sample of the batch had fewer tokens than another, settling went on
    for all until the last stood still, and evidence was counted as if padding were tokens."""
    learner = Learner(replace(CONFIG, lateral=lateral, settle_tolerance=1e-3), [8], 5)
    torch.nn.init.normal_(learner.relevance_weight, std=3.0)
    whole, alone = padded([(2, 3), (4, 3), (3, 2), (1, 5)])
    answer = learner.answer(whole)
    feedback = torch.randn(4, 8)
    direction, _ = learner._eligible(whole, answer, feedback)
    weight = evidence(learner, whole, answer)
    assert weight is not None
    for b, one in enumerate(alone):
        expected, n = learner.answer(one), one.attention.shape[1]
        for name in ("relevance", "reading"):
            close(getattr(answer, name)[b, :n], getattr(expected, name)[0])
            assert not getattr(answer, name)[b, n:].any()
        close(answer.climb.phi[b], expected.climb.phi[0])
        close(answer.surprise[b], expected.surprise[0])
        close(answer.scene[b], expected.scene[0])
        close(direction[b], learner._eligible(one, expected, feedback[b : b + 1])[0][0])
        close(weight[b], evidence(learner, one, expected)[0])  # type: ignore[index]
    assert not torch.allclose(answer.reading[1], answer.settled.relevance[1], atol=1e-2)  # it was spread


def test_each_grid_is_its_own_neighbourhood() -> None:
    """A row of two and a column of two, the third token of the first being none."""
    r = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    made = on_grid(spread, r, torch.tensor([[1, 2], [3, 1], [0, 0]]), 1)
    close(made, torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    assert on_grid(spread, r, None, 1) is r


def test_settling_stands_where_the_sample_alone_stands() -> None:
    torch.manual_seed(1)
    gamma, features = torch.randn(3, 6) * torch.tensor([[0.01], [1.0], [3.0]]), torch.randn(3, 6, 4)
    together = settle(gamma, features, 1.8, tolerance=1e-4)
    each = [settle(gamma[b : b + 1], features[b : b + 1], 1.8, tolerance=1e-4) for b in range(3)]
    assert len({one.iterations for one in each}) > 1
    assert together.iterations == max(one.iterations for one in each)
    for b, one in enumerate(each):
        torch.testing.assert_close(together.relevance[b], one.relevance[0], rtol=0, atol=1e-7)


def test_concentration_counts_the_tokens_that_exist() -> None:
    r = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, False, False], [True, True, True, True]])
    close(concentration(r, mask), torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("grids", [[[2, 2], [2, 3]], [[2, 3]], [[3, 3], [2, 3]]])
def test_grids_that_do_not_hold_the_tokens_are_refused(grids: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="grids"):
        Percept((torch.randn(2, 6, 4),), torch.rand(2, 6), torch.randn(2, 3), grids=torch.tensor(grids))


# -- models --------------------------------------------------------------------------------------------------


def pictures_of_two_sizes() -> tuple[Any, dict[str, Tensor], list[dict[str, Tensor]]]:
    """Qwen2.5-VL: 4 x 4 and 4 x 8 patches, four to a token; the shorter prompt is padded on the left."""
    model = tiny_model("qwen2_5_vl", "generative")
    torch.manual_seed(2)
    seen = example(model)
    text, grids = seen["input_ids"], torch.tensor([[1, 4, 4], [1, 4, 8]])
    place = model.config.image_token_id
    patches = [torch.randn(int(g.prod()), seen["pixel_values"].shape[1]) for g in grids]
    ids = [text[0], torch.cat([text[1, :3], torch.full((4,), place), text[1, 3:]])]
    alone = [
        {
            "pixel_values": patches[b],
            "image_grid_thw": grids[b : b + 1],
            "input_ids": ids[b][None],
            "attention_mask": torch.ones_like(ids[b])[None],
            "mm_token_type_ids": (ids[b] == place).long()[None],
        }
        for b in range(2)
    ]
    both = {"pixel_values": torch.cat(patches), "image_grid_thw": grids}
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        first, second = (one[name][0] for one in alone)
        both[name] = torch.stack(
            [torch.cat([torch.zeros_like(second[: len(second) - len(first)]), first]), second]
        )
    return model, both, alone


def patches_in_a_row() -> tuple[Any, dict[str, Tensor], list[dict[str, Tensor]]]:
    """SigLIP 2: 3 x 4 patches padded to the 16 of the other picture."""
    model = tiny_model("siglip2", "dual")
    both = dict(example(model))
    both["spatial_shapes"] = torch.tensor([[3, 4], [4, 4]])
    both["pixel_attention_mask"] = (torch.arange(16) < torch.tensor([[12], [16]])).long()
    both["context_ids"] = both["input_ids"][:2]
    own = ("pixel_values", "pixel_attention_mask", "spatial_shapes", "context_ids")
    alone = [{k: v[b : b + 1] if k in own else v for k, v in both.items()} for b in range(2)]
    for name in ("pixel_values", "pixel_attention_mask"):
        alone[0][name] = alone[0][name][:, :12]
    return model, both, alone


@pytest.mark.parametrize("given", [pictures_of_two_sizes, patches_in_a_row])
def test_pictures_of_several_sizes_are_read_as_each_alone(given: Any) -> None:
    model, both, alone = given()
    attached = attach(model, CONFIG)
    draw = torch.Generator().manual_seed(3)
    weight = attached.learner.relevance_weight
    weight.copy_(torch.randn(weight.shape, generator=draw))
    together = attached(**both)
    assert not torch.allclose(together.relevance[0], together.relevance[1])
    for b, one in enumerate(alone):
        expected = attached(**one)
        n = expected.relevance.shape[1]
        close(together.relevance[b, :n], expected.relevance[0])
        close(together.surprise[b], expected.surprise[0])
    attached.detach()


def test_of_pictures_of_several_sizes_the_tokens_are_kept_that_each_alone_keeps() -> None:
    model, both, alone = pictures_of_two_sizes()
    attached = attach(model, CONFIG)
    asked = {"keep_tokens": 0.5, "max_new_tokens": 1, "do_sample": False}
    attached.generate(**both, **asked)
    assert attached.kept is not None
    together = attached.kept
    for b, one in enumerate(alone):
        attached.generate(**one, **asked)
        close(together.relevance[b], attached.kept.relevance[0])
        assert torch.equal(together.tokens[b], attached.kept.tokens[0])
    attached.detach()


def test_whose_pictures_are_whose_is_counted_from_their_tokens() -> None:
    """The first sample shows two pictures, the second one: only that one's tokens stand in a grid."""
    model = tiny_model("qwen2_5_vl", "generative")
    shapes = torch.tensor([[1, 4, 4], [1, 4, 4], [1, 4, 8]])
    mask = torch.ones(2, 8, dtype=torch.bool)
    found = grids_of(model, {"image_grid_thw": shapes}, mask)
    assert found is not None
    assert found.tolist() == [[0, 0], [2, 4]]
    assert grids_of(model, {"image_grid_thw": shapes}, mask[:, :7]) is None  # cannot be
