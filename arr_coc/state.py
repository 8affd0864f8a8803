"""The learner's whole state as named tensors and plain values: saved, restored, checked by the same names."""

import difflib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from arr_coc.config import ArrCocConfig
from arr_coc.growth import reshape
from arr_coc.learner import Learner
from arr_coc.pending import Eligibility
from arr_coc.sources import Sources

_READOUTS = ("readout", "challenger")
PER_CLASS = {
    *(f"{one}.{name}" for one in _READOUTS for name in ("cross", "weight", "class_count", "last_met")),
    "answers.mean",
    "answers.class_count",
}  # one row per class
_PARTIAL = {  # one entry per rewarded row
    f"{one}.{name}": f"{one}.partial_rows"
    for one in _READOUTS
    for name in ("partial", "partial_precision", "partial_rows")
}
_CONTEXTS = {"context_key.met"}  # one row per text
_KINDS = {"mixture.kinds", "mixture.log_weight", "mixture.used"}  # one row per kind of question
_MOMENT = {"predictor.belief", "predictor.features"}  # one row per token of the last frame
_SOURCES = {  # where their first number stands: names, entries per class, entries per rewarded row
    **dict.fromkeys((f"sources.{name}" for name in Sources.per_pair), "sources.pairs"),
    **dict.fromkeys((f"sources.{name}" for name in Sources.per_partial), "sources.partial_pairs"),
}
_PER_SOURCE = {f"sources.{name}" for name in Sources.per_source}
_PENDING = ("phi", "scene", "context", "direction", "gates", "states")


def _owners(learner: Learner) -> dict[str, nn.Module]:
    switched: dict[str, nn.Module | None] = {
        "predictor.": learner.in_time.predictor,
        "association.": learner.in_time.association,
        "transport.": learner.transport,
        "sequence.": learner.sequence,
        "answers.": learner.answers,
        "sources.": learner.sources,
        "drift.": learner.drift,
        "growth.": learner.growth,
    }
    if learner.drift is not None:
        challenger = learner.drift.challenger
        switched |= {"challenger.": challenger, "challenger.familiarity.": challenger.familiarity}
    return {
        "": learner,
        "ladder.": learner.ladder,
        "readout.": learner.readout,
        "readout.familiarity.": learner.readout.familiarity,
        "scenes.": learner.scenes,
        "context_key.": learner.context_key,
        "own_gain.": learner.own_gain,
        "confidence.": learner.confidence,
        "unlearned.": learner.unlearned,
        "errors.": learner.errors,
        "mixture.": learner.mixture,
        **{name: owner for name, owner in switched.items() if owner is not None},  # what is off has no state
    }


def tensors(learner: Learner) -> dict[str, Tensor]:
    """Every tensor of the state by name."""
    named = {
        prefix + name: owner.get_buffer(name)
        for prefix, owner in _owners(learner).items()
        for name in owner.state_names  # type: ignore[union-attr]
    }
    if learner.rule.state:  # classes that were only acted on have no rows in it yet
        learner.rule.prepare(learner.ladder, len(learner.classes))
    named |= {f"rule.{name}": tensor for name, tensor in learner.rule.state.items()}
    named |= {f"optimizer.{name}": tensor for name, tensor in learner.optimizer.state_tensors().items()}
    held = learner.optimizer.consolidation.state_tensors()
    named |= {f"consolidation.{name}": tensor for name, tensor in held.items()}
    named["generator"] = learner.generator.get_state()
    flat = [e for groups in learner.pending.groups.values() for group in groups for e in group]
    for name in _PENDING if flat else ():
        named[f"pending.{name}"] = torch.stack([getattr(e, name) for e in flat])
    return named


def size(learner: Learner) -> int:
    """Bytes of the whole state's tensors."""
    return sum(t.numel() * t.element_size() for t in tensors(learner).values())


def meta(learner: Learner) -> dict[str, Any]:
    """What is no tensor: names of classes, counts, which eligibility belongs to which action."""
    waiting = [
        {"action": n, "groups": [[[e.row, e.predicted, e.asked, e.own] for e in group] for group in groups]}
        for n, groups in learner.pending.groups.items()
    ]
    about = {
        "classes": list(learner.classes),
        "optimizer_steps": dict(learner.optimizer.steps),
        "pending": waiting,
        "next_action": learner.pending.next,
    }
    if learner.sources is not None:
        about["sources"] = {"names": list(learner.sources.names), "gone": learner.rule.gone}
    return about


