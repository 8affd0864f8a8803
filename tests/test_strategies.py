"""What continual-learning strategies add to a training loop, against closed forms."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import fakes
from arr_coc.eval import methods_features as features
from arr_coc.eval.methods_head import Head, Moments
from arr_coc.eval.methods_lora import Lora
from arr_coc.eval.penalties import LearningWithoutForgetting, OnlineEWC, OrthogonalLora, SynapticIntelligence
from arr_coc.eval.rehearsal import AGem, DarkReplay, ExperienceReplay, Reservoir
from arr_coc.eval.trained import Seen, Strategy, Trained
from fakes import CLASSES, every, fake_store, feed


@dataclass(frozen=True)
class Value(Seen):
    """A loss that is simply said."""

    said: Tensor | None = None

    @property
    def loss(self) -> Tensor:
        assert self.said is not None
        return self.said


class Toy(Trained):
    """theta by plain gradient descent on a loss of its own; a batch is a number that the loss may use."""

    def __init__(self, start: Tensor, loss: Any, rate: float, strategy: Strategy) -> None:
        self.theta, self.of = nn.Parameter(start.double()), loss
        super().__init__([self.theta], torch.optim.SGD([self.theta], rate), strategy)

    def examples(self, batch: Any) -> list[Any]:
        return [batch]

    def look(self, examples: list[Any]) -> Seen:
        one = torch.zeros(1, 1)
        return Value(one, torch.zeros(1, dtype=torch.long), one.long()[0], self.of(self.theta, examples[0]))

    def example_bytes(self, example: Any) -> int:
        return 8


def quadratic(theta: Tensor, centre: Tensor) -> Tensor:
    """1/2 (theta - b)' H (theta - b), H = diag(1, 2, 4)."""
    return 0.5 * (torch.tensor([1.0, 2.0, 4.0]).double() * (theta - centre) ** 2).sum()


# -- penalties -----------------------------------------------------------------------------------------------


def test_ewc_settles_between_the_old_and_the_new_optimum_by_their_weights() -> None:
    """With H of the new loss and F of the old one: theta = (H b + lambda F a) / (H + lambda F)."""
    h, b, strength = torch.tensor([1.0, 2.0, 4.0]).double(), torch.tensor([5.0, -1.0, 0.5]).double(), 0.7
    toy = Toy(torch.zeros(3), quadratic, 0.1, OnlineEWC(strength))
    centre = torch.tensor([1.0, 2.0, 3.0]).double()
    for _ in range(2):  # gradients H (theta - b): -H b, then (1 - H / 10) of it
        toy.observe(centre)
    fisher = (h * centre) ** 2 * (1 + (1 - 0.1 * h) ** 2) / 2
    toy.experience_over()
    torch.testing.assert_close(toy.strategy.importance[0], fisher)
    anchor = toy.theta.detach().clone()
    for _ in range(3000):
        toy.optimizer.param_groups[0]["lr"] = 0.01
        toy.observe(b)
    expected = (h * b + strength * fisher * anchor) / (h + strength * fisher)
    torch.testing.assert_close(toy.theta.detach(), expected, atol=1e-9, rtol=0)
    held = 0.5 * strength * float((fisher * (expected - anchor) ** 2).sum())
    assert toy.strategy.penalty() == pytest.approx(held)


def test_ewc_counts_what_is_earlier_less_by_its_decay() -> None:
    toy = Toy(torch.zeros(3), quadratic, 0.0, OnlineEWC(1.0, decay=0.5))
    for centre in (1.0, 2.0):
        toy.observe(torch.full((3,), centre).double())
        toy.experience_over()
    h = torch.tensor([1.0, 2.0, 4.0]).double()
    torch.testing.assert_close(toy.strategy.importance[0], 0.5 * h**2 + (2 * h) ** 2)


def test_a_penalty_is_held_under_what_a_step_can_bear() -> None:
    toy = Toy(torch.zeros(3), quadratic, 0.1, OnlineEWC(1e9, limit=10.0))
    toy.observe(torch.ones(3).double())
    toy.experience_over()
    for _ in range(100):
        toy.observe(torch.full((3,), 4.0).double())
    assert torch.isfinite(toy.theta).all()
    assert float((toy.theta.detach() - toy.strategy.anchor[0]).abs().max()) < 4.0


