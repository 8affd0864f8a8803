"""The readout and the updates: recursive equals joint, local equals gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from arr_coc import ArrCocConfig, Learner, Percept
from arr_coc.error_module import ErrorModules
from arr_coc.familiarity import quadratic, scene_statistics, trust
from arr_coc.readout import PrecisionReadout
from arr_coc.relevance import ContextKey, concentration, energy, relevance_direction, settle, token_feedback
from arr_coc.relevance.settle import similarity
from arr_coc.rules import Teaching, make_rule

EXACT = {"rtol": 0.0, "atol": 1e-9}


def data(n: int = 120, d: int = 7, classes: int = 4) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    phi = torch.randn(n, d, generator=draw, dtype=torch.float64)
    labels = [str(int(v)) for v in torch.randint(classes, (n,), generator=draw)]
    return phi, labels, torch.rand(n, generator=draw, dtype=torch.float64) + 0.1


def teach(order: np.ndarray, batch: int, weighted: bool, ridge: float = 0.5) -> dict[str, torch.Tensor]:
    phi, labels, weight = data()
    readout = PrecisionReadout(7, ridge)
    for start in range(0, len(order), batch):
        some = order[start : start + batch]
        rows = readout.rows([labels[i] for i in some], grow=True)
        readout.learn(phi[some], rows, weight[some] if weighted else None)
    return dict(zip(readout.classes, readout.weight, strict=True))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("batch", [1, 10, 120])
def test_any_order_and_batch_gives_the_joint_ridge(batch: int, weighted: bool) -> None:
    """Classes one after another, shuffled, reversed: scikit-learn's ridge on all data at once."""
    linear = pytest.importorskip("sklearn.linear_model")
    phi, labels, weight = data()
    target = np.array([[float(y == c) for c in "0123"] for y in labels])
    w = weight.numpy() if weighted else None
    joint = linear.Ridge(0.5, fit_intercept=False).fit(phi.numpy(), target, sample_weight=w).coef_
    by_class = np.argsort(np.array(labels), kind="stable")
    for order in (by_class, by_class[::-1].copy(), np.random.default_rng(1).permutation(120)):
        found = teach(order, batch, weighted)
        torch.testing.assert_close(torch.stack([found[c] for c in "0123"]), torch.tensor(joint), **EXACT)


def test_merged_workers_equal_one_and_solving_repairs_drift() -> None:
    phi, labels, _ = data()
    parts = [PrecisionReadout(7, 0.5) for _ in range(3)]
    for i, label in enumerate(labels):
        one = parts[i % 2]
        one.learn(phi[i : i + 1], one.rows([label], grow=True))
        parts[2].learn(phi[i : i + 1], parts[2].rows([label], grow=True))
    parts[0].merge(parts[1])
    rows = parts[2].rows(parts[0].classes)
    torch.testing.assert_close(parts[0].weight, parts[2].weight[rows], rtol=0, atol=1e-10)
    whole = parts[2].weight.clone()
    parts[2].weight += 1e-3
    parts[2].solve()
    torch.testing.assert_close(parts[2].weight, whole, **EXACT)
    with pytest.raises(ValueError, match="cannot merge"):
        parts[0].merge(PrecisionReadout(7, 2.0))


def test_a_row_rewarded_alone_is_the_ridge_of_its_own_samples() -> None:
    phi, _, _ = data(40)
    readout = PrecisionReadout(7, 0.5)
    a, b = readout.rows(["a", "b"], grow=True).tolist()
    rows = torch.tensor([b, a, b] * 14)[:40]
    worth = torch.tensor([1.0, 0.25, 0.0] * 14, dtype=torch.float64)[:40]  # b was right every third time
    for start in range(0, 40, 7):  # in groups: what was right and what was not, mixed
        some = slice(start, start + 7)
        readout.learn_outcomes(phi[some], rows[some], worth[some])
    for row in (a, b):
        mine = (rows == row) | (worth == 1)  # a right answer says what the others are worth: nothing
        x, y = phi[mine], torch.where(rows[mine] == row, worth[mine], 0.0)
        expected = torch.linalg.solve(x.T @ x + 0.5 * torch.eye(7, dtype=torch.float64), x.T @ y)
        torch.testing.assert_close(readout.weight[row], expected, **EXACT)


def trust_in(readout: PrecisionReadout, phi: torch.Tensor) -> torch.Tensor:
    return trust(readout.familiarity.novelty(phi))


