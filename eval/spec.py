"""What a row of the table is: how its method is made, from what, and what it may look at."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from arr_coc.config import ArrCocConfig
from arr_coc.eval.methods_features import Method


@dataclass(frozen=True)
class Setup:
    """What a method is made from.

    Args:
        store: percepts of the model, or of the random tower for a spec that asks for it; a `Store` of a dual
            encoder or a `WordStore` of a generative model.
        config: of the plugin.
        grid: cells along a side of a scene, for the per-cell control.
        seed: of whatever a method draws.
        model: the bare model, for what learns inside it, with its processor.
        settings: tuned on another seed.
    """

    store: Any
    config: ArrCocConfig
    grid: int = 2
    seed: int = 0
    model: Any = None
    processor: Any = None
    settings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Spec:
    """One row.

    Args:
        make: a fresh method.
        about: what it is, for a table's legend.
        role: "method", "control", "bound", or "reward", "ablation" or "inside" (run only when they are asked
            for; "inside" are the further methods that train inside the model, and slow).
        tower: whose percepts it reads: "model" or "random".
        grid: settings to choose from on another seed; empty where there is nothing to tune.
        needs: "contexts" or "mask" where a stream without them has no such row.
        bodies: the kinds of model that it makes sense on.
        order_free: what it ends with does not depend on the order of the samples (closed forms, bounds,
            frozen models): a grid runs it on one order of a seed.
        configured: whether the plugin's config decides anything about it.
        inside: whether it learns inside the model: its step has its own forward pass, is slow, and may be
            given fewer samples (`Grid.lora_train`).
        mark: what tells this method from another of the same name: of somebody's own class, its source.
    """

    make: Callable[[Setup], Method]
    about: str
    role: str = "method"
    tower: str = "model"
    grid: tuple[dict[str, float], ...] = ()
    needs: tuple[str, ...] = ()
    bodies: tuple[str, ...] = ("dual",)
    order_free: bool = False
    configured: bool = True
    inside: bool = False
    mark: str = ""
