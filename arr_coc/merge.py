"""Merging: what learners that were trained apart have counted adds up to what one would have counted.

Exact for the readout and for what is familiar (A, B, P and R of `readout` and `scenes`), in any order, while
all of them see the same phi: with equal ladders, U and own gains. What parts have in common because they were
copied from one learner is counted as often as there are parts: they have to start fresh. How unusual samples
were before they were learned (`Familiarity.leverage`) and how high their values (`unlearned`) depends on the
order; it is pooled. The error modules, which give the surprise, and how sure probabilities are (`confidence`)
are averaged by samples, rewarded ones included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from arr_coc import state
from arr_coc.learner import Learner


def check(parts: Mapping[str, Learner]) -> None:
    """Whether these learners, by name, can be merged exactly.

    Raises:
        ValueError: if their configs, or what phi depends on, differ; or their readouts keep no statistics.
    """
    (first, one), *others = parts.items()
    if one.config.readout != "precision":
        raise ValueError(
            f"readout={one.config.readout!r} keeps no statistics that add; readout='precision' is needed"
        )
    if one.config.forgetting != 1:
        raise ValueError(
            f"forgetting={one.config.forgetting:g} weighs a sample by how many came after it, so parts of a "
            "stream do not add up to the whole; forgetting=1 is needed"
        )
    if one.growth is not None:
        raise ValueError(
            f"columns={one.config.columns} adds columns when a learner's own surprise stays high, so parts "
            "of a stream have other phis than the whole; columns=1 is needed for a merge"
        )
    if one.drift is not None:
        raise ValueError(
            f"drift={one.config.drift!r} drops what came before labels changed, and parts of a stream do not "
            "say what came before what; 'off' is needed for a merge"
        )
    if one.transport is not None:
        raise ValueError(
            f"transport={one.config.transport} carries statistics to where one learner's phi has moved; "
            "0, which is off, is needed for a merge"
        )
    if one.in_time.on:
        raise ValueError(
            "predict_gain and temporal_gain make a sample's phi depend on what came before it, so parts of a "
            "stream do not add up to the whole; None, which is off, is needed for both"
        )
    if one.sequence is not None or one.answers is not None:
        raise ValueError(
            "what sequence=True and surprise='answer' learn is not summed up; False and 'context' are needed"
        )
    for name, other in others:
        mine, its = asdict(one.config), asdict(other.config)
        differ = [field for field in mine if mine[field] != its[field]]
        if differ:
            told = ", ".join(f"{field}={mine[field]!r} and {its[field]!r}" for field in differ)
            raise ValueError(f"{first!r} and {name!r} cannot be merged: they were made with {told}")
        unequal = _unequal(one, other)
        if unequal:
            raise ValueError(
                f"{first!r} and {name!r} cannot be merged exactly: {', '.join(unequal)} differ, so the same "
                "sample has another phi for each; train adapters that are to be merged with what phi depends "
                "on fixed (eta=0, eta_own=0, eta_ladder=0)"
            )


def _unequal(one: Learner, other: Learner) -> list[str]:
    """Names of the tensors that phi depends on, where they differ."""
    shown = ("ladder.", "rule.", "own_gain.", "relevance_weight")

    def of(learner: Learner) -> dict[str, torch.Tensor]:
        return {k: t.cpu() for k, t in state.tensors(learner).items() if k.startswith(shown)}

    mine, its = of(one), of(other)
    per_class = {f"rule.{name}" for name in one.rule.per_class}  # classes met need not be the same

    def same(name: str) -> bool:
        return name in mine and name in its and torch.equal(mine[name], its[name])

    # with centred contexts, phi depends on a mean that moves with every one
    moved = one.config.centre_contexts and int(one.context_key.count) + int(other.context_key.count) > 0
    apart = [name for name in sorted((mine.keys() | its.keys()) - per_class) if not same(name)]
    return apart + ["context_key.mean"] * moved


def merge(into: Learner, parts: Sequence[Learner]) -> None:
    """Fill a fresh learner of the same config with the sum of what the parts have counted.

    Actions that wait for their reward stay with the parts, and a rule's rows for single classes start anew.
    """
    first = parts[0]
    into.ladder.load_state_dict(first.ladder.state_dict())
    into.own_gain.load_state_dict(first.own_gain.state_dict())
    into.relevance_weight.copy_(first.relevance_weight)
    into.rule.state = {k: t.clone() for k, t in first.rule.state.items() if k not in into.rule.per_class}
    total = sum(int(part.step) for part in parts)
    first_scale = into.confidence.log_scale.clone()
    for part in parts:
        before = int(into.step)
        into.readout.merge(part.readout)
        rows, met = into.readout.rows(part.classes), part.readout.last_met
        into.readout.meet(rows, torch.where(met > 0, met + before, met))  # as if they had come in turn
        into.scenes.merge(part.scenes)
        if into.sources is not None and part.sources is not None:
            into.sources.merge(part.sources, rows)
        into.context_key.merge(part.context_key)
        into.mixture.merge(part.mixture)
        share = int(part.step) / max(total, 1)
        for name in into.errors.state_names:
            into.errors.get_buffer(name).add_(part.errors.get_buffer(name), alpha=share)
        into.surprise_watch.add_(part.surprise_watch, alpha=share)
        into.confidence.log_scale.add_(part.confidence.log_scale - first_scale, alpha=share)
        into.unlearned.moments.add_(part.unlearned.moments)
        into.step += int(part.step)
    into.scenes.solve()
