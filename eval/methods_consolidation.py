"""What protects old knowledge, as rows: each changes one thing of a learner that forgets, or of arr-coc."""

from typing import Any

# every plastic tensor moves by gradient-like steps, and nothing keeps one class from overwriting another
FORGETS: dict[str, Any] = {
    "readout": "delta",
    "optimizer": "sgd",
    "eta_readout": 0.05,
    "eta_ladder": 0.01,
    "ladder_gain": 1.0,
    "error_window": 0,
}
WINDOW: dict[str, Any] = FORGETS | {"error_window": 100}
# arr-coc whose rungs learn as well, so that phi moves under the readout's statistics
LADDER: dict[str, Any] = {"eta_ladder": 0.01}
GROWS: dict[str, Any] = LADDER | {"columns": 3}
STRENGTHS: dict[str, tuple[float, ...]] = {"ewc": (3.0, 30.0, 300.0), "si": (0.01, 0.1, 0.3)}


def _held(base: dict[str, Any], kind: str) -> tuple[dict[str, Any], tuple[dict[str, float], ...]]:
    """A base with consolidation, and the strengths to choose from."""
    return base | {"consolidation": kind}, tuple({"consolidation_strength": s} for s in STRENGTHS[kind])


# name: what is changed of the plugin, settings to choose from on another seed, and what it is
ROWS: dict[str, tuple[dict[str, Any], tuple[dict[str, float], ...], str]] = {
    "forgets": (FORGETS, (), "delta readout and rungs by SGD, errors of all classes: what forgets"),
    "consolidation-ewc": (
        *_held(FORGETS, "ewc"),
        "the same, elastic weight consolidation from local updates",
    ),
    "consolidation-si": (*_held(FORGETS, "si"), "the same, synaptic intelligence from local updates"),
    "protect-relevance": (FORGETS | {"protect": "relevance"}, (), "the same, what is not relevant stays"),
    "forgets-window": (WINDOW, (), "delta readout and rungs by SGD, errors of classes met lately alone"),
    "window-ewc": (*_held(WINDOW, "ewc"), "the same, elastic weight consolidation"),
    "window-si": (*_held(WINDOW, "si"), "the same, synaptic intelligence"),
    "window-protect": (WINDOW | {"protect": "relevance"}, (), "the same, what is not relevant stays"),
    "plugin-ewc": (*_held({}, "ewc"), "arr-coc, U held by elastic weight consolidation"),
    "plugin-si": (*_held({}, "si"), "arr-coc, U held by synaptic intelligence"),
    "forgetting-.999": ({"forgetting": 0.999}, (), "arr-coc, a sample's weight halves in 693"),
    "transport": ({"transport": 300}, (), "arr-coc, statistics carried along with phi every 300 samples"),
    "forgetting-.997": ({"forgetting": 0.997}, (), "arr-coc, a sample's weight halves in 231"),
    "ladder": (LADDER, (), "arr-coc, rungs that learn too"),
    "ladder-transport": (LADDER | {"transport": 300}, (), "the same, statistics carried along with phi"),
    "ladder-growth": (GROWS, (), "the same, a copied column of rungs begins when surprise stays high"),
    "ladder-growth-drawn": (GROWS | {"growth_start": "drawn"}, (), "the same, the new column drawn anew"),
    "drift-challenge": ({"drift": "challenge"}, (), "arr-coc, what misleads since labels changed is dropped"),
    "forgetting-.9997": ({"forgetting": 0.9997}, (), "arr-coc, a sample's weight halves in 2,310"),
}
