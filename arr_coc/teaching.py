"""Teaching: what the error at the answer changes, by whatever rule, where labels are given."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from arr_coc.answer import Answer
from arr_coc.percept import Percept
from arr_coc.protection import protected, relevant_now
from arr_coc.relevance import concentration, settle
from arr_coc.rules import Teaching

if TYPE_CHECKING:
    from arr_coc.learner import Learner


def teach(learner: "Learner", percept: Percept, answer: Answer, target: Tensor, values: Tensor) -> None:
    """Let the rule change the ladder, U and (under "delta") the readout, towards t (B, C) from v (B, C).

    Raises:
        FloatingPointError: if the rule asks for an update that is not finite; then nothing has changed.
    """
    config = learner.config
    rivals = learner.readout.met_lately(config.error_window, int(learner.step), percept.batch).to(
        values.device
    )

    def error_of(values: Tensor) -> Tensor:
        if config.error == "softmax":
            shown = (config.teaching_scale * values).masked_fill(~rivals, -torch.inf)
            return target.to(values) - shown.softmax(1)
        return (target.to(values) - values) * rivals

    error = error_of(values)
    trains_ladder = config.eta_ladder > 0 or config.readout == "delta"
    learns_relevance = learner._learns_relevance(percept.asked)
    if not (learns_relevance or trains_ladder):
        return

    def forward(copies: dict[str, Tensor]) -> Tensor:
        features, context = answer.features.clone(), answer.context.clone()
        further = None if answer.course is None else answer.course.further.clone()
        gamma = learner._score(percept, features, context, copies["relevance"], further)
        r = settle(gamma, features, config.lateral, percept.mask).relevance
        phi = learner._climb(learner._spread(r, percept), features, context, percept, copies).phi
        return phi @ copies["readout"].T.to(phi.device)

    readout = learner.readout.weight.to(error)
    teaching = Teaching(
        error,
        target,
        readout,
        values,
        learner.relevance_weight,
        forward,
        rivals,
        error_of,
        int(learner.step),
    )
    learner.rule.prepare(learner.ladder, len(learner.classes))
    updates = learner.rule.step(learner.ladder, answer.climb, teaching)
    if not updates.finite():
        raise FloatingPointError(
            f"rule {learner.config.rule!r} asked for an update that is not finite at sample "
            f"{int(learner.step)}: its steps are too long (eta_ladder={learner.config.eta_ladder:g}, "
            f"eta_readout={learner.config.eta_readout:g}); nothing was changed"
        )
    if learns_relevance:
        feedback = updates.drive_feedback
        if feedback is None:  # the own gain is learned from feedback, whatever rule moves U
            feedback, _ = learner.rule.attend(learner.ladder, answer.climb, error, readout, int(learner.step))
        direction, rho = learner._eligible(percept, answer, feedback)
        size, gate = error.norm(dim=1).to(direction), learner._gate(answer)
        weight, whole = learner.relevance_weight, updates.relevance
        learner.three_factor.learn(weight, percept.asked, answer.context, direction, size, rho, gate, whole)
    if config.protect == "relevance":
        relevant = relevant_now(answer.reading, answer.features, percept.mask)
        updates = protected(learner.ladder, updates, relevant, learner.rule.mirrored)
    learner._move(updates)


def evidence(learner: "Learner", percept: Percept, answer: Answer) -> Tensor | None:
    """What each sample weighs in the readout, (B,): None for 1, or how concentrated its relevance was."""
    if learner.config.evidence == "uniform" or not learner._learns_relevance(percept.asked):
        return None
    return concentration(answer.reading, percept.mask).clamp_min(1e-3)
