"""Learning rules: one file each, one protocol, one ledger each."""

from collections.abc import Callable
from typing import Any

from arr_coc.rules.attention_gated import AttentionGated
from arr_coc.rules.backprop import Backprop
from arr_coc.rules.dendritic import Dendritic
from arr_coc.rules.equilibrium_propagation import EquilibriumPropagation
from arr_coc.rules.feedback_alignment import FeedbackAlignment
from arr_coc.rules.hebbian import Hebbian
from arr_coc.rules.mezo import MeZO
from arr_coc.rules.predictive_coding import PredictiveCoding
from arr_coc.rules.protocol import Ledger, Rule, Teaching, Updates
from arr_coc.rules.stdp import STDP
from arr_coc.rules.target_propagation import TargetPropagation

RULES: dict[str, Callable[..., Rule]] = {
    "attention_gated": AttentionGated,
    "backprop": Backprop,
    "dendritic": Dendritic,
    "equilibrium_propagation": EquilibriumPropagation,
    "feedback_alignment": FeedbackAlignment,
    "hebbian": Hebbian,
    "mezo": MeZO,
    "predictive_coding": PredictiveCoding,
    "stdp": STDP,
    "target_propagation": TargetPropagation,
}


def make_rule(name: str, options: dict[str, Any]) -> Rule:
    """The rule of that name with those options.

    Raises:
        ValueError: for an unknown rule or an option that it does not have.
    """
    if name not in RULES:
        raise ValueError(f"rule={name!r}: possible are {', '.join(RULES)}")
    try:
        return RULES[name](**options)
    except TypeError as error:
        raise ValueError(f"rule_options={options!r} do not fit rule {name!r}: {error}") from error


__all__ = ["RULES", "Ledger", "Rule", "Teaching", "Updates", "make_rule"]