def test_trust_is_one_for_the_usual_and_vanishes_far_away() -> None:
    draw = torch.Generator().manual_seed(5)
    phi = torch.randn(400, 20, generator=draw) * torch.tensor([1.0] * 10 + [0.01] * 10)
    readout = PrecisionReadout(20, 1.0)
    for i in range(0, 400, 10):
        readout.learn(phi[i : i + 10], readout.rows(["a", "b"] * 5, grow=True))
    usual = torch.randn(50, 20, generator=draw) * torch.tensor([1.0] * 10 + [0.01] * 10)
    far = torch.randn(50, 20, generator=draw) * torch.tensor([0.01] * 10 + [50.0] * 10)
    assert trust_in(readout, usual).median() == 1.0
    assert trust_in(readout, far).max() < 1e-30
    # the closed form of what is usual: the mean leave-one-out leverage
    inside = readout.familiarity
    h = inside.variance(phi)
    torch.testing.assert_close(inside.usual_variance(), h.mean() / (1 - h.mean()), rtol=1e-9, atol=0)


def small(**changes) -> tuple[Learner, Percept]:
    torch.manual_seed(4)
    learner = Learner(ArrCocConfig(width=6, expansion=5, spread=0, **changes), [6, 6], 4)
    for name in learner.ladder.weights():
        learner.ladder.get_buffer(name).normal_(0, 0.3)
    learner.relevance_weight.normal_(0, 0.3)
    tokens = tuple(torch.randn(3, 8, 6) for _ in range(2))
    percept = Percept(tokens, torch.rand(3, 8), torch.randn(3, 4), own=torch.randn(3, 8))
    for label in ("a", "b", "c") * 5:
        learner.readout.learn(
            torch.randn(1, learner.ladder.phi_width), learner.readout.rows([label], grow=True)
        )
    return learner, percept


def test_without_trust_the_models_own_scores_come_back_bit_for_bit() -> None:
    learner, percept = small()
    answer = learner.answer(percept)
    own = torch.randn(3, 4) * 20
    for faintly in (0.0, 1e-300, 1e-30):
        faint = replace(answer, trust=torch.full((3,), faintly, dtype=torch.float64))
        assert torch.equal(learner.fuse(own, ["b", "x", "a", "y"], faint), own)
    full = replace(answer, trust=torch.ones(3, dtype=torch.float64))
    fused = learner.fuse(own, ["b", "x", "a", "y"], full).double().softmax(1)
    values = answer.values[:, [learner.classes.index(c) for c in "ba"]]
    expected = (learner.config.value_scale * values).softmax(1)
    torch.testing.assert_close(fused[:, [0, 2]], expected, rtol=1e-4, atol=1e-6)
    assert fused[:, [1, 3]].max() < 1e-6


def test_local_updates_are_the_gradient_of_the_chosen_value() -> None:
    """Three factors: delta x attentional feedback x activity = -d/d(W, b, U) of 1/2 (r - q_s)^2."""
    learner, percept = small(clamp=1e6, eta_ladder=0.1)
    answer = learner.answer(percept)
    learner.double()
    chosen = torch.tensor([0, 2, 1])
    reward = torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64)
    names = {**learner.ladder.weights(), "U": learner.relevance_weight}
    copies = {n: t.detach().clone().double().requires_grad_() for n, t in names.items()}
    features, context = answer.features.double(), answer.context.double()
    gamma = torch.einsum("bc,cf,bnf->bn", context, copies["U"], features) / features.shape[-1] ** 0.5
    gamma = gamma + percept.own.double()
    drive = torch.einsum("bn,bnf->bf", gamma.softmax(1), features)
    phi = learner.ladder.climb(drive, context, None, copies).phi
    q = (phi @ learner.readout.weight.T).gather(1, chosen[:, None]).squeeze(1)
    gradients = torch.autograd.grad(-0.5 * (reward - q).square().mean(), list(copies.values()))
    expected = dict(zip(copies, gradients, strict=True))

    error = torch.zeros(3, 3, dtype=torch.float64)
    error[torch.arange(3), chosen] = (reward - q).detach()
    climb = learner.ladder.climb(drive.detach(), context, None)
    teaching = Teaching(error, error, learner.readout.weight, error, learner.relevance_weight)
    updates = make_rule("attention_gated", {}).step(learner.ladder, climb, teaching)
    for name, update in updates.ladder.items():
        torch.testing.assert_close(update, expected[name], rtol=0, atol=1e-12)
    r = gamma.softmax(1).detach()
    moved = (
        context.T @ relevance_direction(r, features, token_feedback(r, features, updates.drive_feedback)) / 3
    )
    torch.testing.assert_close(moved, expected["U"], rtol=0, atol=1e-12)
    unchosen = torch.ones_like(error).scatter_(1, chosen[:, None], 0).bool()
    one = torch.zeros_like(error)
    one[0, 0] = 1.0
    only = make_rule("attention_gated", {}).step(
        learner.ladder, climb, Teaching(one, one, learner.readout.weight, one, learner.relevance_weight)
    )
    assert torch.equal(only.readout[1:], torch.zeros_like(only.readout[1:]))
    assert unchosen.sum() == 6


