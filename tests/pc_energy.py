"""The energy of predictive coding, written down a second time, its descent by automatic differentiation, and
what the tests of the rule share."""

import ladders
import pytest
import torch
from torch import Tensor

from arr_coc.activation import Activation
from arr_coc.rules import Updates
from arr_coc.rules.predictive_coding import PredictiveCoding

EXACT = {"rtol": 0.0, "atol": 1e-12}
LINEAR = Activation(lambda a: a, torch.ones_like, torch.ones_like)
READS = pytest.mark.parametrize("reads", ["top", "all"])
ACTIVATIONS = pytest.mark.parametrize("activation", ["tanh", "relu"])


def prepared(net: ladders.Net, **options) -> PredictiveCoding:
    rule = PredictiveCoding(**options)
    rule.prepare(net.ladder, len(net.readout))
    return rule


def with_steps(rule: PredictiveCoding, steps: int) -> PredictiveCoding:
    rule.steps = steps
    return rule


def step(net: ladders.Net, **options) -> Updates:
    return prepared(net, **options).step(net.ladder, net.climb, net.teaching())


def energy(
    net: ladders.Net,
    states: list[Tensor],
    out: float = 1.0,
    precision: list[Tensor] | None = None,
    weights: dict[str, Tensor] | None = None,
    readout: Tensor | None = None,
) -> Tensor:
    """F of every sample, with the squared error, (B,)."""
    weights = net.ladder.weights() if weights is None else weights
    readout = net.readout if readout is None else readout
    z, total = net.below, torch.zeros(len(net.below), dtype=torch.float64)
    for k, state in enumerate(states):
        x = net.drive[:, k * net.ladder.width : (k + 1) * net.ladder.width]
        eps = state - net.ladder.activation.f(z @ weights[f"weight_{k}"].T + x + weights[f"bias_{k}"])
        pi = torch.ones(1, dtype=torch.float64) if precision is None else precision[k]
        total = total + 0.5 * (pi * eps.square()).sum(1)
        z = state
    one = torch.ones(len(z), 1, dtype=torch.float64)
    seen = [net.drive, *states, net.climb.hidden, one] if net.ladder.reads == "all" else [z, one]
    return total + out * 0.5 * (net.target - torch.cat(seen, 1) @ readout.T).square().sum(1)


def slopes(net: ladders.Net, states: list[Tensor], *args) -> tuple[list[Tensor], dict[str, Tensor], Tensor]:
    """-dF/dz_l per sample, and -dF/dW, -dF/dR as batch means."""
    with torch.enable_grad():
        states = [z.detach().requires_grad_() for z in states]
        weights = {n: t.clone().requires_grad_() for n, t in net.ladder.weights().items()}
        readout = net.readout.clone().requires_grad_()
        total = energy(net, states, *args, weights=weights, readout=readout).sum()
        found = torch.autograd.grad(-total, [*states, *weights.values(), readout])
    depth = len(states)
    means = [g / len(net.drive) for g in found[depth:]]
    return list(found[:depth]), dict(zip(weights, means[:-1], strict=True)), means[-1]


def descend(net: ladders.Net, steps: int, eta: float, *args) -> list[list[Tensor]]:
    """Gradient descent on F from the climb on: the states at every step, the climb's first."""
    course = [net.climb.states]
    for _ in range(steps):
        down, _, _ = slopes(net, course[-1], *args)
        course.append([z + eta * d for z, d in zip(course[-1], down, strict=True)])
    return course


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """|found - expected| / |expected| over all tensors."""
    off = sum(float((found[n] - expected[n]).square().sum()) for n in expected)
    return (off / sum(float(t.square().sum()) for t in expected.values())) ** 0.5


def linear(**shape) -> ladders.Net:
    net = ladders.make(**shape)
    net.ladder.activation = LINEAR
    return net
