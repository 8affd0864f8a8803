"""The rows of the table: every method by name, how it is made, and what it may look at."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arr_coc.config import ArrCocConfig
from arr_coc.eval import methods_features as features
from arr_coc.eval import own
from arr_coc.eval.methods_consolidation import ROWS as CONSOLIDATION
from arr_coc.eval.methods_features import Method
from arr_coc.eval.methods_plugin import Joint, Oracle, Plugin, Rewarded, SecondHalf, Sparse
from arr_coc.eval.methods_rivals import BOTH, RIVALS, pooled
from arr_coc.eval.methods_strategies import HEADS, LORAS, lora
from arr_coc.eval.percepts_words import WordStore
from arr_coc.eval.spec import Setup, Spec

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)


def _plugin(setup: Setup) -> Method:
    return Plugin(setup.store, replace(setup.config, seed=setup.seed))


def _changed(**changes: Any) -> Callable[[Setup], Method]:
    return lambda s: Plugin(s.store, replace(s.config, seed=s.seed, **changes))


def _tuned(changes: dict[str, Any]) -> Callable[[Setup], Method]:
    return lambda s: Plugin(s.store, replace(s.config, seed=s.seed, **{**changes, **s.settings}))


def _loss(config: ArrCocConfig) -> dict[str, Any]:
    """The loss whose gradient the plugin's error is."""
    soft = config.error == "softmax"
    return {"loss": "cross_entropy", "scale": config.teaching_scale} if soft else {"loss": "squared"}


def _backprop_relevance(setup: Setup) -> Method:
    config = replace(
        setup.config,
        rule="backprop",
        rule_options=_loss(setup.config),
        question_relevance=True,
        optimizer="adam",
        readout="precision",
        eta=setup.settings.get("rate", 3e-3),
        eta_ladder=0.0,
        seed=setup.seed,
    )
    return Plugin(setup.store, config)


def _trained_by(rule: str, optimizer: str) -> Callable[[Setup], Method]:
    """The ladder, U and the readout by gradient steps of cross-entropy."""

    def make(setup: Setup) -> Method:
        rate = setup.settings.get("rate", 3e-3)
        config = replace(
            setup.config,
            rule=rule,
            rule_options={"loss": "cross_entropy"},
            question_relevance=True,
            optimizer=optimizer,
            readout="delta",
            eta=rate,
            eta_readout=rate,
            eta_ladder=0.0,
            context_key=False,
            context_reset=False,
            eta_own=0.0,
            error_window=0,
            seed=setup.seed,
        )
        return Plugin(setup.store, config)

    return make


def _ncm(setup: Setup) -> Method:
    words = isinstance(setup.store, WordStore)
    return features.NearestMean(features.state if words else features.tower_output)


def _ranpac(setup: Setup) -> Method:
    return features.Ridge(features.random_relu(pooled(setup), 2000, setup.seed))


def _mean_context(setup: Setup) -> Method:
    basis = features.context_basis(setup.store)
    if len(basis) > 32:
        raise ValueError(
            f"the contexts span {len(basis)} dimensions: their product with the features is too wide to solve"
        )
    return features.Ridge(features.context_product(features.mean_pooled, basis))


def _cells(setup: Setup) -> Method:
    seen = features.with_context(features.per_cell(setup.grid), setup.store)
    return features.Ridge(features.random_relu(seen, 2000, setup.seed))


def _pixels_relu(setup: Setup) -> Method:
    seen = features.with_context(features.raw_pixels, setup.store)
    return features.Ridge(features.random_relu(seen, 2000, setup.seed))


