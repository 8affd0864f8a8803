"""What is not relevant now does not move: the ladder by its inputs, the relevance weight by contexts."""

from dataclasses import replace

import ladders
import pytest
import torch
from torch import Tensor

from arr_coc import ArrCocConfig, Learner, Percept, state
from arr_coc.consolidation import proximal
from arr_coc.protection import protected, protected_climb, relevant_now
from arr_coc.rules import RULES, make_rule

WIDTH = 6
LEARNS = ArrCocConfig(
    width=WIDTH,
    spread=0,
    reads="all",
    expansion=3,
    ladder_gain=1.0,
    readout="delta",
    optimizer="sgd",
    eta_ladder=0.05,
    eta_readout=0.05,
)


def percept(seed: int, batch: int = 1) -> tuple[Percept, list[str]]:
    draw = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(batch, 4, WIDTH, generator=draw) for _ in range(2))
    context = torch.randn(batch, 5, generator=draw)
    labels = [str(int(k)) for k in torch.randint(3, (batch,), generator=draw)]
    return Percept(tokens, torch.rand(batch, 4, generator=draw), context), labels


def test_what_is_relevant_is_the_share_of_a_feature_that_lies_where_relevance_does() -> None:
    features = torch.tensor([[[2.0, 0.0, -1.0, 0.0], [0.0, 4.0, -1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]])
    relevance = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(relevant_now(relevance, features), torch.tensor([[1.0, 0.0, 1.0, 0.0]]))
    even = torch.full((1, 3), 1 / 3)
    torch.testing.assert_close(relevant_now(even, features), torch.tensor([[0.5, 5 / 12, 1.0, 0.0]]))
    mask = torch.tensor([[True, False, True]])  # the token that showed feature 1 most does not exist
    half = torch.tensor([[0.5, 0.0, 0.5]])
    torch.testing.assert_close(relevant_now(half, features, mask)[0, 1], torch.tensor(0.5))


@pytest.mark.parametrize("reads", ["all", "top"])
def test_a_synapse_moves_by_how_relevant_its_input_is(reads: str) -> None:
    net = ladders.make(depth=3, reads=reads, batch=1)
    updates = make_rule("attention_gated", {}).step(net.ladder, net.climb, net.teaching())
    relevant = torch.rand(1, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = protected(net.ladder, updates, relevant)
    rungs = relevant[0].split(6)
    for name, move in updates.ladder.items():
        level = int(name[-1])
        scale = rungs[level - 1] if name.startswith("weight") and level else torch.ones(1).double()
        torch.testing.assert_close(found.ladder[name], move * scale)
    ones = torch.ones(net.ladder.phi_width, dtype=torch.float64)
    if reads == "top":
        ones[:6] = rungs[2]
    else:
        ones[:36] = torch.cat([relevant[0], relevant[0]])
    torch.testing.assert_close(found.readout, updates.readout * ones)
    assert found.drive_feedback is updates.drive_feedback


def test_what_a_late_reward_teaches_is_protected_alike() -> None:
    net = ladders.make(depth=3, reads="all", batch=1)
    relevant = torch.rand(1, 18, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rule = make_rule("attention_gated", {})
    plain = protected(net.ladder, rule.step(net.ladder, net.climb, net.teaching()), relevant)
    seen = protected_climb(net.ladder, net.climb, relevant, phi=True)
    error = net.teaching().error
    _, gates = rule.attend(net.ladder, net.climb, error, net.readout)
    below = [seen.below, *seen.states[:-1]]
    for level, (gate, z) in enumerate(zip(gates, below, strict=True)):
        torch.testing.assert_close(torch.outer(gate[0], z[0]), plain.ladder[f"weight_{level}"])
    torch.testing.assert_close(error.T @ seen.phi, plain.readout)


@pytest.mark.parametrize("readout", ["delta", "precision"])
def test_a_learner_rewarded_at_once_learns_what_the_protected_products_say(readout: str) -> None:
    config = replace(LEARNS, protect="relevance", readout=readout, explore=0.0, eta=0.0)
    learner, (seen, _) = Learner(config, [WIDTH] * 2, 5), percept(0)
    learner.readout.rows(["0", "1"], grow=True)
    learner.readout.weight.normal_(generator=torch.Generator().manual_seed(1))
    answer = learner.answer(seen)
    relevant = relevant_now(answer.relevance, answer.features)[0]
    before = {n: t.clone() for n, t in state.tensors(learner).items()}
    choice, left = learner.act(seen, ["0", "1"], torch.tensor([0]))
    delta = 1.0 - float(answer.values[0, 0])
    learner.reward(left, torch.tensor([1.0]))
    move = torch.outer(left[0].gates[1], answer.climb.states[0][0]) * relevant[:WIDTH]
    found = learner.ladder.weight(1) - before["ladder.weight_1"]
    torch.testing.assert_close(found, 0.05 * delta * move, rtol=1e-3, atol=1e-6)
    if readout == "delta":
        phi = answer.climb.phi[0].clone()
        phi[: 4 * WIDTH] *= torch.cat([relevant, relevant])
        found = learner.readout.weight[0] - before["readout.weight"][0]
        torch.testing.assert_close(found, 0.05 * delta * phi.double(), rtol=1e-4, atol=1e-6)
    else:  # its statistics are of what was seen
        torch.testing.assert_close(left[0].phi, answer.climb.phi[0])
    assert int(choice) == 0


@pytest.mark.parametrize("name", ["attention_gated", "feedback_alignment", "predictive_coding"])
def test_feedback_that_follows_the_weights_follows_the_protected_ones(name: str) -> None:
    options = {
        "attention_gated": {"feedback": "learned", "decay": 0.0},
        "feedback_alignment": {"mode": "kp", "decay": 0.0},
        "predictive_coding": {"learned_feedback": True},
    }[name]
    learner = Learner(replace(LEARNS, rule=name, rule_options=options, protect="relevance"), [WIDTH] * 2, 5)
    learner.learn(*percept(0, 2))
    weight = learner.ladder.weight(1).clone()
    back = learner.rule.state["feedback_1"].clone()
    learner.learn(*percept(1))
    moved = learner.ladder.weight(1) - weight
    torch.testing.assert_close(learner.rule.state["feedback_1"] - back, moved, rtol=1e-3, atol=1e-6)
    assert moved.abs().max() > 1e-5


@pytest.mark.parametrize("consolidation", ["off", "ewc", "si"])
@pytest.mark.parametrize("name", RULES)
def test_every_rule_learns_sample_by_sample_what_is_relevant_and_no_more(
    name: str, consolidation: str
) -> None:
    """Relevance on one token, and a feature of the first rung that is 0 there: its column of W_2 stands
    still."""
    config = replace(
        LEARNS, rule=name, protect="relevance", consolidation=consolidation, eta=0.0, eta_own=0.0
    )
    learner = Learner(replace(config, attention_gain=1.0, activation="tanh"), [WIDTH] * 2, 5)
    for k in range(6):
        seen, keys = percept(k)
        tokens = seen.tokens[0]
        tokens[0, 0] = torch.tensor([0.0, 2.0, -2.0, 1.0, -1.0, 0.0])  # layer-normalised: 0 stays 0
        before = learner.ladder.weight(1).clone()
        learner.learn(replace(seen, attention=torch.tensor([[1.0, 1e-9, 1e-9, 1e-9]])), keys)
        moved = (learner.ladder.weight(1) - before).abs().amax(0)
    assert moved[0] < 1e-6
    assert moved[1:5].max() > 50 * moved[0]
    assert all(torch.isfinite(t.double()).all() for t in state.tensors(learner).values())


# -- the relevance weight ------------------------------------------------------------------------------------


def correlated(count: int = 8, width: int = 64, cosine: float = 0.55) -> Tensor:
    """Unit contexts as correlated as MiniLM's words for colours: mean cosine about .55."""
    draw = torch.Generator().manual_seed(0)
    common = torch.nn.functional.normalize(torch.randn(width, generator=draw), dim=0)
    own = torch.nn.functional.normalize(torch.randn(count, width, generator=draw), dim=1)
    return torch.nn.functional.normalize(cosine**0.5 * common + (1 - cosine) ** 0.5 * own, dim=1)


@pytest.mark.parametrize("protect", ["off", "relevance"])
def test_learning_one_cue_changes_relevance_under_others_by_less_than_a_bound(protect: str) -> None:
    """|c_j' key(c_i)| <= rho / (2 lambda), lambda the least eigenvalue of the met contexts' cosines.

    With G their cosines and H = (rho I + G)^-1: c_j' key(c_i) = -rho H_ji / (1 - rho H_ii), |H_ji| is at most
    half of H's largest eigenvalue 1 / (rho + lambda), and 1 - rho H_ii >= lambda / (rho + lambda). Repeating
    a context leaves its key's direction as it is. Against the cosine itself without a key.
    """
    contexts = correlated()
    cosines = contexts @ contexts.T
    least, mean = torch.linalg.eigvalsh(cosines)[0], (cosines.sum() - 8) / 56
    assert abs(float(mean) - 0.55) < 0.04
    bound = LEARNS.context_ridge / (2 * float(least))
    assert bound < 0.2

    def life(**changes: object) -> tuple[Tensor, Tensor]:
        """Change of c' U under the taught cue and under the others, from 30 labels with the taught one."""
        learner = Learner(replace(LEARNS, protect=protect, optimizer="direction", **changes), [WIDTH] * 2, 64)
        for k in range(38):
            seen, keys = percept(k)
            if k == 8:
                before = contexts @ learner.relevance_weight
            cue = contexts[k : k + 1] if k < 8 else contexts[:1]
            learner.learn(replace(seen, context=cue), keys)
        change = (contexts @ learner.relevance_weight - before).norm(dim=1)
        return change[0], change[1:]

    taught, others = life()
    assert taught > 0.5
    assert others.max() < bound * taught
    taught, others = life(context_key=False)
    torch.testing.assert_close(others, contexts[1:] @ contexts[0] * taught, rtol=1e-4, atol=1e-5)
    assert others.min() > 2 * bound * taught


@pytest.mark.parametrize("kind", ["ewc", "si"])
def test_a_consolidated_step_stays_along_the_key(kind: str) -> None:
    """Columns of U are held as a whole: what a step adds to the pull is within the bound under other cues."""
    contexts = correlated()
    bound = LEARNS.context_ridge / (2 * float(torch.linalg.eigvalsh(contexts @ contexts.T)[0]))
    strong = replace(LEARNS, consolidation=kind, consolidation_strength=100.0, optimizer="direction")
    learner = Learner(strong, [WIDTH] * 2, 64)
    for k in range(40):
        seen, keys = percept(k)
        keeper, before = learner.optimizer.consolidation, learner.relevance_weight.clone()
        if k > 8:
            pull = strong.eta * 100.0 * keeper.importance("relevance")
            pulled = proximal(before, keeper.anchors("relevance")[0], pull)
        learner.learn(replace(seen, context=contexts[k % 8 : k % 8 + 1]), keys)
        if k > 8:
            change = (contexts @ (learner.relevance_weight - pulled)).norm(dim=1)
            assert change[k % 8] > 0
            change[k % 8] *= bound
            assert change.argmax() == k % 8
