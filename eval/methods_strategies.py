"""Rows that learn by gradient descent: a head on frozen features and LoRA inside the model, under strategies.

Every strategy is one entry of `STRATEGIES`; each makes a row of the head and one of LoRA. A row has at most
five settings to be chosen from on another seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from arr_coc.eval.methods_features import Method
from arr_coc.eval.methods_head import Head
from arr_coc.eval.methods_lora import Lora, LoraWords
from arr_coc.eval.methods_rivals import BOTH, pooled
from arr_coc.eval.penalties import LearningWithoutForgetting, OnlineEWC, OrthogonalLora, SynapticIntelligence
from arr_coc.eval.percepts_words import WordStore
from arr_coc.eval.rehearsal import BUFFER, AGem, DarkReplay, ExperienceReplay
from arr_coc.eval.spec import Setup, Spec
from arr_coc.eval.trained import Strategy

Settings = dict[str, float]
Grid = tuple[Settings, ...]


def settings(*pairs: tuple[float, float]) -> Grid:
    """(rate, strength) pairs."""
    return tuple({"rate": r, "strength": s} for r, s in pairs)


def rates(*several: float) -> Grid:
    return tuple({"rate": r} for r in several)


# of a head: a step of softmax regression overshoots from about 8 / |s|^2 on, 0.02 for 400 standardised
# features, and what overshoots may still be lucky on the tuning seed
RATES = (*rates(0.001, 0.003, 0.01, 0.03), {"rate": 0.01, "hidden": 256})


@dataclass(frozen=True)
class Offer:
    """A strategy as rows.

    Args:
        make: from the strength, the most that a penalty may weigh (see `penalties.Quadratic`), and the seed.
        about: what it is.
        head, lora: settings to choose from; none where it makes no sense.
    """

    make: Callable[[float, float, int], Strategy]
    about: str
    head: Grid
    lora: Grid


STRATEGIES: dict[str, Offer] = {
    "ewc": Offer(
        lambda strength, limit, seed: OnlineEWC(strength, limit=limit),
        "online EWC, told when an experience ends",
        settings((0.003, 1e2), (0.003, 1e4), (0.01, 1e1), (0.01, 1e2), (0.01, 1e4)),
        settings((3e-4, 1e4), (1e-3, 1e4), (1e-3, 1e6), (3e-3, 1e4), (3e-3, 1e6)),
    ),
    "si": Offer(
        lambda strength, limit, seed: SynapticIntelligence(strength, limit=limit),
        "synaptic intelligence, told when an experience ends",
        settings((0.003, 1.0), (0.003, 100.0), (0.01, 0.1), (0.01, 1.0), (0.01, 100.0)),
        settings((3e-4, 10.0), (1e-3, 10.0), (1e-3, 1e3), (3e-3, 10.0), (3e-3, 1e3)),
    ),
    "lwf": Offer(
        lambda strength, limit, seed: LearningWithoutForgetting(strength),
        "learning without forgetting, told when an experience ends",
        settings((0.003, 1.0), (0.003, 10.0), (0.01, 1.0), (0.01, 3.0), (0.01, 10.0)),
        settings((3e-4, 3.0), (1e-3, 1.0), (1e-3, 10.0), (3e-3, 1.0), (3e-3, 10.0)),
    ),
    "er": Offer(
        lambda strength, limit, seed: ExperienceReplay(seed=seed),
        f"experience replay from {BUFFER:,} stored samples",
        RATES,
        rates(1e-4, 3e-4, 1e-3, 3e-3),
    ),
    "derpp": Offer(
        lambda strength, limit, seed: DarkReplay(strength, 0.5, seed=seed),
        f"DER++ from {BUFFER:,} stored samples",
        settings((0.003, 0.1), (0.003, 0.5), (0.01, 0.1), (0.01, 0.5), (0.03, 0.1)),
        settings((3e-4, 0.5), (1e-3, 0.1), (1e-3, 0.5), (3e-3, 0.1), (3e-3, 0.5)),
    ),
    "agem": Offer(
        lambda strength, limit, seed: AGem(seed=seed),
        f"A-GEM from {BUFFER:,} stored samples",
        RATES,
        rates(1e-4, 3e-4, 1e-3, 3e-3),
    ),
    "orthogonal": Offer(
        lambda strength, limit, seed: OrthogonalLora(strength, seed),
        "O-LoRA: each experience has a LoRA orthogonal to those before, told when one ends",
        (),
        settings((3e-4, 0.5), (1e-3, 0.1), (1e-3, 0.5), (3e-3, 0.5)),
    ),
}


def _strategy(name: str | None, setup: Setup, limit: float) -> Strategy | None:
    return (
        None
        if name is None
        else STRATEGIES[name].make(setup.settings.get("strength", 1.0), limit, setup.seed)
    )


def head(name: str | None = None) -> Callable[[Setup], Method]:
    """A maker of the head under this strategy."""

    def make(setup: Setup) -> Method:
        features, rate = pooled(setup), setup.settings.get("rate", 0.01)
        width = features(setup.store.batch(torch.tensor([0]))).shape[1]
        strategy = _strategy(name, setup, 1 / rate)
        hidden = int(setup.settings.get("hidden", 0))
        return Head(features, width, setup.store.candidates, rate, strategy, hidden, setup.seed)

    return make


def lora(name: str | None = None) -> Callable[[Setup], Method]:
    """A maker of LoRA under this strategy."""

    def make(setup: Setup) -> Method:
        if setup.model is None:
            raise ValueError("LoRA learns inside the model: a setup without the model cannot make it")
        strategy = _strategy(name, setup, float("inf"))
        learns = {"rate": setup.settings.get("rate", 1e-3), "seed": setup.seed, "strategy": strategy}
        if isinstance(setup.store, WordStore):
            return LoraWords(setup.model, setup.processor, **learns)
        return Lora(setup.model, setup.store.texts, setup.store.classes, **learns)

    return make


HEAD = "a softmax head on frozen features and the context, by SGD"
HEADS: dict[str, Spec] = {
    "head": Spec(head(), HEAD, bodies=BOTH, configured=False, grid=RATES),
} | {
    f"head-{name}": Spec(
        head(name), f"the head under {offer.about}", bodies=BOTH, configured=False, grid=offer.head
    )
    for name, offer in STRATEGIES.items()
    if offer.head
}
LORA_NAMES = {"orthogonal": "o-lora"}
LORAS: dict[str, Spec] = {
    LORA_NAMES.get(name, f"lora-{name}"): Spec(
        lora(name),
        offer.about if name in LORA_NAMES else f"LoRA under {offer.about}",
        role="inside",
        bodies=BOTH,
        configured=False,
        inside=True,
        grid=offer.lora,
    )
    for name, offer in STRATEGIES.items()
}
