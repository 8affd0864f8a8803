"""Acting: a choice by value, what it leaves behind, and what its reward then teaches."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arr_coc import sources
from arr_coc.neuromodulator import max_boltzmann, reward_prediction_error
from arr_coc.pending import Eligibility, left_by
from arr_coc.percept import Percept
from arr_coc.protection import protected_climb, relevant_now
from arr_coc.rules.protocol import Updates

if TYPE_CHECKING:
    from arr_coc.learner import Learner


def act(
    learner: "Learner", percept: Percept, keys: list[str], choice: Tensor | None = None
) -> tuple[Tensor, list[Eligibility]]:
    """Choose one of the candidates per sample by its value; returns the choice (B,) and what a reward
    will need.

    A candidate that was never met has the value 0. The choice is the best one (with `explore_bonus` times
    its standard deviation on top), or with probability `explore` a draw from the softmax of that; or the
    one given, where the choice was made elsewhere.
    """
    answer = learner.answer(percept)
    rows = learner.readout.rows(keys, grow=True)
    if learner.sources is not None:
        learner.sources.touch(rows)
    values = torch.nn.functional.pad(answer.values, (0, len(learner.classes) - answer.values.shape[1]))
    if choice is None:
        hoped = values[:, rows.to(values.device)]
        if learner.config.explore_bonus and learner.config.readout == "precision":
            spread = (learner.config.ridge * learner.readout.variance(answer.climb.phi, rows)).sqrt()
            hoped = hoped + learner.config.explore_bonus * spread.to(hoped)
        choice = max_boltzmann(hoped, learner.config.explore, learner.generator)
    chosen = rows.to(choice.device)[choice]
    # attentional feedback from the chosen answer alone, whatever rule trains the ladder
    learner.rule.prepare(learner.ladder, len(learner.classes))
    alone = torch.nn.functional.one_hot(chosen, len(learner.classes)).to(answer.climb.phi)
    readout = learner.readout.weight.to(alone)
    feedback, gates = learner.rule.attend(learner.ladder, answer.climb, alone, readout, int(learner.step))
    direction, rho = learner._eligible(percept, answer, feedback)
    predicted = values.gather(1, chosen.unsqueeze(1)).squeeze(1)
    if learner.config.protect == "relevance":
        relevant = relevant_now(answer.relevance, answer.features, percept.mask)
        delta = learner.config.readout == "delta"
        seen = protected_climb(learner.ladder, answer.climb, relevant, phi=delta)
        answer = replace(answer, climb=seen)
    left = left_by(answer, chosen, predicted, gates, direction, rho, percept.asked)
    learner._pass(percept, answer)
    return choice, left


def reward(
    learner: "Learner", eligibility: list[Eligibility], reward: Tensor, source: str | None = None
) -> Tensor:
    """Three factors: reward prediction error x the eligibility that the action left; returns delta (B,).

    Raises:
        FloatingPointError: if an update would not be finite; then nothing has changed.
    """
    sources.check(learner, source)
    if not eligibility:
        return torch.zeros(0, dtype=torch.float64)
    config = learner.config
    predicted = torch.tensor([e.predicted for e in eligibility], dtype=torch.float64)
    delta = reward_prediction_error(reward.to(predicted), predicted)
    if not (torch.isfinite(delta).all() and all(e.finite() for e in eligibility)):
        raise FloatingPointError("a reward or what its action left behind is not finite; nothing was changed")
    for trace, d in zip(eligibility, delta.tolist(), strict=True):
        if learner._learns_relevance(trace.asked):
            size = trace.context.new_tensor([abs(d)])
            rho = None if trace.own is None else math.copysign(trace.own, d * trace.own)
            learner.three_factor.learn(
                learner.relevance_weight,
                trace.asked,
                trace.context.unsqueeze(0),
                d * trace.direction.unsqueeze(0),
                size,
                None if rho is None else size.new_tensor([rho]),
            )
        _reward_ladder(learner, trace, d)
    rows = torch.tensor([e.row for e in eligibility])
    learner.readout.meet(rows, torch.arange(1, len(rows) + 1) + int(learner.step))
    if learner.drift is not None:
        learner.drift.rest()  # what a single answer was worth tells no class's error
    if config.readout == "precision":
        phi, scene = (torch.stack([getattr(e, what) for e in eligibility]) for what in ("phi", "scene"))
        sources.count(learner, phi, scene, rows, source, outcomes=reward)
    learner.step += len(rows)
    return delta


def _reward_ladder(learner: "Learner", trace: Eligibility, delta: float) -> None:
    """Delta W_l = + delta g_l z_{l-1}', and under "delta" Delta R_s = + delta phi', for what the action
    left behind, however late its reward came."""
    config = learner.config
    if not config.eta_ladder and config.readout != "delta":
        return
    step = torch.zeros_like(learner.readout.weight)
    step[trace.row] = delta * trace.phi.to(step)
    updates = Updates(trace.moves(delta), step)
    learner.rule.prepare(learner.ladder, len(learner.classes))
    learner._move(learner.rule.accompany(learner.ladder, updates, learner.readout.weight))
