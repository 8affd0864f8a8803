"""User attention: targets in closed form, the update against autograd, one cue's place kept from another's,
and places that are none."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import tiny
from arr_coc import ArrCocConfig, Learner, Percept, attach, state
from arr_coc.adapters.pointing import at_prompts_end
from arr_coc.relevance import box_target, click_target, map_target, own_correlation, pointed
from arr_coc.relevance.three_factor import ThreeFactor

SMALL = ArrCocConfig(width=16, expansion=8, spread=0)
CONTEXT = torch.tensor([1, 2, 49])
WIDE = torch.float64

# -- targets -------------------------------------------------------------------------------------------------


def test_a_click_is_the_token_it_lies_in_and_the_far_edge_belongs_to_the_last() -> None:
    points = torch.tensor([[0.0, 0.0], [0.49, 0.0], [0.5, 0.34], [1.0, 1.0], [0.0, 0.99]])
    assert click_target(points, (3, 2)).argmax(1).tolist() == [0, 0, 3, 5, 4]
    assert torch.equal(click_target(points, (3, 2)).sum(1), torch.ones(5, dtype=WIDE))


def test_a_box_gives_each_token_its_part_of_the_area() -> None:
    # of 2 x 2 tokens, a quarter of the first, half of the second's width ...: areas by hand
    box = torch.tensor([[0.25, 0.25, 1.0, 0.75]])
    want = torch.tensor([[0.0625, 0.125, 0.0625, 0.125]], dtype=WIDE) / 0.375
    torch.testing.assert_close(box_target(box, (2, 2)), want, rtol=0, atol=1e-15)
    inner = box_target(torch.tensor([[0.3, 0.6, 0.31, 0.61]]), (2, 2))  # smaller than a token
    torch.testing.assert_close(inner, torch.tensor([[0.0, 0, 1, 0]], dtype=WIDE), rtol=0, atol=1e-15)


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (2, 3), (96, 64)])
def test_a_map_is_resampled_by_area_whatever_its_size(size: tuple[int, int]) -> None:
    """Against a map blown up until its pixels divide the tokens evenly, and summed."""
    torch.manual_seed(0)
    given, grid = torch.rand(2, *size, dtype=WIDE), (3, 4)
    fine = given.repeat_interleave(grid[0], 1).repeat_interleave(grid[1], 2)
    want = fine.reshape(2, grid[0], size[0], grid[1], size[1]).sum((2, 4)).flatten(1)
    want = want / want.sum(1, keepdim=True)
    torch.testing.assert_close(map_target(given, grid), want, rtol=1e-12, atol=0)


def test_a_box_and_the_mask_of_the_same_pixels_are_one_target() -> None:
    mask = torch.zeros(1, 20, 30)
    mask[0, 3:17, 5:12] = 1
    box = torch.tensor([[5 / 30, 3 / 20, 12 / 30, 17 / 20]], dtype=WIDE)
    torch.testing.assert_close(map_target(mask, (3, 4)), box_target(box, (3, 4)), rtol=1e-12, atol=1e-15)


# -- the update ----------------------------------------------------------------------------------------------


def scene() -> tuple[torch.Tensor, ...]:
    """features (B, N, F), context (B, C), rest of the log-precision, own score and target, (B, N) each."""
    torch.manual_seed(0)
    f, c = torch.randn(3, 7, 5, dtype=WIDE), torch.randn(3, 4, dtype=WIDE)
    rest, own = torch.randn(3, 7, dtype=WIDE), torch.randn(3, 7, dtype=WIDE)
    return f, c, rest, own, torch.rand(3, 7, dtype=WIDE).softmax(1)


def test_the_update_is_the_gradient_of_the_likelihood_of_what_was_pointed_at() -> None:
    f, c, rest, own, t = scene()
    weight = torch.randn(4, 5, dtype=WIDE, requires_grad=True)
    gain = torch.full((3,), 0.7, dtype=WIDE, requires_grad=True)
    gamma = torch.einsum("bc,cf,bnf->bn", c, weight, f) / 5**0.5 + rest + gain[:, None] * own
    r = gamma.softmax(1)
    by_weight, by_gain = torch.autograd.grad((t * r.log()).sum(), [weight, gain])
    r = r.detach()
    direction, size, rho = pointed(t, r, f, own)
    torch.testing.assert_close(c.T @ direction, by_weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(size, (t - torch.minimum(t, r)).sum(1), rtol=1e-12, atol=0)
    assert rho is not None
    assert torch.equal(rho.sign(), by_gain.sign())
    # and a step of U is that gradient itself where nothing scales it
    moved = weight.detach().clone()
    config = ArrCocConfig(optimizer="sgd", context_key=False, own_first=False, context_reset=False, eta=0.2)
    learner = Learner(config, [5], 4)
    three = ThreeFactor(config, learner.context_key, learner.own_gain, learner.optimizer)
    three.learn(moved, "text", c, direction, size, None)
    torch.testing.assert_close(moved - weight, 0.2 * by_weight / 3, rtol=0, atol=1e-12)  # mean over the batch


def test_an_own_score_that_left_nothing_where_it_was_pointed_is_unlearned_too() -> None:
    """It misleads by 30 nats, and is right or wrong about tokens that have nothing either way."""
    own = torch.tensor([[30.0, 0.0, -9.0, 9.0]], dtype=WIDE)
    r, t = own.softmax(1), torch.tensor([[0.0, 1.0, 0.0, 0.0]], dtype=WIDE)
    _, size, rho = pointed(t, r, torch.zeros(1, 4, 2, dtype=WIDE), own)
    assert rho is not None
    assert float(rho) < -0.99
    assert float(size) == pytest.approx(1.0)
    assert float(own_correlation(r, t / r - 1, own)) > -0.05  # weighed by r it would be believed for ever


def percept_of(tokens: torch.Tensor, context: torch.Tensor) -> Percept:
    return Percept((tokens,), torch.full(tokens.shape[:2], 1 / tokens.shape[1]), context)


def test_pointing_moves_relevance_there_and_nothing_but_relevance() -> None:
    torch.manual_seed(0)
    learner = Learner(ArrCocConfig(width=8, expansion=4, spread=0), [8], 3)
    percept = percept_of(torch.randn(1, 6, 8), torch.tensor([[1.0, 0.0, 0.0]]))
    learner.learn(percept, ["a"])
    before = {k: v.clone() for k, v in state.tensors(learner).items()}
    target = torch.nn.functional.one_hot(torch.tensor([4]), 6).double()
    for _ in range(60):
        learner.point_out(percept, target)
    assert float(learner.answer(percept).settled.relevance[0, 4]) > 0.9
    changed = {k for k, v in state.tensors(learner).items() if not torch.equal(v, before[k])}
    assert {name for name in changed if not name.startswith("context_key.")} == {"relevance_weight"}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (torch.ones(1, 6), "sum to 1"),
        (torch.tensor([[2.0, -1, 0, 0, 0, 0]]), "at least 0"),
        (torch.full((1, 6), torch.nan), "no distribution"),
        (torch.ones(1, 3) / 3, r"\(1, 6\) is needed"),
        (torch.tensor([[0.0, 0, 0, 0, 0, 1]]), "masked"),
    ],
)
def test_a_target_that_is_no_distribution_over_what_is_there_is_refused(
    target: torch.Tensor, words: str
) -> None:
    learner = Learner(SMALL, [8], 3)
    mask = torch.tensor([[True] * 5 + [False]])
    percept = replace(percept_of(torch.randn(1, 6, 8), torch.ones(1, 3)), mask=mask)
    with pytest.raises(ValueError, match=words):
        learner.point_out(percept, target)
    with pytest.raises(ValueError, match="nothing was asked"):
        learner.point_out(replace(percept, asked="image"), torch.ones(1, 6) / 6)
    assert not learner.relevance_weight.any()


# -- what is not relevant now is protected -------------------------------------------------------------------


def drift(key: bool) -> float:
    """How far, in nats at most, pointing out the last of six correlated cues moves gamma under the others."""
    from arr_coc.adapters import embedded
    from arr_coc.eval.percepts import TextBook
    from arr_coc.training.stream_cued import NONSENSE

    cues = TextBook(*embedded.load("dual"))(NONSENSE)
    cosine = (cues @ cues.T)[~torch.eye(6, dtype=torch.bool)]
    assert float(cosine.mean()) > 0.55  # MiniLM's words for these colours have a mean of .53
    torch.manual_seed(0)
    learner = Learner(ArrCocConfig(width=24, expansion=0, spread=0, context_key=key), [24], cues.shape[1])
    tokens, places = torch.randn(1, 12, 24), torch.randperm(12)[:6]

    def teach(cue: int) -> None:
        for _ in range(40):
            percept = percept_of(tokens, cues[cue : cue + 1])
            learner.point_out(percept, torch.nn.functional.one_hot(places[cue : cue + 1], 12).double())

    def gamma() -> torch.Tensor:
        return torch.cat([learner.answer(percept_of(tokens, cues[i : i + 1])).gamma for i in range(6)])

    for cue in range(5):
        teach(cue)
    before = gamma()
    teach(5)
    after = gamma()
    assert float((after[5] - before[5]).abs().max()) > 3  # it was learned
    return float((after[:5] - before[:5]).abs().max())


def test_pointing_out_one_cue_leaves_correlated_ones_where_they_were() -> None:
    assert drift(key=True) < 0.05  # nats; .02 as measured
    assert drift(key=False) > 2  # 4.2: without the key they are overwritten


# -- attached ------------------------------------------------------------------------------------------------


def test_an_attached_dual_encoder_looks_where_it_was_pointed() -> None:
    attached, inputs = attach(tiny.dual(), SMALL), tiny.dual_inputs()
    click = torch.tensor([[0.1, 0.1], [0.9, 0.1], [0.4, 0.9]])
    place = [0, 3, 13]  # of 4 x 4
    for _ in range(150):
        answer = attached.point_out(click=click, **inputs, context_ids=CONTEXT)
    assert answer.relevance.argmax(1).tolist() == place
    assert attached.learner.classes == []
    assert int(attached.learner.step) == 0
    attached.detach()


def test_pixels_and_shares_boxes_and_masks_are_one_lesson() -> None:
    inputs = tiny.dual_inputs()  # of 32 px
    mask = torch.zeros(3, 64, 64)
    mask[:, 16:32, 0:48] = 1
    ways: list[dict[str, Any]] = [
        {"box": (0.0, 0.25, 0.75, 0.5)},
        {"box": torch.tensor([0, 8, 24, 16]), "in_pixels": True},
        {"mask": mask},
        {"mask": mask[0] > 0},
    ]
    learned = []
    for way in ways:
        attached = attach(tiny.dual(), SMALL)
        attached.point_out(**way, **inputs, context_ids=CONTEXT)
        learned.append(attached.learner.relevance_weight.clone())
        attached.detach()
    assert learned[0].any()
    for other in learned[1:]:
        torch.testing.assert_close(other, learned[0], rtol=1e-5, atol=1e-7)


def test_a_generative_model_is_pointed_at_what_its_prompt_asks_for() -> None:
    attached, inputs = attach(tiny.generative(), SMALL), tiny.generative_inputs()
    seen = at_prompts_end(attached, inputs).percept
    assert seen.batch == 2  # one row per sample
    # it is the row that the answer is written from
    asked = attached(**inputs)
    torch.testing.assert_close(attached.learner.answer(seen).relevance, asked.relevance)
    for _ in range(60):
        attached.point_out(box=[[0.0, 0, 0.25, 0.25], [0.75, 0.75, 1, 1]], **inputs)
    assert attached(**inputs).relevance.argmax(1).tolist() == [0, 15]
    attached.detach()


def _none() -> list[tuple[str, dict[str, Any], str]]:
    nan = float("nan")
    return [
        ("nothing", {}, "one of click, box, mask"),
        ("two", {"click": (0.5, 0.5), "box": (0, 0, 1, 1)}, "click and box were given"),
        ("click outside", {"click": [[0.5, 0.5], [0.5, 1.01], [0, 0]]}, r"samples \[1\]"),
        ("click left of it", {"click": (-0.01, 0.5)}, "no place"),
        ("click in pixels outside", {"click": (10, 33), "in_pixels": True}, "no place"),
        ("pixels without saying so", {"click": (10, 20)}, "in_pixels=True"),
        ("click nan", {"click": (nan, 0.5)}, "no place"),
        ("click shape", {"click": (0.1, 0.2, 0.3)}, r"\(B, 2\) is needed"),
        ("box outside", {"box": (0.5, 0.5, 1.2, 0.9)}, "no place"),
        ("box empty", {"box": (0.5, 0.5, 0.5, 0.9)}, "x0 < x1"),
        ("box turned", {"box": (0.5, 0.9, 0.7, 0.2)}, "y0 < y1"),
        ("box nan", {"box": (0, 0, nan, 1)}, "no place"),
        ("samples", {"box": torch.rand(2, 4)}, "1 or 3"),
        ("mask empty", {"mask": torch.zeros(3, 8, 8)}, r"samples \[0, 1, 2\]"),
        ("mask nan", {"mask": torch.full((8, 8), nan)}, "finite"),
        ("mask negative", {"mask": -torch.ones(8, 8)}, "at least 0"),
        ("mask rank", {"mask": torch.ones(3, 1, 8, 8)}, r"\(B, H, W\) is needed"),
        ("mask size", {"mask": torch.ones(3, 0, 8)}, r"\(B, H, W\) is needed"),
        ("mask samples", {"mask": torch.ones(4, 8, 8)}, "1 or 3"),
    ]


@pytest.mark.parametrize(("way", "words"), [n[1:] for n in _none()], ids=[n[0] for n in _none()])
def test_a_place_that_is_none_changes_nothing(way: dict[str, Any], words: str) -> None:
    attached, inputs = attach(tiny.dual(), SMALL), tiny.dual_inputs()
    attached.point_out(click=(0.5, 0.5), **inputs, context_ids=CONTEXT)
    before = {k: v.clone() for k, v in state.tensors(attached.learner).items()}
    with pytest.raises(ValueError, match=words):
        attached.point_out(**way, **inputs, context_ids=CONTEXT)
    after = state.tensors(attached.learner)
    assert all(torch.equal(v, after[k]) for k, v in before.items())
    attached.detach()


def test_pointing_needs_something_asked_for_and_relevance_that_is_learned() -> None:
    inputs = tiny.dual_inputs()
    attached = attach(tiny.dual(), SMALL)
    with pytest.raises(ValueError, match="nothing was asked"):
        attached.point_out(click=(0.5, 0.5), **inputs)
    other = attach(tiny.generative(), SMALL)
    with pytest.raises(ValueError, match="1 or 2"):
        other.point_out(click=torch.rand(3, 2), **tiny.generative_inputs())
    attached.detach()
    other.detach()
    fixed = attach(tiny.dual(), replace(SMALL, learn_relevance=False))
    with pytest.raises(ValueError, match="learn_relevance is off"):
        fixed.point_out(click=(0.5, 0.5), **inputs, context_ids=CONTEXT)
    fixed.detach()