def test_the_way_of_synaptic_intelligence_is_the_loss_it_took_off() -> None:
    """Of a linear loss a . theta the path integral is exact: sum omega = -(change of the loss)."""
    slope = torch.tensor([1.0, -2.0, 0.5]).double()
    toy = Toy(
        torch.zeros(3), lambda theta, scale: scale * (slope * theta).sum(), 0.1, SynapticIntelligence(0.3)
    )
    for _ in range(7):
        toy.observe(1.0)
    moved = toy.theta.detach().clone()
    way = toy.strategy.path[0].clone()
    assert float(way.sum()) == pytest.approx(-float((slope * moved).sum()))
    toy.experience_over()
    torch.testing.assert_close(toy.strategy.importance[0], way / (moved**2 + 1e-3))
    toy.observe(-1.0)  # what is pulled back now is held by lambda Omega (theta - anchor), zero at the anchor
    torch.testing.assert_close(toy.theta.detach(), moved + 0.1 * slope)
    away = toy.theta.detach() - moved
    toy.observe(0.0)
    held = 0.3 * toy.strategy.importance[0] * away
    torch.testing.assert_close(toy.theta.detach(), moved + away - 0.1 * held)


def test_distillation_is_the_divergence_of_the_softened_old_answers() -> None:
    draw = np.random.default_rng(0)
    now, then = draw.normal(size=(2, 5, 4))
    strategy = LearningWithoutForgetting(0.5, temperature=2.0)
    strategy.known = torch.tensor([0, 2, 3])

    def soft(z: Any) -> Any:
        e = np.exp(z[:, [0, 2, 3]] / 2)
        return e / e.sum(1, keepdims=True)

    expected = 0.5 * np.mean(stats.entropy(soft(then), soft(now), axis=1))
    found = strategy.distillation(torch.tensor(now), torch.tensor(then))
    assert float(found) == pytest.approx(expected)
    assert float(strategy.distillation(torch.tensor(then), torch.tensor(then))) == pytest.approx(0.0)


def head(strategy: Strategy | None = None, rate: float = 0.2) -> Head:
    return Head(features.tower_output, 5, CLASSES, rate, strategy, hidden=7, seed=1)


def shown(method: Head) -> Tensor:
    """Scores of every sample."""
    return method.net(method.moments.standardised(fake_store().pooled)).detach()


def test_without_forgetting_the_teacher_is_the_head_as_it_was() -> None:
    store, strategy = fake_store(), LearningWithoutForgetting(1.0)
    method = head(strategy)
    feed(method, store, [i for i in range(60) if int(store.label[i]) < 2], 5)
    method.experience_over()
    old = [p.clone() for p in method.weights()]
    assert strategy.known.tolist() == [0, 1]
    late = [i for i in range(60) if int(store.label[i]) == 2]
    feed(method, store, late, 5)
    strategy.before(method.examples(store.batch(torch.tensor(late))))
    with method.as_of(old):
        before = method.net(method.moments.standardised(store.pooled)).detach()
    torch.testing.assert_close(strategy._taught, before[late])
    kept, free = method, head()
    feed(free, store, [i for i in range(60) if int(store.label[i]) < 2], 5)
    feed(free, store, late, 5)

    def drift(m: Head) -> float:
        p, q = (z[:, :2].softmax(1) for z in (shown(m)[late], before[late]))
        return float((p - q).abs().mean())

    assert drift(kept) < drift(free)


# -- O-LoRA --------------------------------------------------------------------------------------------------


def test_the_overlap_is_the_sum_of_absolute_inner_products() -> None:
    a = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    b = torch.tensor([[0.0, 0.0, 3.0], [-1.0, 1.0, 0.0]])
    assert float(OrthogonalLora.overlap(b, [a])) == 1.0 + 2.0
    assert float(OrthogonalLora.overlap(b, [a, a])) == 6.0
    assert float(OrthogonalLora.overlap(b[:1], [a])) == 0.0


def lora(strategy: Strategy | None) -> tuple[Lora, list[Any]]:
    store = fake_store()
    draw = np.random.default_rng(0)
    images = [fakes_image(draw) for _ in range(6)]
    texts = fakes.FakeTexts(width=8)
    texts.processor = fakes.FakeProcessor()
    method = Lora(fakes.tiny_clip(), texts, CLASSES, rate=1e-2, strategy=strategy)
    return method, [store.batch(torch.arange(i, i + 3), images[i : i + 3]) for i in (0, 3)]


def fakes_image(draw: np.random.Generator) -> Any:
    from PIL import Image

    return Image.fromarray(draw.integers(0, 255, (96, 96, 3), dtype=np.uint8))