@pytest.mark.parametrize("alike", [False, True])
def test_settling_contracts_and_its_energy_falls(alike: bool) -> None:
    torch.manual_seed(6)
    features = torch.ones(2, 9, 5) if alike else torch.randn(2, 9, 5)
    gamma = torch.randn(2, 9)
    support = similarity(features)
    assert torch.linalg.eigvalsh(support).min() > -1e-6
    assert torch.linalg.matrix_norm(support, 2).max() <= 1 + 1e-6
    r = gamma.softmax(1)
    last = energy(r, gamma, support, 1.9)
    for _ in range(50):
        r = (gamma + 1.9 * (support @ r.unsqueeze(-1)).squeeze(-1)).softmax(1)
        now = energy(r, gamma, support, 1.9)
        assert (now <= last + 1e-6).all()
        last = now
    settled = settle(gamma, features, 1.9)
    torch.testing.assert_close(settled.relevance, r, rtol=0, atol=1e-5)
    assert settled.residual < 1e-6
    assert torch.equal(settle(gamma, features, 0.0).relevance, gamma.softmax(1))


def test_the_context_key_is_the_direct_inverse() -> None:
    torch.manual_seed(7)
    key, contexts = ContextKey(5, 0.3), torch.randn(12, 5, dtype=torch.float64)
    key.observe(contexts[:1])
    key.observe(contexts[1:])
    direct = torch.linalg.inv(0.3 * torch.eye(5, dtype=torch.float64) + contexts.T @ contexts)
    torch.testing.assert_close(key.inverse_correlation, direct, **EXACT)
    torch.testing.assert_close((key.key(contexts) * contexts).sum(1), torch.ones(12, dtype=torch.float64))
    torch.testing.assert_close(key.mean, contexts.mean(0))


def test_precision_settles_at_the_inverse_error_and_nothing_overflows() -> None:
    torch.manual_seed(8)
    module = ErrorModules(3, 1, 2)
    spread = torch.tensor([0.5, 1.0, 3.0])
    for _ in range(4000):
        states, context = [torch.randn(20, 3) * spread], torch.zeros(20, 2)
        module.learn(states, module.errors(states, context), context, 0.02)
    # the floor on one outlier's step lifts the fixed point slightly above 1 / E[eps^2]
    torch.testing.assert_close(module.log_precision_0.exp() * spread**2, torch.ones(3), rtol=0.25, atol=0)
    for _ in range(20):
        states, context = [torch.randn(2, 3) * 1e15], torch.randn(2, 2) * 1e15
        module.learn(states, module.errors(states, context), context, 0.02)
    assert all(torch.isfinite(module.get_buffer(n)).all() for n in module.state_names)


def test_trust_remembers_the_whole_stream_in_any_order() -> None:
    """Classes one after another: what came first is trusted as much as what came last."""
    draw = torch.Generator().manual_seed(5)
    centres = torch.randn(4, 24, generator=draw) * 3
    samples = [centres[k] + torch.randn(300, 24, generator=draw) for k in range(4)]
    trusted = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        readout = PrecisionReadout(24)
        for k in order:
            for some in samples[k][:200].split(10):
                readout.learn(some, readout.rows([str(k)] * 10, grow=True))
        trusted.append(torch.stack([trust_in(readout, s[200:]).mean() for s in samples]))
    assert torch.stack(trusted).min() > 0.95
    torch.testing.assert_close(trusted[0], trusted[1], rtol=0, atol=0.02)


def test_merged_trust_statistics_are_those_of_both_streams() -> None:
    torch.manual_seed(6)
    one, two = PrecisionReadout(4), PrecisionReadout(4)
    for readout, scale in ((one, 1.0), (two, 3.0)):
        for _ in range(4):
            readout.learn(scale * torch.randn(2, 4), readout.rows(["a", "b"], grow=True))
    parts = [readout.familiarity.leverage.clone() for readout in (one, two)]
    one.merge(two)
    count = sum(float(p[0]) for p in parts)
    mean = sum(float(p[1]) for p in parts) / 2  # both saw as many
    square = sum(float(p[2] + p[1] ** 2) for p in parts) / 2 - mean**2
    ends = (parts[0] + parts[1])[3:].tolist()
    expected = torch.tensor([count, mean, square, *ends], dtype=torch.float64)
    torch.testing.assert_close(one.familiarity.leverage, expected, rtol=1e-12, atol=0)


