"""Rows of published methods that learn on the same frozen features."""

from arr_coc.eval import methods_features as features
from arr_coc.eval.methods_analytic import Rail, StreamingLDA, f_oal
from arr_coc.eval.methods_features import Features, Method
from arr_coc.eval.percepts_words import WordStore
from arr_coc.eval.spec import Setup, Spec

BOTH = ("dual", "generative")


def pooled(setup: Setup) -> Features:
    """What every learner on frozen features reads: the mean token of every site and the context; of a
    generative model the final hidden state, which has read the question."""
    if isinstance(setup.store, WordStore):
        return features.state
    return features.with_context(features.mean_pooled, setup.store)


def _streaming_lda(setup: Setup) -> Method:
    return StreamingLDA(pooled(setup), setup.settings.get("shrinkage", 1e-4))


def _rail(setup: Setup) -> Method:
    lifted = features.random_relu(pooled(setup), 2000, setup.seed)
    return Rail(lifted, setup.settings.get("penalty", 0.1), setup.settings.get("fusion", 0.8))


def _f_oal(setup: Setup) -> Method:
    return f_oal(setup.store, setup.settings.get("penalty", 1.0), setup.seed)


RIVALS: dict[str, Spec] = {
    "streaming-lda": Spec(
        _streaming_lda,
        "streaming LDA: running means and one shared covariance",
        bodies=BOTH,
        configured=False,
        grid=tuple({"shrinkage": e} for e in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)),
    ),
    "rail": Spec(
        _rail,
        "RAIL: recursive ridge (2,000 ReLU) fused with the frozen model, which alone answers out of domain",
        configured=False,
        order_free=True,
        grid=tuple(
            {"penalty": p, "fusion": b} for p, b in ((0.1, 0.8), (0.1, 0.9), (0.1, 1.0), (10, 0.8), (10, 0.9))
        ),
    ),
    "f-oal": Spec(
        _f_oal,
        "F-OAL: recursive least squares on fused features, smoothly projected (1,000 sigmoid)",
        configured=False,
        order_free=True,
        grid=tuple({"penalty": p} for p in (1e-4, 1e-2, 1e-1, 1.0, 10.0)),
    ),
}
