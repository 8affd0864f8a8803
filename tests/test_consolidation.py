"""Consolidation: closed forms of its averages and of its penalty, and the same for every rule."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import tiny
from arr_coc import ArrCocConfig, ArrCocModel, Learner, Percept, attach, state
from arr_coc.consolidation import XI, Consolidation, proximal
from arr_coc.optimizer import Optimizer
from arr_coc.rules import RULES
from arr_coc.training import distributed

KINDS = ("ewc", "si")
EXACT = {"rtol": 0.0, "atol": 1e-12}
LEARNS = ArrCocConfig(
    width=6,
    spread=0,
    reads="top",
    ladder_gain=1.0,
    readout="delta",
    optimizer="sgd",
    eta_ladder=0.05,
    eta_readout=0.05,
)


def percept(seed: int, batch: int = 1) -> tuple[Percept, list[str]]:
    draw = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(batch, 4, 6, generator=draw) for _ in range(2))
    cue = torch.Generator().manual_seed(seed % 2 if seed < 100 else seed)  # two texts, met in turn
    context = torch.randn(1, 5, generator=cue).repeat(batch, 1)
    seen = Percept(tokens, torch.ones(batch, 4) / 4, context, asked="text")
    return seen, [str(int(k)) for k in torch.randint(3, (batch,), generator=draw)]


def live(learner: Learner, steps: range) -> None:
    for k in steps:
        learner.learn(*percept(k))


def copy_of(learner: Learner, **changes) -> Learner:
    """Its state in a fresh learner of another config."""
    fresh = Learner(replace(learner.config, **changes), [6, 6], 5)
    state.load(fresh, {n: t.clone() for n, t in state.tensors(learner).items()}, state.meta(learner))
    return fresh


# -- closed forms --------------------------------------------------------------------------------------------


def test_the_penaltys_step_is_the_minimum_that_it_is_defined_by() -> None:
    weight, anchor, pull = torch.tensor([3.0, 3.0, 3.0]), torch.tensor([1.0] * 3), torch.tensor([0.0, 1, 3])
    torch.testing.assert_close(proximal(weight, anchor, pull), torch.tensor([3.0, 2.0, 1.5]))
    assert torch.equal(proximal(weight, anchor, torch.full((3,), torch.inf)), anchor)


def test_two_scalar_tasks_end_between_their_optima_by_their_precisions() -> None:
    """max -h/2 (w - b)^2 - lambda F/2 (w - a)^2 at w = (h b + lambda F a) / (h + lambda F)."""
    a, b, h, fisher, strength, eta = 2.0, -1.0, 3.0, 0.7, 5.0, 0.1
    anchor = torch.tensor(a, dtype=torch.float64)
    w, pull = anchor.clone(), torch.tensor(eta * strength * fisher, dtype=torch.float64)
    for _ in range(400):
        w = proximal(w + eta * h * (b - w), anchor, pull)
    expected = (h * b + strength * fisher * a) / (h + strength * fisher)
    assert abs(float(w) - expected) < 1e-12


def test_two_linear_regressions_end_at_the_solution_of_elastic_weight_consolidation() -> None:
    """Importance is the diagonal of the empirical Fisher information at the first task's optimum; the second
    task then ends where (H_b + lambda diag F) w = H_b w_b + lambda diag F w_a."""
    draw = torch.Generator().manual_seed(0)
    x_a, x_b = (torch.randn(500, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    x_a[:, :2] *= torch.tensor([2.0, 0.1])
    w_a, w_b = (torch.randn(4, generator=draw, dtype=torch.float64) for _ in range(2))
    y_a = x_a @ w_a + torch.randn(500, generator=draw, dtype=torch.float64)
    best = torch.linalg.lstsq(x_a, y_a.unsqueeze(1)).solution[:, 0]
    keeper = Consolidation("ewc", strength=1.0, decay=1.0)
    for x, y in zip(x_a, y_a, strict=True):
        keeper.settle("w", best.clone(), best, (y - x @ best) * x, eta=0.1)
    fisher, (anchor,) = keeper.importance("w"), keeper.anchors("w")
    torch.testing.assert_close(fisher, ((y_a - x_a @ best).unsqueeze(1) * x_a).square().mean(0), **EXACT)
    torch.testing.assert_close(fisher, x_a.square().mean(0), rtol=0.25, atol=0.0)  # noise of unit variance
    torch.testing.assert_close(anchor, best, **EXACT)

    w, eta, strength, hessian = best.clone(), 0.05, 3.0, x_b.T @ x_b / 500
    for _ in range(3000):
        w = proximal(w + eta * hessian @ (w_b - w), anchor, eta * strength * fisher)
    right = hessian @ w_b + strength * fisher * best
    torch.testing.assert_close(w, torch.linalg.solve(hessian + strength * fisher.diag(), right), **EXACT)
    assert (w - best)[0].abs() / (w_b - best)[0].abs() < (w - best)[1].abs() / (w_b - best)[1].abs()


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_anchor_and_importance_are_weighted_means_from_the_first_step_on(decay: float) -> None:
    draw = torch.Generator().manual_seed(0)
    keeper, w, seen, squares = Consolidation("ewc", 0.0, decay), torch.zeros(3).double(), [], []
    for _ in range(20):
        g, before = torch.randn(3, generator=draw).double(), w.clone()
        w += 0.1 * g
        keeper.settle("w", w, before, g, 0.1)
        seen.append(before)
        squares.append(g.square())
        share = decay ** torch.arange(len(seen)).double().flip(0)
        share = (share / share.sum()).unsqueeze(1)
        torch.testing.assert_close(keeper.anchors("w")[0], (share * torch.stack(seen)).sum(0), **EXACT)
        torch.testing.assert_close(keeper.importance("w"), (share * torch.stack(squares)).sum(0), **EXACT)


def _descend(eta: float) -> tuple[Consolidation, float, Tensor]:
    """A flow of length 2 down a loss that is no quadratic; the drop of the loss, and the way gone."""
    draw = torch.Generator().manual_seed(1)
    a = torch.randn(6, 4, generator=draw, dtype=torch.float64)
    target = torch.randn(6, generator=draw, dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        return 0.5 * (torch.tanh(a @ w) - target).square().sum()

    optimizer = Optimizer("sgd", consolidation=Consolidation("si", 0.0, 1.0))
    start = torch.randn(4, generator=draw, dtype=torch.float64)
    w = start.clone()
    for _ in range(round(2 / eta)):
        (g,) = torch.autograd.grad(loss(x := w.clone().requires_grad_()), x)
        optimizer.move("w", w, -g, eta)
    return optimizer.consolidation, float(loss(start) - loss(w)), w - start


def test_what_weights_had_a_part_in_adds_up_to_the_drop_of_the_loss() -> None:
    """Zenke et al. (2017), eq. 3: the sum of the path integrals is L(0) - L(T) to first order in eta."""
    gaps = []
    for eta in (0.02, 0.01, 0.005):
        keeper, drop, way = _descend(eta)
        path = keeper.kept["w"]["path"]
        torch.testing.assert_close(keeper.kept["w"]["way"], way, rtol=0.0, atol=1e-9)
        torch.testing.assert_close(keeper.importance("w"), path.clamp_min(0) / (way**2 + XI))
        gaps.append(abs(float(path.sum()) - drop))
        assert gaps[-1] < 2 * eta * drop
    assert gaps[1] / gaps[0] == pytest.approx(0.5, abs=0.05)
    assert gaps[2] / gaps[1] == pytest.approx(0.5, abs=0.05)


def test_the_path_is_forgotten_at_the_rate_of_the_decay() -> None:
    keeper, w = Consolidation("si", 0.0, 0.5), torch.zeros(1)
    for _ in range(2):
        before = w.clone()
        w += 0.1
        keeper.settle("w", w, before, torch.ones(1), 0.1)
    torch.testing.assert_close(keeper.kept["w"]["path"], torch.tensor([0.15]))
    torch.testing.assert_close(keeper.kept["w"]["way"], torch.tensor([0.15]))


# -- in the learner ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["direction", "sgd", "adam"])
@pytest.mark.parametrize("kind", KINDS)
def test_at_strength_0_it_only_watches(kind: str, optimizer: str) -> None:
    config = replace(LEARNS, optimizer=optimizer, eta_ladder=0.01)
    plain = Learner(config, [6, 6], 5)
    watched = Learner(replace(config, consolidation=kind, consolidation_strength=0.0), [6, 6], 5)
    for learner in (plain, watched):
        live(learner, range(15))
    there = state.tensors(watched)
    assert not any(name.startswith("consolidation") for name in state.tensors(plain))
    assert all(torch.equal(t, there[n]) for n, t in state.tensors(plain).items())
    held = learner.optimizer.consolidation.kept
    assert set(held) == {"relevance", "readout", *learner.ladder.weights()}
    assert all(bool((learner.optimizer.consolidation.importance(n) > 0).any()) for n in held)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_moves_what_is_important_less_and_goes_on_from_a_file_the_same(
    rule: str, kind: str
) -> None:
    """Batch 1, under the relevance gate and the neuromodulator: every plastic tensor ends 1 + eta strength
    Omega times nearer to its anchor than without."""
    strength = {"ewc": 1e5, "si": 50.0}[kind]
    config = replace(LEARNS, rule=rule, consolidation=kind, consolidation_strength=strength)
    config = replace(config, surprise_gate="boost", protect="relevance")
    learner = Learner(config, [6, 6], 5)
    live(learner, range(12))
    resumed, free = copy_of(learner), copy_of(learner, consolidation_strength=0.0)
    keeper = learner.optimizer.consolidation
    told = {n: (keeper.anchors(n)[0].clone(), keeper.importance(n).clone()) for n in keeper.kept}
    for one in (learner, resumed, free):
        live(one, range(12, 13))
    moved = 0
    for name, (anchor, importance) in told.items():
        held, plain = tensor_of(learner, name), tensor_of(free, name)
        if len(anchor) < len(held):  # a class appeared
            continue
        eta = {"relevance": config.eta, "readout": config.eta_readout}.get(name, config.eta_ladder)
        expected = anchor + (plain - anchor) / (1 + eta * strength * importance)
        torch.testing.assert_close(held, expected, rtol=1e-4, atol=1e-6)
        moved += int(not torch.equal(held, plain))
    assert moved >= 4
    for one in (learner, resumed):
        live(one, range(13, 20))
    for name, tensor in state.tensors(learner).items():
        assert torch.equal(tensor, state.tensors(resumed)[name]), name
        assert torch.isfinite(tensor.double()).all(), name


def tensor_of(learner: Learner, name: str) -> Tensor:
    if name.startswith("rule."):
        return learner.rule.state[name.removeprefix("rule.")]
    own = {"relevance": learner.relevance_weight, "readout": learner.readout.weight}
    return own[name] if name in own else learner.ladder.get_buffer(name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_reward_is_consolidated_as_a_label_is(kind: str) -> None:
    learner = Learner(replace(LEARNS, consolidation=kind, consolidation_strength=20.0), [6, 6], 5)
    for k in range(8):
        _, left = learner.act(percept(k)[0], ["0", "1"])
        learner.reward(left, torch.tensor([float(k % 2)]))
    held = learner.optimizer.consolidation
    assert int(held.kept["readout"]["count"]) == 8
    assert set(held.kept) == {"relevance", "readout", *learner.ladder.weights()}
    free, anchor = copy_of(learner, consolidation_strength=0.0), held.anchors("readout")[0].clone()
    pull = 20.0 * LEARNS.eta_readout * held.importance("readout").clone()
    for one in (learner, free):
        one.generator.manual_seed(0)
        _, left = one.act(percept(9)[0], ["0", "1"])
        one.reward(left, torch.tensor([1.0]))
    expected = anchor + (free.readout.weight - anchor) / (1 + pull)
    torch.testing.assert_close(learner.readout.weight, expected, **EXACT)


def test_a_class_that_appears_late_is_anchored_where_it_starts() -> None:
    keeper = Consolidation("ewc", 0.0, 1.0)
    w = torch.ones(1, 2)
    for rows in (1, 3):
        w = torch.cat([w, torch.full((rows - 1, 2), 7.0)])
        before = w.clone()
        keeper.settle("w", w, before, torch.ones_like(w), 0.1)
    torch.testing.assert_close(keeper.anchors("w")[0], torch.tensor([[1.0, 1], [7, 7], [7, 7]]))
    torch.testing.assert_close(keeper.importance("w"), torch.tensor([[1.0, 1], [0.5, 0.5], [0.5, 0.5]]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_starts_anew_is_not_pulled_back_to_what_was_unlearned(kind: str) -> None:
    learner = Learner(replace(LEARNS, consolidation=kind, consolidation_strength=1e6), [6, 6], 5)
    live(learner, range(6))
    seen, _ = percept(100)  # a third one
    three, context = learner.three_factor, learner._context(seen.context)
    three.meet(learner.relevance_weight, "text", context)
    for tensor in (learner.relevance_weight, *learner.optimizer.consolidation.anchors("relevance")):
        assert (context @ tensor).abs().max() < 1e-5 < tensor.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_that_is_not_finite_is_refused_and_a_huge_one_leaves_no_nan(kind: str) -> None:
    learner = Learner(replace(LEARNS, consolidation=kind), [6, 6], 5)
    live(learner, range(5))
    before = {n: t.clone() for n, t in state.tensors(learner).items()}
    broken, keys = percept(5)
    broken.tokens[1].fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="nothing was changed"):
        learner.learn(broken, keys)
    assert all(torch.equal(t, before[n]) for n, t in state.tensors(learner).items())
    keeper, w = Consolidation(kind, 1.0, 1.0), torch.zeros(2)
    for g in (torch.tensor([1e30, 1.0]), torch.tensor([-1e30, 1.0]), torch.tensor([1e30, 0.0])):
        was = w.clone()
        w += 1e-32 * g
        keeper.settle("w", w, was, g, 1e-32)
    for tensor in (w, keeper.importance("w"), *keeper.state_tensors().values()):
        assert torch.isfinite(tensor.double()).all()


def test_a_state_that_does_not_fit_is_refused() -> None:
    learner = Learner(replace(LEARNS, consolidation="si"), [6, 6], 5)
    live(learner, range(3))
    saved, meta = dict(state.tensors(learner)), state.meta(learner)
    fresh = Learner(learner.config, [6, 6], 5)
    name = "consolidation.weight_0.path"
    with pytest.raises(ValueError, match=f"lacks {name}"):
        state.load(fresh, {n: t for n, t in saved.items() if n != name}, meta)
    with pytest.raises(ValueError, match=f"{name} has shape"):
        state.load(fresh, saved | {name: torch.zeros(6, 7)}, meta)
    with pytest.raises(ValueError, match=r"unexpected tensor 'consolidation\.weight_7\.path'"):
        state.load(fresh, saved | {"consolidation.weight_7.path": torch.zeros(6, 6)}, meta)
    with pytest.raises(ValueError, match="unexpected tensor 'consolidation"):
        state.load(Learner(LEARNS, [6, 6], 5), saved, meta)


def test_a_config_from_before_reads_as_off_and_wrong_values_are_refused() -> None:
    import json

    told = json.loads(ArrCocConfig().to_json())
    older = {n: v for n, v in told.items() if not n.startswith("consolidation")}
    assert ArrCocConfig.from_json(json.dumps(older)) == ArrCocConfig()
    for wrong in (
        {"consolidation": "ewk"},
        {"consolidation_strength": -1.0},
        {"consolidation_strength": float("nan")},
        {"consolidation_decay": 0.0},
        {"consolidation_decay": 1.01},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            ArrCocConfig(**wrong)


@pytest.mark.parametrize(
    "changes",
    [
        {"readout": "delta", "eta_ladder": 0.01, "consolidation": "si", "protect": "relevance"},
        {"consolidation": "ewc", "forgetting": 0.9, "transport": 2},
    ],
)
def test_an_adapter_that_protects_what_it_knows_is_saved_and_goes_on_the_same(
    changes: dict, tmp_path
) -> None:
    config = ArrCocConfig(width=16, expansion=8, ladder_gain=1.0, **changes)
    cue = {"context_ids": torch.tensor([1, 2, 49])}
    first = attach(tiny.dual(), config)
    for turn in range(3):
        first.learn(**tiny.dual_inputs(), **cue, labels=(torch.tensor([0, 1, 2]) + turn) % 5)
    first.save_pretrained(tmp_path / "adapter")
    second = ArrCocModel.from_pretrained(tiny.dual(), tmp_path / "adapter")
    for attached in (first, second):
        attached.learn(**tiny.dual_inputs(), **cue, labels=torch.tensor([3, 0, 1]))
    there = state.tensors(second.learner)
    assert any(name.startswith("consolidation.relevance") for name in there)
    assert all(torch.equal(t, there[n]) for n, t in state.tensors(first.learner).items())


@pytest.mark.parametrize("kind", KINDS)
def test_after_ranks_were_merged_the_first_ones_importance_goes_on(kind: str) -> None:
    """Weights are averaged; what is kept of them is rank 0's, with the classes that only others met anew."""
    config = replace(LEARNS, consolidation=kind)
    ranks = [Learner(config, [6, 6], 5) for _ in range(2)]
    base = distributed.base_of(ranks[0])
    for rank, learner in enumerate(ranks):
        for k in range(6):
            learner.learn(percept(k)[0], [f"{rank}{k % 2}"])
    kept = {n: t.clone() for n, t in ranks[0].optimizer.consolidation.state_tensors().items()}
    gains = [distributed.gain(learner, base) for learner in ranks]
    distributed.combine(ranks[0], base, gains)
    held = ranks[0].optimizer.consolidation
    assert all(torch.equal(t, kept[n]) for n, t in held.state_tensors().items())
    live(ranks[0], range(6, 9))
    assert len(held.anchors("readout")[0]) == len(ranks[0].classes) > 4
    assert all(torch.isfinite(t.double()).all() for t in state.tensors(ranks[0]).values())
