"""In time: what was predicted and what time has associated, as one further term of the log-precision.

    further_n = g_p log r^_n + g_t announced_n

Rows of a batch are moments that follow one another. To answer changes nothing; to learn or to act is what
makes time pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from arr_coc.percept import Percept
from arr_coc.relevance.predict import RelevancePredictor
from arr_coc.relevance.score import SMALLEST
from arr_coc.relevance.settle import Settled
from arr_coc.relevance.temporal import TemporalAssociation, match

if TYPE_CHECKING:
    from arr_coc.config import ArrCocConfig


@dataclass(frozen=True)
class Course:
    """What the moments before had to say about a batch.

    Args:
        evidence: relevance as it would have been without them, (B, N).
        matched: how well what was asked for was found by that, (B,).
        forecast: r^, (B, N), or None.
        surprise: of the evidence under the forecast, F of `RelevancePredictor`, (B,), or None.
        further: their term of the log-precision, (B, N).
    """

    evidence: Tensor
    matched: Tensor
    forecast: Tensor | None
    surprise: Tensor | None
    further: Tensor


class InTime(nn.Module):
    """The predictor and the association, as far as they are switched on.

    Args:
        config: gains; None is off, 0 only learns.
        context_width: C. feature_width: F.
    """

    def __init__(self, config: "ArrCocConfig", context_width: int, feature_width: int) -> None:
        super().__init__()
        self.predict_gain, self.temporal_gain = config.predict_gain or 0.0, config.temporal_gain or 0.0
        self.predictor: RelevancePredictor | None = None
        self.association: TemporalAssociation | None = None
        if config.predict_gain is not None:
            self.predictor = RelevancePredictor(feature_width, config.predict_radius)
        if config.temporal_gain is not None:
            window = config.temporal_tau, config.temporal_penalty
            self.association = TemporalAssociation(context_width, feature_width, *window)

    @property
    def on(self) -> bool:
        return self.predictor is not None or self.association is not None

    def settle(
        self,
        percept: Percept,
        features: Tensor,
        context: Tensor,
        score: Callable[[Tensor | None, slice], Tensor],
        settled: Callable[[Tensor, slice], Settled],
    ) -> tuple[Tensor, Settled, Course]:
        """gamma (B, N) and the relevance that it settles to, moment by moment.

        Args:
            features: f, (B, N, F). context: as U sees it, (B, C).
            score: gamma of these rows, with their part of a further term, or with none.
            settled: what a gamma of these rows settles to.
        """
        every = slice(None)
        plain = score(None, every)
        evidence = settled(plain, every).relevance
        further = torch.zeros_like(evidence)
        if self.association is not None and self.temporal_gain:
            for i in range(percept.batch if percept.asked == "text" else 0):
                announced = self.association.announced(context[i], features[i], _row(percept.mask, i))
                further[i] += self.temporal_gain * announced.to(further)
        if self.predictor is None:
            gamma = score(further, every)
            course = Course(evidence, match(evidence, plain), None, None, further)
            return gamma, settled(gamma, every), course
        moment = self.predictor.moment
        forecasts, surprises, gammas, parts = [], [], [], []
        for i in range(percept.batch):
            mask, row = _row(percept.mask, i), slice(i, i + 1)
            forecast = self.predictor.forecast(moment, percept.grid, evidence.shape[1], mask)
            forecasts.append(forecast)
            surprises.append(self.predictor.surprise(evidence[i], forecast))
            further[i] += self.predict_gain * forecast.clamp_min(SMALLEST).log().to(further)
            gammas.append(score(further[row], row))
            parts.append(settled(gammas[-1], row))
            if i + 1 < percept.batch:
                r = parts[-1].relevance[0]
                moment = self.predictor.advance(moment, r, features[i], percept.grid, mask)
        whole = Settled(
            torch.cat([p.relevance for p in parts]),
            max(p.iterations for p in parts),
            max(p.residual for p in parts),
        )
        said, news = torch.stack(forecasts).to(evidence), torch.stack(surprises).to(evidence)
        course = Course(evidence, match(evidence, plain), said, news, further)
        return torch.cat(gammas), whole, course

    def observe(
        self, percept: Percept, features: Tensor, relevance: Tensor, course: Course, key: Tensor
    ) -> None:
        """Time passes: learn from these moments, and keep the last.

        Args:
            relevance: as it was settled on, (B, N). key: of the contexts, (B, C).
        """
        moment = None if self.predictor is None else self.predictor.moment
        for i in range(percept.batch):
            mask = _row(percept.mask, i)
            if self.predictor is not None:
                seen = course.evidence[i]
                moment = self.predictor.advance(moment, relevance[i], features[i], percept.grid, mask, seen)
            if self.association is not None:
                asked = key[i] if percept.asked == "text" else None
                self.association.observe(features[i], float(course.matched[i]), asked, mask)
        if self.predictor is not None:
            self.predictor.remember(moment)

    def rest(self) -> None:
        """Forget the moments before, and nothing that was learned: another stream begins."""
        if self.predictor is not None:
            self.predictor.remember(None)
        if self.association is not None:
            self.association.feature_trace.zero_()
            self.association.match_trace.zero_()


def _row(mask: Tensor | None, i: int) -> Tensor | None:
    return None if mask is None else mask[i]