ON_REQUEST = ("ablation", "reward", "inside")  # roles that are run only when they are asked for
METHODS: dict[str, Spec] = {
    "zero-shot": Spec(
        lambda s: features.ZeroShot(), "the frozen model", bodies=BOTH, order_free=True, configured=False
    ),
    "zero-shot-joined": Spec(
        lambda s: features.ZeroShot(joined=True),
        "the frozen model, the context said inside every candidate text",
        needs=("contexts",),
        order_free=True,
        configured=False,
    ),
    "plugin": Spec(_plugin, "arr-coc", bodies=BOTH),
    "plugin-fixed": Spec(_changed(learn_relevance=False), "arr-coc without learned relevance", bodies=BOTH),
    "reward": Spec(
        lambda s: Rewarded(s.store, replace(s.config, seed=s.seed), 0, s.seed),
        "arr-coc from reward alone: told right or wrong, never the label",
        role="reward",
    ),
    "reward-late": Spec(
        lambda s: Rewarded(s.store, replace(s.config, seed=s.seed), 50, s.seed),
        "the same, the reward 1 to 50 samples late",
        role="reward",
    ),
    "labels-quarter": Spec(
        lambda s: Sparse(s.store, replace(s.config, seed=s.seed)),
        "arr-coc with a label for every fourth sample alone",
        role="reward",
    ),
    "lora": Spec(
        lora(),
        "PEFT LoRA r=8 on q, v + AdamW, one pass; the context said inside the texts",
        bodies=BOTH,
        configured=False,
        inside=True,
        grid=tuple({"rate": r} for r in (1e-4, 3e-4, 1e-3, 3e-3)),
    ),
    "backprop": Spec(
        _trained_by("backprop", "adam"),
        "the same ladder, U and readout by backprop + Adam (cross-entropy)",
        bodies=BOTH,
        grid=tuple({"rate": r} for r in RATES),
    ),
    "mezo": Spec(
        _trained_by("mezo", "sgd"),
        "the same ladder, U and readout by MeZO: two forward passes a step, no gradient (cross-entropy)",
        bodies=BOTH,
        grid=tuple({"rate": r} for r in RATES),
    ),
    "backprop-relevance": Spec(
        _backprop_relevance,
        "U by backprop + Adam under the same recursive readout, all else the same",
        bodies=BOTH,
        role="control",
        grid=tuple({"rate": r} for r in RATES),
    ),
    "ncm": Spec(
        _ncm,
        "nearest class mean",
        bodies=BOTH,
        order_free=True,
        configured=False,
    ),
    "ranpac": Spec(
        _ranpac,
        "random projection (2,000 ReLU) + ridge on the same features and the context",
        bodies=BOTH,
        order_free=True,
        configured=False,
    ),
    "ridge-state": Spec(
        lambda s: features.Ridge(features.state),
        "ridge on the final hidden state at the answer's position",
        role="control",
        bodies=("generative",),
        order_free=True,
        configured=False,
    ),
    "joint": Spec(
        lambda s: Joint(s.store, replace(s.config, seed=s.seed), s.seed),
        "all data at once, same features and capacity",
        role="bound",
        bodies=BOTH,
        order_free=True,
    ),
    "oracle": Spec(
        lambda s: Oracle(s.store, replace(s.config, seed=s.seed)),
        "relevance uniform on the true cell, same readout",
        role="bound",
        needs=("mask",),
        order_free=True,
    ),
    "mean-context": Spec(
        _mean_context,
        "mean-pooled features, the context and their product, solved jointly",
        role="control",
        order_free=True,
        configured=False,
    ),
    "cells-context": Spec(
        _cells,
        "per-cell features with the context (2,000 ReLU), ridge",
        role="control",
        needs=("contexts",),
        order_free=True,
        configured=False,
    ),
    "raw-attention": Spec(
        _changed(learn_relevance=False, own_gain=0.0, attention_gain=1.0),
        "the model's attention as relevance",
        role="control",
    ),
    "pixels": Spec(
        lambda s: features.Ridge(features.with_context(features.raw_pixels, s.store)),
        "raw pixels (24 px) and the context, ridge",
        role="control",
        order_free=True,
        configured=False,
    ),
    "pixels-relu": Spec(
        _pixels_relu,
        "2,000 random ReLU features of pixels and context",
        role="control",
        order_free=True,
        configured=False,
    ),
    "random-tower": Spec(_plugin, "arr-coc on a random tower of the same shape", "control", "random"),
}

METHODS |= RIVALS | HEADS | LORAS