def test_what_is_usual_is_the_squarely_weighted_past_and_merging_keeps_when_classes_were_met() -> None:
    torch.manual_seed(9)
    readout, seen = PrecisionReadout(5), []
    for i in range(60):
        phi = torch.randn(2, 5) * (1 + i % 7)
        rows = readout.rows(["a", "b"], grow=True)
        if i:
            inside = readout.familiarity
            seen += (inside.variance(phi).log() - inside.usual_variance().log()).tolist()
        readout.learn(phi, rows)
        readout.meet(rows, torch.tensor([2 * i + 1, 2 * i + 2]))
    weights = np.arange(1, len(seen) + 1) ** 2
    mean = np.average(seen, weights=weights)
    variance = np.average((np.array(seen) - mean) ** 2, weights=weights)
    expected = torch.tensor([mean, variance], dtype=torch.float64)
    torch.testing.assert_close(readout.familiarity.leverage[1:3], expected, rtol=1e-10, atol=0)
    other = PrecisionReadout(5)
    other.learn(torch.randn(2, 5), other.rows(["b", "c"], grow=True))
    other.meet(torch.tensor([0, 1]), torch.tensor([4, 7]))
    readout.merge(other)
    assert readout.last_met.tolist() == [119.0, 120.0, 7.0]


def test_a_scene_unlike_those_learned_gets_no_trust_wherever_relevance_looks() -> None:
    """The telling token looks as ever, the rest of the scene does not."""
    torch.manual_seed(12)
    learner = Learner(ArrCocConfig(width=6, expansion=5, spread=0, learn_relevance=False), [6, 6], 4)
    centres = torch.randn(3, 6)

    def scenes(count: int, others: float) -> Percept:
        tokens = [torch.randn(count, 9, 6) for _ in range(2)]
        for t in tokens:
            t[:, 1:] = t[:, 1:] * 0.3 + centres[torch.randint(3, (count, 8))] + others * torch.randn(6)
        own = torch.zeros(count, 9)
        own[:, 0] = 12.0  # the model finds the telling token itself
        return Percept(tuple(tokens), torch.ones(count, 9) / 9, torch.randn(1, 4).expand(count, 4), own)

    for i in range(60):
        learner.learn(scenes(5, 0.0), [str((i + k) % 3) for k in range(5)])
    usual, strange = learner.answer(scenes(50, 0.0)), learner.answer(scenes(50, 9.0))
    assert usual.trust.median() == 1.0
    assert strange.trust.max() < 1e-5
    phi = learner.readout.familiarity
    assert trust(phi.novelty(strange.climb.phi)).median() > 1e-3  # phi alone would have let many pass


def test_the_look_of_a_scene_leaves_out_tokens_that_do_not_exist() -> None:
    torch.manual_seed(13)
    learner = Learner(ArrCocConfig(width=6, expansion=5, spread=0), [6, 6], 4)
    tokens = tuple(torch.randn(2, 9, 6) for _ in range(2))
    some = tuple(t[:, :5] for t in tokens)
    attention, context = torch.ones(2, 9) / 9, torch.randn(2, 4)
    mask = torch.arange(9).expand(2, 9) < 5
    masked = learner.answer(Percept(tokens, attention, context, mask=mask))
    cut = learner.answer(Percept(some, attention[:, :5], context))
    torch.testing.assert_close(masked.scene, cut.scene)
    f = torch.nn.functional.layer_norm(some[0], (6,))
    expected = torch.cat([f.mean(1), f.std(1, correction=0), torch.ones(2, 1)], 1)
    torch.testing.assert_close(cut.scene, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_a_scene_is_the_mean_and_deviation_of_the_tokens_that_exist(masked: bool) -> None:
    features = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exists = torch.ones(3, 9, dtype=torch.bool)
    if masked:
        exists[0, 4:], exists[2, ::2] = False, False
    found = scene_statistics(features, exists if masked else None)
    for row, f, there in zip(found, features, exists, strict=True):
        seen = f[there]
        expected = torch.cat([seen.mean(0), seen.std(0, correction=0), torch.ones(1, dtype=seen.dtype)])
        torch.testing.assert_close(row, expected, **EXACT)


def test_concentration_is_nothing_for_an_even_spread_and_one_for_a_single_token() -> None:
    relevance = torch.tensor([[0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64)  # log 2 is half of log 4
    torch.testing.assert_close(concentration(relevance), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("width", [1, 5, 767, 768, 1217])
@pytest.mark.parametrize("rows", [1, 3, 4, 9])
def test_a_symmetric_form_is_read_above_its_diagonal_alone(width: int, rows: int) -> None:
    torch.manual_seed(0)
    x, half = torch.randn(rows, width).double(), torch.randn(width, width).double()
    matrix = half + half.T
    expected = torch.einsum("bi,ij,bj->b", x, matrix, x)
    torch.testing.assert_close(quadratic(x, matrix), expected, rtol=1e-10, atol=1e-8)