def check_sizes(config: ArrCocConfig, saved: dict[str, Tensor]) -> None:
    """Whether a saved state has the sizes that its config says, before a learner of these sizes is made.

    Raises:
        ValueError: if it has not; says what both have.
    """

    def has(name: str) -> int:
        return saved[name].shape[0] if name in saved and saved[name].dim() else 0

    rung = has("ladder.bias_0")
    # sites that are wider than a rung are projected to it; without a projection their width is its own
    sites = [t.shape[-1] for name, t in saved.items() if name.startswith("ladder.project_") and t.dim() == 2]
    sites += [rung] if len(sites) < sum(name.startswith("ladder.bias_") for name in saved) else []
    wanted = {
        "width": (min(config.width, *sites) if sites else config.width, rung),
        "expansion": (config.expansion * (config.reads == "all"), has("ladder.expand_bias")),
    }
    if config.predict_gain is not None:
        side = 2 * config.predict_radius + 1
        wanted["predict_radius"] = (side * side, has("predictor.transitions"))
    for name, (size, found) in wanted.items():
        if size != found:
            raise ValueError(
                f"the config says {name}={getattr(config, name)}, which needs tensors of {size} rows; those "
                f"of the saved state have {found}"
            )


def load(learner: Learner, saved: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Put a state into a learner of the same config and shapes; checked whole before anything changes.

    Raises:
        ValueError: for missing or unexpected names (the nearest is named), other shapes or dtypes, a pending
            action that cannot be, more columns of rungs than the config allows.
    """
    columns = 1 + sum(name.startswith("ladder.column_") and name.endswith("_bias_0") for name in saved)
    if columns > learner.config.columns:
        raise ValueError(f"the saved state has {columns} columns; the config says {learner.config.columns}")
    was = learner.ladder, learner.readout, learner.drift
    if columns != learner.ladder.columns:
        reshape(learner, columns)
    try:
        _load(learner, saved, about)
    except Exception:
        learner.ladder, learner.readout, learner.drift = was
        raise


def _load(learner: Learner, saved: dict[str, Tensor], about: dict[str, Any]) -> None:
    try:
        classes, steps = list(about["classes"]), dict(about["optimizer_steps"])
        groups_of = {int(w["action"]): w["groups"] for w in about["pending"]}
        following = int(about["next_action"])
        by_source: dict[str, Any] = {"names": [], "gone": 0} if learner.sources is None else about["sources"]
        sources, gone = list(by_source["names"]), int(by_source["gone"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"the saved state's description is damaged: {error!r}") from error
    known = {"classes", "optimizer_steps", "pending", "next_action"}
    unknown = sorted(about.keys() - (known | ({"sources"} if learner.sources is not None else set())))
    if unknown:
        raise ValueError(f"the saved state's description has more than is known: {', '.join(unknown)}")
    if not all(isinstance(key, str) for key in classes) or len(set(classes)) < len(classes):
        raise ValueError(f"the saved classes are {classes}; texts are needed, none of them twice")
    if not all(isinstance(name, str) for name in sources) or len(set(sources)) < len(sources):
        raise ValueError(f"the saved sources are {sources}; texts are needed, none of them twice")
    if following < max(groups_of, default=-1) + 1:
        raise ValueError(f"the saved next action is {following}, which is not behind those that wait")
    apart = ("optimizer.", "pending.", "rule.", "consolidation.")
    mine = {k: v for k, v in tensors(learner).items() if not k.startswith(apart)}
    kept = {f"rule.{k}": s for k, s in learner.rule.shapes(learner.ladder, len(classes)).items()}
    if not any(name in saved for name in kept):  # nothing was taught yet
        kept = {}
    extra = [f"optimizer.{name}.{part}" for name in steps for part in ("first", "second")]
    count = sum(len(group) for groups in groups_of.values() for group in groups)
    extra += [f"pending.{name}" for name in _PENDING] if count else []
    held = _held(learner, saved, len(classes), kept)
    expected = [*mine, *extra, *kept, *held]
    for name in saved:
        if name not in expected:
            near = difflib.get_close_matches(name, expected, n=1, cutoff=0.0)
            raise ValueError(
                f"unexpected tensor {name!r} in the saved state; the nearest known is {near[0]!r}"
            )
    missing = [name for name in expected if name not in saved]
    if missing:
        raise ValueError(f"the saved state lacks {', '.join(missing)}")
    for name, tensor in mine.items():
        given, shape = saved[name], list(tensor.shape)
        if name in PER_CLASS:
            shape[0] = len(classes)
        if name in _CONTEXTS:
            shape[0] = len(given)
        if name in _KINDS:
            shape[0] = len(saved["mixture.kinds"])
        if name in _MOMENT:
            shape[0] = len(saved["predictor.belief"])
        if name in _PARTIAL:
            shape[0] = len(saved[_PARTIAL[name]])
        if name in _PER_SOURCE:
            shape[0] = len(sources)
        if name in _SOURCES:
            shape[0] = len(saved[_SOURCES[name]])
        if list(given.shape) != shape or given.dtype != tensor.dtype:
            raise ValueError(
                f"the saved {name} is {given.dtype} of shape {tuple(given.shape)}; "
                f"this learner needs {tensor.dtype} of shape {tuple(shape)}"
            )
    for name in ("sources.pairs", "sources.partial_pairs") if learner.sources is not None else ():
        least, most = torch.zeros(2), torch.tensor([len(sources), len(classes)])
        if not bool(((saved[name].cpu() >= least) & (saved[name].cpu() < most)).all()):
            raise ValueError(f"the saved {name} points beyond {len(sources)} sources, {len(classes)} classes")
    learner.confidence.check(saved["confidence.log_scale"])
    learner.unlearned.check(saved["unlearned.moments"])
    if int(saved["step"]) < 0:
        raise ValueError(f"the saved step is {int(saved['step'])}; a number of samples is needed")
    for name, rule_shape in kept.items():
        if tuple(saved[name].shape) != rule_shape:
            raise ValueError(f"the saved {name} has shape {tuple(saved[name].shape)}; {rule_shape} is needed")
    for name, shape in held.items():
        given = saved[name]
        fewer = given.dim() and given.shape[0] <= shape[0]  # a class that was only acted on has no row in it
        if list(given.shape) != shape and not (fewer and list(given.shape[1:]) == shape[1:]):
            raise ValueError(f"the saved {name} has shape {tuple(given.shape)}; {tuple(shape)} is needed")
    for name in extra:
        if name.startswith("pending.") and len(saved[name]) != count:
            raise ValueError(f"the saved {name} has {len(saved[name])} entries; {count} are described")
    device = learner.relevance_weight.device
    place = iter(range(count))
    waiting = {
        number: [
            [_eligibility(saved, next(place), e, device, len(classes)) for e in group] for group in groups
        ]
        for number, groups in groups_of.items()
    }
    for prefix, owner in _owners(learner).items():
        for name in owner.state_names:  # type: ignore[union-attr]
            setattr(owner, name, saved[prefix + name].to(owner.get_buffer(name).device, copy=True))
    learner.readout.classes = classes
    if learner.drift is not None:
        learner.drift.challenger.classes = list(classes)
    learner.rule.gone = gone
    if learner.sources is not None:
        learner.sources.names = sources
    like = learner.ladder.weight(0)
    learner.rule.state = {k.removeprefix("rule."): saved[k].to(like, copy=True) for k in kept}
    moments = {
        k.removeprefix("optimizer."): v.to(device, copy=True)
        for k, v in saved.items()
        if k.startswith("optimizer.")
    }
    learner.optimizer.load_state(moments, steps)
    learner.optimizer.consolidation.load_state(
        {k.removeprefix("consolidation."): saved[k].to(device, copy=True) for k in held}
    )
    learner.generator.set_state(saved["generator"].cpu())
    learner.pending.next, learner.pending.groups = following, waiting


def _held(
    learner: Learner, saved: dict[str, Tensor], classes: int, kept: dict[str, tuple[int, ...]]
) -> dict[str, list[int]]:
    """Names and shapes of what consolidation has kept in a saved state."""
    plastic = {name: tuple(tensor.shape) for name, tensor in learner.ladder.weights().items()} | kept
    plastic |= {
        "relevance": tuple(learner.relevance_weight.shape),
        "readout": (classes, learner.readout.width),
    }
    named = {name.removeprefix("consolidation.") for name in saved if name.startswith("consolidation.")}
    wanted = learner.optimizer.consolidation.expected(named, plastic)
    return {f"consolidation.{name}": list(shape) for name, shape in wanted.items()}


def _eligibility(
    saved: dict[str, Tensor], place: int, said: Any, device: torch.device, classes: int
) -> Eligibility:
    left = {name: saved[f"pending.{name}"][place].to(device, copy=True) for name in _PENDING}
    try:
        row, predicted, asked, own = said
        row, predicted, own = int(row), float(predicted), None if own is None else float(own)
    except (TypeError, ValueError) as error:
        raise ValueError(f"a pending action of the saved state is damaged: {said!r}") from error
    finite = all(math.isfinite(x) for x in (predicted, own or 0.0))
    if not (0 <= row < classes and finite and asked in ("text", "sequence", "image")):
        raise ValueError(f"a pending action of the saved state cannot be: {said!r} with {classes} classes")
    return Eligibility(**left, row=row, predicted=predicted, asked=asked, own=own)


def move_rest(learner: Learner, moved: Callable[[Tensor], Tensor]) -> None:
    """Move what is no buffer of a module: a rule's state, an optimizer's moments, what waits for a reward."""
    learner.rule.state = {name: moved(tensor) for name, tensor in learner.rule.state.items()}
    held = learner.optimizer.consolidation.state_tensors()
    learner.optimizer.consolidation.load_state({name: moved(tensor) for name, tensor in held.items()})
    moments = learner.optimizer.moments
    learner.optimizer.moments = {name: (moved(one), moved(two)) for name, (one, two) in moments.items()}
    for groups in learner.pending.groups.values():
        for group in groups:
            group[:] = [_moved(one, moved) for one in group]


def _moved(one: Eligibility, moved: Callable[[Tensor], Tensor]) -> Eligibility:
    there: dict[str, Any] = {name: moved(getattr(one, name)) for name in _PENDING}
    return replace(one, **there)


def place(learner: Learner, device: torch.device) -> None:
    """Move a learner to a device; statistics in float64 stay on the CPU where the device has none (mps)."""
    if device.type != "mps":
        learner.to(device)
        return
    learner.ladder.to(device)
    learner.errors.to(device)
    learner.relevance_weight = learner.relevance_weight.to(device)