# what each mechanism is worth: the plugin with one thing changed
ABLATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "without-spread": ({"spread": 0}, "relevance is not shared with neighbouring tokens"),
    "wider-spread": ({"spread": 2}, "relevance is shared with tokens two steps away, not one"),
    "without-own-gain": (
        {"eta_own": 0.0},
        "the model's own score weighs the same for every context, and U learns at full rate",
    ),
    "without-own-first": ({"own_first": False}, "U learns at full rate where the model's own score suffices"),
    "without-error-window": ({"error_window": 0}, "classes not met lately take part in the error"),
    "without-reset": ({"context_reset": False}, "a new text starts from what was learned for texts like it"),
    "without-key": ({"context_key": False}, "the context itself, not its key, on the update side"),
    "without-evidence": ({"evidence": "uniform"}, "every sample weighs the same in the readout"),
    "without-balance": ({"class_balance": 0.0}, "values answer as they are, rare classes too seldom"),
    "without-unlearned": (
        {"unlearned_prior": 0.0},
        "where a scene is like those learned, the answer is never a text that was not",
    ),
    "squared-error": ({"error": "squared"}, "t - v is fed back"),
    "question-relevance": (
        {"question_relevance": True},
        "relevance is learned from questions that are never quite the same twice, too",
    ),
    "with-attention": ({"attention_gain": 1.0}, "the model's attention row in the log-precision"),
    "with-lateral": ({"lateral": 1.0}, "lateral support between similar tokens"),
    "with-surprise-boost": ({"surprise_gate": "boost"}, "surprise raises the relevance update"),
    "with-surprise-damp": ({"surprise_gate": "damp"}, "surprise lowers the relevance update"),
}
ONLY = {
    "without-own-gain": ("dual",),
    "without-own-first": ("dual",),
    "question-relevance": ("generative",),
}
METHODS |= {
    name: Spec(_changed(**changes), about, role="ablation", bodies=ONLY.get(name, BOTH))
    for name, (changes, about) in ABLATIONS.items()
}
METHODS["fresh-after-drift"] = Spec(
    lambda s: SecondHalf(s.store, replace(s.config, seed=s.seed)),
    "a fresh arr-coc that learns the second half alone, and is told where it begins",
    role="ablation",
    bodies=BOTH,
)
METHODS |= {
    name: Spec(_tuned(changes), about, role="ablation", grid=settings, bodies=BOTH)
    for name, (changes, settings, about) in CONSOLIDATION.items()
}


def spec(name: str) -> Spec:
    """The method of that name.

    Raises:
        ValueError: for an unknown one; the nearest is named.
    """
    if name not in METHODS:
        near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.0)
        raise ValueError(f"no method {name!r}; the nearest is {near[0]!r}. There are {', '.join(METHODS)}")
    return METHODS[name]


def specs(given: Sequence[str] | Mapping[str, Any]) -> dict[str, Spec]:
    """Rows by name.

    Args:
        given: names, each of `METHODS` or "module:Class" of somebody's own; or a mapping from names to
            classes, "module:Class", specs, or None for the method of that name.

    Raises:
        ValueError: for an unknown name, a class that is no method, or a name of `METHODS` for another one.
    """
    found: dict[str, Spec] = {}
    for name in given:
        what = given[name] if isinstance(given, Mapping) else None
        if what is not None and name in METHODS:
            raise ValueError(
                f"{name!r} is the name of another method; possible is any but {', '.join(METHODS)}"
            )
        what = name if what is None else what
        if isinstance(what, str):
            what = own.own_spec(own.load(what)) if ":" in what else spec(what)
        found[name] = what if isinstance(what, Spec) else own.own_spec(what)
    return found


def sensible(body: str, brings: Mapping[str, bool]) -> list[str]:
    """The methods that have a place on such a stream: its kind of model, and what its samples bring."""
    wanted = {n: s for n, s in METHODS.items() if s.role not in ON_REQUEST and body in s.bodies}
    return [n for n, s in wanted.items() if all(brings[x] for x in s.needs)]