def test_a_new_lora_begins_where_the_last_one_ended_and_is_pushed_off_its_rows() -> None:
    method, (first, second) = lora(OrthogonalLora(0.1, seed=3))
    method.observe(first)
    before = method.answer(second, CLASSES).scores
    method.experience_over()
    torch.testing.assert_close(method.answer(second, CLASSES).scores, before, atol=1e-5, rtol=1e-5)
    strategy = method.strategy
    layer = strategy.layers[0]
    assert float(layer.lora_B["default"].weight.detach().abs().max()) == 0
    assert not torch.equal(layer.lora_A["default"].weight, strategy.earlier[0][0])
    seen = method.look(method.examples(second))
    expected = sum(
        float((a[0].double() @ one.lora_A["default"].weight.detach().double().T).abs().sum())
        for one, a in zip(strategy.layers, strategy.earlier, strict=True)
    )
    assert float(strategy.extra(seen)) == pytest.approx(0.1 * expected, rel=1e-4)
    for _ in range(5):
        method.observe(second)
    assert strategy.held_bytes() == 4 * sum(a[0].numel() * 2 for a in strategy.earlier)


def test_a_head_has_no_layers_for_o_lora() -> None:
    with pytest.raises(ValueError, match="O-LoRA needs layers"):
        head(OrthogonalLora(0.1))


# -- rehearsal -----------------------------------------------------------------------------------------------


def test_the_reservoir_keeps_every_sample_with_the_same_chance() -> None:
    count, size, seeds = 40, 10, 400
    kept = np.zeros(count)
    for seed in range(seeds):
        memory = Reservoir(size, seed)
        for i in range(count):
            memory.add(i)
        assert len(memory.items) == len(set(memory.items)) == size
        kept[memory.items] += 1
    # each is kept with chance 1/4; the variance of a count without replacement is p (1 - p) seeds, and the
    # statistic has count - 1 degrees of freedom after dividing by N / (N - 1)
    p = size / count
    statistic = ((kept - seeds * p) ** 2).sum() / (seeds * p * (1 - p)) * (count - 1) / count
    assert stats.chi2.sf(statistic, count - 1) > 1e-3
    assert sorted(memory.sample(99)) == sorted(memory.items)


def test_a_gem_takes_away_exactly_what_conflicts() -> None:
    g = [torch.tensor([1.0, 2.0]), torch.tensor([-3.0])]
    m = [torch.tensor([-1.0, 1.0]), torch.tensor([2.0])]  # g . m = -1 + 2 - 6 = -5
    found = AGem.project(g, m)
    assert sum(float((a * b).sum()) for a, b in zip(found, m, strict=True)) == pytest.approx(0.0, abs=1e-6)
    rest = [a - b for a, b in zip(g, found, strict=True)]  # what was taken lies along m
    torch.testing.assert_close(torch.cat(rest), torch.cat(m) * (-5 / 6))
    assert AGem.project(g, [-x for x in m]) is g
    assert AGem.project(g, [torch.zeros_like(x) for x in m]) is g


def test_a_gem_steps_along_the_projected_gradient() -> None:
    """Losses +a . theta and then b . theta with a . b < 0: the second step leaves the first loss as it is."""
    slopes = {0: torch.tensor([1.0, 0.0]).double(), 1: torch.tensor([-1.0, 1.0]).double()}
    toy = Toy(torch.zeros(2), lambda theta, which: (slopes[which] * theta).sum(), 0.1, AGem(size=1))
    toy.observe(0)
    toy.observe(1)
    torch.testing.assert_close(toy.theta.detach(), torch.tensor([-0.1, -0.1]).double())


def test_replay_steps_along_both_gradients() -> None:
    slopes = {0: torch.tensor([1.0, 0.0]).double(), 1: torch.tensor([-1.0, 1.0]).double()}
    strategy = ExperienceReplay(size=1)
    toy = Toy(torch.zeros(2), lambda theta, which: (slopes[which] * theta).sum(), 0.1, strategy)
    toy.observe(0)
    toy.observe(1)
    torch.testing.assert_close(toy.theta.detach(), torch.tensor([-0.1, -0.1]).double())
    assert toy.stored_samples == 1


