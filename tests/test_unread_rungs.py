"""phi without rungs: what those that start at zero and never learn say, the drives say already."""

import ladders
import numpy as np
import pytest
import torch

from arr_coc.config import ArrCocConfig
from arr_coc.learner import Learner
from arr_coc.rules import RULES, make_rule

EXACT = {"rtol": 1e-10, "atol": 1e-12}
BY_WEIGHTS = {"dendritic": {"feedback": "tied"}, "target_propagation": {"learned_readout": False}}
UNTOLD = {"hebbian", "stdp"}  # rules whose rungs learn from what enters them, answers or not


def test_the_readout_sees_rungs_where_they_learn_or_were_drawn() -> None:
    assert ArrCocConfig().phi == "drives"
    assert ArrCocConfig(eta_ladder=1e-3).phi == "all"
    assert ArrCocConfig(ladder_gain=1.0).phi == "all"
    assert ArrCocConfig(reads="top").phi == "top"
    small = {"width": 6, "expansion": 5}
    learner = Learner(ArrCocConfig(**small), [9, 8], 4, 7)
    assert learner.readout.width == 2 * 6 + 5 + 6 + 1
    assert Learner(ArrCocConfig(**small, eta_ladder=0.1), [9, 8], 4, 7).readout.width == 4 * 6 + 5 + 6 + 1


def test_nothing_else_is_left_out() -> None:
    """The expansion by numpy's own logistic function, from the matrices that are kept."""
    whole, less = (ladders.make(reads=reads).ladder for reads in ("all", "drives"))
    net = ladders.make(reads="all")
    phi, cut = (one.climb(net.drive, net.below, None).phi for one in (whole, less))
    torch.testing.assert_close(cut, torch.cat([phi[:, :18], phi[:, 36:]], 1), **EXACT)
    asked = net.drive.numpy() @ less.expand_weight.numpy().T + less.expand_bias.numpy()
    torch.testing.assert_close(cut[:, 18:23], torch.from_numpy(1 / (1 + np.exp(-asked))), **EXACT)


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_rule_goes_on_with_rungs_that_nobody_reads(name: str) -> None:
    """Labels ask nothing of the rungs, and all of the readout and the drives that the gradient does; feedback
    alignment and its like have no way down through the expansion."""
    net = ladders.make(reads="drives", activation="relu" if name == "stdp" else "tanh")
    rule = make_rule(name, BY_WEIGHTS.get(name, {}))
    rule.prepare(net.ladder, 4)
    climb = rule.infer(net.ladder, net.climb)
    torch.testing.assert_close(climb.phi, net.climb.phi, **EXACT)
    updates = rule.step(net.ladder, climb, net.teaching())
    weights, readout, drives = ladders.gradients(net)
    if name == "mezo":  # a slope along one direction, in test_mezo.py
        return
    torch.testing.assert_close(updates.readout, readout, **EXACT)
    if name in UNTOLD:
        return
    for name_of, asked in updates.ladder.items():
        assert not weights[name_of].any()
        torch.testing.assert_close(asked, weights[name_of], **EXACT)
    if name not in ("feedback_alignment", "backprop"):  # backprop says the gradient of U, not of the drives
        torch.testing.assert_close(updates.drive_feedback, drives, **EXACT)
