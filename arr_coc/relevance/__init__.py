"""Relevance: scored as an additive log-precision, settled to a distribution over tokens, learned by three
factors."""

from arr_coc.relevance.learn import ContextKey, relevance_direction
from arr_coc.relevance.score import log_precision
from arr_coc.relevance.settle import Settled, energy, settle
from arr_coc.relevance.spread import gather, spread

__all__ = [
    "ContextKey",
    "Settled",
    "energy",
    "gather",
    "log_precision",
    "relevance_direction",
    "settle",
    "spread",
]