def test_dark_replay_holds_to_the_scores_of_the_time() -> None:
    store, strategy = fake_store(), DarkReplay(alpha=0.3, beta=0.2, size=30)
    method = head(strategy)
    batch = store.batch(torch.arange(30))
    x = store.pooled[:30].double()
    away = (x - x.mean(0)) / (x.var(0, correction=0) + 0.01 * x.var(0, correction=0).mean()).sqrt()
    then = method.net(away.float()).detach()  # the moments count the batch before it is looked at
    method.observe(batch)
    torch.testing.assert_close(torch.stack([z[0] for _, z in strategy.memory.items]), then)
    strategy.before(method.examples(batch))  # 30 are drawn: all of them, so the draw does not matter
    now = method.net(away.float()).detach().double().numpy()
    label = store.label[:30].numpy()
    entropy = -(now - np.log(np.exp(now).sum(1, keepdims=True)))[np.arange(30), label].mean()
    expected = 0.3 * ((now - then.double().numpy()) ** 2).mean() + 0.2 * entropy
    assert float(strategy.extra(method.look(method.examples(batch)))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("strategy", [ExperienceReplay, DarkReplay, AGem])
def test_memory_is_bounded_counted_and_the_same_for_a_seed(strategy: Any) -> None:
    store = fake_store()
    found = []
    for _ in range(2):
        method = head(strategy(size=8, seed=4))
        feed(method, store, list(range(60)), 6)
        found.append(method.answer(every(store), CLASSES).scores)
        assert method.stored_samples == 8
        beside = 8 * 3 * 4 if strategy is DarkReplay else 0
        plain = 4 * sum(p.numel() for p in method.trained)
        moments = 2 * 8 * 5
        assert method.state_bytes() == plain + moments + 8 * (5 * 4 + 8) + beside
    assert torch.equal(*found)


# -- the loop ------------------------------------------------------------------------------------------------


def test_the_head_takes_the_step_of_softmax_regression() -> None:
    """A linear head's first step: W - rate (p - y) x', written out."""
    store = fake_store()
    method = Head(features.tower_output, 5, CLASSES, 0.2, hidden=0, seed=1)
    x = store.pooled[:6].double()
    spread = x.var(0, correction=0)
    x = (x - x.mean(0)) / (spread + 0.01 * spread.mean()).sqrt()
    w, b = (p.detach().double().clone() for p in method.trained)
    p = (x @ w.T + b).softmax(1)
    wrong = (p - torch.nn.functional.one_hot(store.label[:6], 3)) / 6
    method.observe(store.batch(torch.arange(6)))
    torch.testing.assert_close(method.trained[0].detach().double(), w - 0.2 * wrong.T @ x, atol=1e-6, rtol=0)
    torch.testing.assert_close(method.trained[1].detach().double(), b - 0.2 * wrong.sum(0), atol=1e-6, rtol=0)


def test_running_moments_are_those_of_everything_seen() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0, 0.1]) + 7
    moments = Moments(3)
    for start, end in ((0, 1), (1, 8), (8, 50)):
        moments.add(x[start:end])
    torch.testing.assert_close(moments.mean, x.double().mean(0))
    torch.testing.assert_close(moments.squares / 50, x.double().var(0, correction=0))
    assert float(moments.standardised(x + 1e6).max()) == 5.0
    assert float(Moments(3).standardised(torch.zeros(1, 3)).abs().max()) == 0.0


def test_a_head_does_not_say_what_it_never_met() -> None:
    store = fake_store()
    method = head()
    assert not torch.isfinite(method.answer(every(store), CLASSES).scores).any()
    feed(method, store, [int((store.label == 1).nonzero()[0])])
    asked = ["a photo of a hat", *CLASSES]
    finite = torch.isfinite(method.answer(every(store), asked).scores).all(0)
    assert finite.tolist() == [False, False, True, False]


def test_weights_of_another_time_are_put_back_after_an_error() -> None:
    method = head()
    now, blank = method.weights(), [torch.zeros_like(p) for p in method.trained]

    def use() -> None:
        with method.as_of(blank):
            assert all(torch.equal(p, b) for p, b in zip(method.trained, blank, strict=True))
            raise KeyError

    with pytest.raises(KeyError):
        use()
    assert all(torch.equal(p, w) for p, w in zip(method.trained, now, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda: OnlineEWC(1e4),
        lambda: SynapticIntelligence(1e4),
        lambda: LearningWithoutForgetting(1.0),
        lambda: ExperienceReplay(),
        lambda: DarkReplay(),
        lambda: AGem(),
    ],
)
def test_every_strategy_serves_lora_as_well(make: Any) -> None:
    method, batches = lora(make())
    plain, _ = lora(None)
    for batch in batches:
        for one in (method, plain):
            one.observe(batch)
            one.experience_over()
    for one in (method, plain, method, plain):  # twice: at its anchor, a penalty does not pull
        one.observe(batches[0])
    scores = [one.answer(batches[0], CLASSES).scores for one in (method, plain)]
    assert torch.isfinite(scores[0]).all()
    if not isinstance(method.strategy, AGem):  # nothing conflicts here, and then it changes nothing
        assert not torch.equal(*scores)
    assert method.state_bytes() > plain.state_bytes()
    assert method.told_boundaries == (method.stored_samples == 0)
