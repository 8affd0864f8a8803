"""Energies of equilibrium propagation, written out, and their settling."""

import ladders
import torch
from torch import Tensor

from arr_coc.rules.equilibrium_propagation import EquilibriumPropagation
from arr_coc.rules.protocol import Updates

EXACT = {"tolerance": 1e-15, "free_steps": 300, "nudged_steps": 150}
Weights = dict[str, Tensor]


def inputs(net: ladders.Net, weights: Weights, states: list[Tensor], both_ways: bool) -> list[Tensor]:
    """What enters each rung: from below, and from above too."""
    found, drives, depth = [], net.climb.drives, net.ladder.depth
    for k in range(depth):
        below = net.below if k == 0 else states[k - 1]
        a = torch.einsum("bi,oi->bo", below, weights[f"weight_{k}"]) + drives[k] + weights[f"bias_{k}"]
        if both_ways and k < depth - 1:
            a = a + torch.einsum("bo,oi->bi", states[k + 1], weights[f"weight_{k + 1}"])
        found.append(a)
    return found


def values_of(net: ladders.Net, states: list[Tensor], readout: Tensor) -> Tensor:
    phi = net.climb.phi
    if net.ladder.reads == "top":
        return torch.cat([states[-1], phi[:, -1:]], 1) @ readout.T
    width = net.ladder.depth * net.ladder.width
    return torch.cat([phi[:, :width], *states, phi[:, 2 * width :]], 1) @ readout.T


def energy_of(kind: str, net: ladders.Net, weights: Weights, states: list[Tensor]) -> Tensor:
    """E of each sample, for tanh, (B,)."""
    entering = inputs(net, weights, states, both_ways=False)
    total = torch.zeros(len(net.below), dtype=torch.float64)
    for s, a in zip(states, entering, strict=True):
        if kind == "prediction":
            total = total + 0.5 * (s - torch.tanh(a)).square().sum(1)
        else:  # the integral of artanh, less s . a
            total = total + (s * torch.atanh(s) + 0.5 * torch.log(1 - s * s) - s * a).sum(1)
    return total


def loss_of(net: ladders.Net, values: Tensor) -> Tensor:
    return 0.5 * (net.target - values).square().sum(1)


def run(net: ladders.Net, rule: EquilibriumPropagation, **changes) -> tuple[Updates, list[Tensor]]:
    """The rule as the learner calls it; its updates and the free states."""
    with torch.no_grad():
        climb = rule.infer(net.ladder, net.climb)
        values = climb.phi @ net.readout.T
        teaching = net.teaching(error=net.target - values, values=values, **changes)
        return rule.step(net.ladder, climb, teaching), climb.states


def settle(net: ladders.Net, weights: Weights, states: list[Tensor], steps: int, eta: float) -> list[Tensor]:
    """The free Hopfield dynamics, all rungs at once."""
    f = net.ladder.activation.f
    for _ in range(steps):
        asked = [f(a) for a in inputs(net, weights, states, both_ways=True)]
        states = [(1 - eta) * s + eta * new for s, new in zip(states, asked, strict=True)]
    return states


def exact(kind: str, net: ladders.Net, steps: int = 120) -> Weights:
    """-dC/dW at the free state: of the climb, or through the last `steps` iterations of free settling."""
    if kind == "prediction":
        return ladders.gradients(net)[0]
    own = net.ladder.weights()
    start = settle(net, own, net.climb.states, 300, 0.5)
    copies = {n: t.clone().requires_grad_() for n, t in own.items()}
    states = settle(net, copies, start, steps, 0.5)
    objective = -loss_of(net, values_of(net, states, net.readout)).mean()
    found = torch.autograd.grad(objective, list(copies.values()), allow_unused=True)
    return {
        n: torch.zeros_like(c) if g is None else g for (n, c), g in zip(copies.items(), found, strict=True)
    }


def distance(one: Weights, other: Weights) -> float:
    off = sum(float((one[n] - other[n]).square().sum()) for n in other)
    return (off / sum(float(t.square().sum()) for t in other.values())) ** 0.5


def slope(xs: list[float], ys: list[float]) -> float:
    x, y = torch.tensor(xs).double().log(), torch.tensor(ys).double().log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


KINDS = [("prediction", 1.0), ("hopfield", 0.3)]  # with the gain at which everything settles fast
