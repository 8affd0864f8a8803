"""Relevance: scored as an additive log-precision, settled to a distribution over tokens, learned by three
factors; predicted from moment to moment, and associated over time. And what of the tokens is enough."""

from arr_coc.relevance.asked import asked, word_evidence
from arr_coc.relevance.gain import OwnGain, own_correlation
from arr_coc.relevance.in_time import Course, InTime
from arr_coc.relevance.learn import ContextKey, relevance_direction, token_feedback
from arr_coc.relevance.mixture import Mixture
from arr_coc.relevance.pointing import (
    box_target,
    check_target,
    click_target,
    map_target,
    pointed,
)
from arr_coc.relevance.predict import RelevancePredictor
from arr_coc.relevance.score import log_precision
from arr_coc.relevance.select import select
from arr_coc.relevance.settle import Settled, concentration, energy, settle
from arr_coc.relevance.spread import Grid, gather, on_grid, spread, supported
from arr_coc.relevance.temporal import TemporalAssociation
from arr_coc.relevance.three_factor import ThreeFactor

__all__ = [
    "ContextKey",
    "Course",
    "Grid",
    "InTime",
    "Mixture",
    "OwnGain",
    "RelevancePredictor",
    "Settled",
    "TemporalAssociation",
    "ThreeFactor",
    "asked",
    "box_target",
    "check_target",
    "click_target",
    "concentration",
    "energy",
    "gather",
    "log_precision",
    "map_target",
    "on_grid",
    "own_correlation",
    "pointed",
    "relevance_direction",
    "select",
    "settle",
    "spread",
    "supported",
    "token_feedback",
    "word_evidence",
]
