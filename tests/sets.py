"""Several adapters on the tiny dual encoder, and lessons for them."""

from dataclasses import replace

import torch

import tiny
from arr_coc import ArrCocConfig, ArrCocModel, attach, state

SMALL = ArrCocConfig(width=16, expansion=8)
FIXED = replace(SMALL, eta=0.0, eta_own=0.0)  # U and the own gain stay as they are
CONTEXT = torch.tensor([1, 2, 49])


def batches(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Steps of four pictures each, labelled with one of five texts, in an order of the texts of their own."""
    draw, texts = torch.Generator().manual_seed(seed), tiny.dual_inputs()["input_ids"]
    found = []
    for _ in range(count):
        labels = torch.randint(5, (4,), generator=draw)
        pixels = torch.randn(4, 3, 32, 32, generator=draw) + labels[:, None, None, None] * 0.3
        order = torch.randperm(5, generator=draw)
        found.append({"pixel_values": pixels, "input_ids": texts[order], "labels": order.argsort()[labels]})
    return found


def states(attached: ArrCocModel) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {k: t.clone() for k, t in state.tensors(attached.adapter(name)).items()}
        for name in attached.adapters
    }


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def three(config: ArrCocConfig = SMALL) -> ArrCocModel:
    attached = attach(tiny.dual(), config)
    attached.rename("default", "a")
    for name in "bc":
        attached.add_adapter(name)
    return attached


def taught(config: ArrCocConfig = SMALL) -> ArrCocModel:
    """Three adapters, each with a stream of its own behind it."""
    attached = three(config)
    for place, name in enumerate(attached.adapters):
        attached.set_plastic([name])
        for batch in batches(3, seed=place):
            attached.learn(**batch)
    return attached
