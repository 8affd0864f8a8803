"""Pyramidal cells: a task, angles to backpropagation, and leaky dynamics by hand."""

import math

import ladders
import torch
from torch import Tensor

from arr_coc.rules.dendritic import Dendritic
from arr_coc.rules.protocol import Updates

MODES = ["microcircuit", "burst"]
EXACT = {"rtol": 0.0, "atol": 1e-12}


def prepared(net: ladders.Net, **options) -> Dendritic:
    rule = Dendritic(**{"tolerance": 1e-13, **options})
    rule.prepare(net.ladder, len(net.readout))
    return rule


def step(rule: Dendritic, net: ladders.Net, **changes) -> Updates:
    return rule.step(net.ladder, net.climb, net.teaching(**changes))


def untaught(rule: Dendritic, net: ladders.Net) -> Updates:
    """What the rule does where nobody teaches, whatever the values."""
    return step(rule, net, error=torch.zeros_like(net.target), error_of=torch.zeros_like)


def angle(one: Tensor, other: Tensor) -> float:
    return math.degrees(math.acos(max(-1.0, min(1.0, ladders.cosine(one, other)))))


def angles(updates: Updates, net: ladders.Net) -> list[float]:
    """To backpropagation, of W in each rung, degrees."""
    expected, _, _ = ladders.gradients(net)
    names = [f"weight_{k}" for k in range(net.ladder.depth)]
    return [angle(updates.ladder[n], expected[n]) for n in names]


def learn(rule: Dendritic, net: ladders.Net, updates: Updates, rate: float) -> None:
    """Plain SGD on all that the rule moves."""
    for name, direction in updates.ladder.items():
        net.ladder.get_buffer(name).add_(rate * direction)
    for name, direction in updates.own.items():
        rule.state[name] += rate * direction
    net.readout = net.readout + rate * updates.readout


def task(activation: str = "tanh", reads: str = "top") -> ladders.Net:
    """A small task that can be learned: the classes are those of another ladder with the same input."""
    net = ladders.make(3, 16, 10, 3, 50, reads, activation, drives=False, seed=3)
    other = ladders.make(2, 16, 10, 3, 1, drives=False, seed=9)
    other.ladder.weight(0).mul_(2)
    values = other.ladder.climb(torch.zeros(50, 32).double(), net.below, None).phi @ other.readout.T
    net.target, net.readout = torch.eye(3).double()[values.argmax(1)], 0.3 * net.readout
    return net


def loss(net: ladders.Net) -> float:
    return float(0.5 * (net.target - net.values).square().sum(1).mean())


def parts(net: ladders.Net, at_phi: Tensor) -> list[Tensor]:
    """What of a tensor (N, D) belongs to each z_l, cut by hand."""
    w, depth = net.ladder.width, net.ladder.depth
    if net.ladder.reads == "top":
        return [torch.zeros_like(at_phi[:, :w])] * (depth - 1) + [at_phi[:, :w]]
    return [at_phi[:, (depth + k) * w : (depth + k + 1) * w] for k in range(depth)]


def aligned(net: ladders.Net, rule: Dendritic, chain: bool) -> dict[str, Tensor]:
    """Feedback alignment with the rule's D and Y, written out; without the chain: direct."""
    sent = parts(net, (net.target - net.values) @ rule.state["down_readout"])
    below = [net.below, *net.climb.states[:-1]]
    found, above = {}, torch.zeros_like(sent[0])
    for k in reversed(range(net.ladder.depth)):
        a = net.climb.pre_activations[k]
        slope = 1 - torch.tanh(a) ** 2 if net.ladder.activation.f is torch.tanh else (a > 0).double()
        g = (sent[k] + above) * slope
        found[f"weight_{k}"] = torch.einsum("bi,bj->ij", g, below[k]) / len(g)
        found[f"bias_{k}"] = g.mean(0)
        above = torch.einsum("bi,ij->bj", g, rule.state[f"down_{k}"]) if k and chain else 0 * g
    return found


def relax(net: ladders.Net, rule: Dendritic, dt: float = 0.4, steps: int = 400) -> dict[str, Tensor]:
    """The published leaky dynamics with conductances, by Euler's method from rest, and the updates of W."""
    g_lk, g_b, g_a, g_d, g_som = 0.1, 1.0, 0.8, 1.0, 0.8
    depth, phi, tanh = net.ladder.depth, net.climb.phi, torch.tanh
    u = [torch.zeros_like(z) for z in net.climb.states]
    inter = [torch.zeros_like(z) for z in net.climb.states[:-1]]
    out = torch.zeros_like(net.target)
    seen = parts(net, net.readout)
    for _ in range(steps):
        r = [tanh(x) for x in u]
        below = [net.below, *r[:-1]]
        hats = [
            below[k] @ net.ladder.weight(k).T + net.climb.drives[k] + net.ladder.get_buffer(f"bias_{k}")
            for k in range(depth)
        ]
        moved = [(r[k] - net.climb.states[k]) @ seen[k].T for k in range(depth)]
        hat_out = phi @ net.readout.T + sum(moved)
        back = parts(net, (out - hat_out) @ rule.state["down_readout"])
        new_u, new_inter = [], []
        for k in range(depth):
            v_a = back[k]
            if k + 1 < depth:
                y, w_pi = rule.state[f"down_{k + 1}"], rule.state[f"lateral_{k + 1}"]
                v_a = v_a + rule.gain * (r[k + 1] @ y + tanh(inter[k]) @ w_pi)
                guess = r[k] @ rule.state[f"inter_{k + 1}"].T + net.climb.drives[k + 1]
                v_i = (guess + rule.state[f"inter_bias_{k + 1}"]) * (g_lk + g_d) / g_d
                du = -g_lk * inter[k] + g_d * (v_i - inter[k]) + g_som * (u[k + 1] - inter[k])
                new_inter.append(inter[k] + dt * du)
            v_b = hats[k] * (g_lk + g_b + g_a) / g_b
            new_u.append(u[k] + dt * (-g_lk * u[k] + g_b * (v_b - u[k]) + g_a * (v_a - u[k])))
        v_out = hat_out * (g_lk + g_b) / g_b
        out = out + dt * (-g_lk * out + g_b * (v_out - out) + g_som * (net.target - out))
        u, inter = new_u, new_inter
    unit = g_a / (g_lk + g_b + g_a) * g_som / (g_lk + g_b + g_som)
    post = [(tanh(u[k]) - tanh(hats[k])) / unit for k in range(depth)]
    below = [net.below, *[tanh(x) for x in u[:-1]]]
    return {f"weight_{k}": torch.einsum("bi,bj->ij", post[k], below[k]) / len(u[0]) for k in range(depth)}
