"""The learner: percept in, answer out, and one online step per label or reward. Plain tensors, no model."""

import torch
from torch import Tensor, nn

from arr_coc import acting
from arr_coc.answer import Answer, check_finite, fuse, near
from arr_coc.answer_error import AnswerErrors
from arr_coc.confidence import Confidence
from arr_coc.config import ArrCocConfig
from arr_coc.consolidation import Consolidation
from arr_coc.error_module import ErrorModules
from arr_coc.familiarity import Familiarity, scene_statistics, trust, unusual
from arr_coc.growth import Growth, untaught
from arr_coc.ladder import Climb
from arr_coc.neuromodulator import surprise_gate
from arr_coc.optimizer import Optimizer
from arr_coc.pending import Eligibility, Pending
from arr_coc.percept import Percept
from arr_coc.precision import exact
from arr_coc.relevance import (
    ContextKey,
    Course,
    Grid,
    InTime,
    Mixture,
    OwnGain,
    Settled,
    ThreeFactor,
    check_target,
    log_precision,
    on_grid,
    own_correlation,
    pointed,
    relevance_direction,
    settle,
    spread,
    supported,
    token_feedback,
)
from arr_coc.rules import Updates, make_rule
from arr_coc.sequence import SequenceErrors, Text, make_sequence
from arr_coc.sources import Sources, check, count, forget
from arr_coc.teaching import evidence, teach
from arr_coc.transport import Transport
from arr_coc.unlearned import Unlearned


class Learner(nn.Module):
    """Relevance, ladder and readout over percepts of one shape.

    Args:
        config: what is learned and how.
        site_widths: d_l of the percepts' sites.
        context_width: C.
        state_width: S, 0 where percepts bring no state.
        text_width: of the states of texts' tokens, where those are read (`config.sequence`); else 0.
    """

    state_names = ("relevance_weight", "surprise_watch", "step")

    def __init__(
        self,
        config: ArrCocConfig,
        site_widths: list[int],
        context_width: int,
        state_width: int = 0,
        text_width: int = 0,
    ) -> None:
        super().__init__()
        self.config = config
        self.percept_shape = (site_widths, context_width, state_width)
        self.ladder, self.readout, self.drift = untaught(config, self.percept_shape)
        feature_width = self.ladder.depth * self.ladder.width
        self.scenes = Familiarity(2 * self.ladder.width + 1, config.ridge)
        self.context_key = ContextKey(context_width, config.context_ridge)
        self.own_gain = OwnGain(context_width, config.own_gain)
        self.in_time = InTime(config, context_width, feature_width)
        self.mixture = Mixture(context_width)
        self.confidence = Confidence(config.value_scale)
        self.unlearned = Unlearned(config.unlearned_prior)
        self.errors = ErrorModules(self.ladder.width, self.ladder.depth, context_width)
        held = (config.consolidation, config.consolidation_strength, config.consolidation_decay)
        on = config.error_module and config.surprise == "answer"
        self.answers = AnswerErrors(self.ladder.width) if on else None
        self.sequence: SequenceErrors | None = make_sequence(config, text_width)
        self.optimizer = Optimizer(config.optimizer, consolidation=Consolidation(*held))
        self.three_factor = ThreeFactor(config, self.context_key, self.own_gain, self.optimizer)
        self.rule = make_rule(config.rule, config.rule_options)
        self.relevance_weight: Tensor
        self.surprise_watch: Tensor
        self.step: Tensor
        self.register_buffer("relevance_weight", torch.zeros(context_width, feature_width))
        self.register_buffer("surprise_watch", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.transport: Transport | None = None
        if config.transport and config.readout == "precision":
            moved = (self.ladder.weights(), self.relevance_weight, self.own_gain.weight)
            self.transport = Transport(config.transport, *moved, self.ladder.phi_width)
        self.growth = Growth(config.growth_threshold, config.growth_patience) if config.columns > 1 else None
        self.sources = Sources(self.ladder.phi_width, self.scenes.width) if config.sources else None
        self.generator = torch.Generator().manual_seed(config.seed)
        self.pending = Pending(config.pending)

    @property
    def classes(self) -> list[str]:
        """The classes met so far, in the order of the readout's rows."""
        return self.readout.classes

    # -- answering -------------------------------------------------------------------------------------------

    @exact
    def answer(self, percept: Percept) -> Answer:
        """Relevance, surprise and values of a percept. Changes nothing."""
        features, scene = self._seen(percept)
        context = self._context(percept.context)
        gamma, settled, course, reading, climb = self._look(percept, features, context)
        values = self.readout.values(climb.phi)
        unseen = unusual(self.scenes, percept, scene, int(self.step))
        novelty = torch.maximum(self.readout.familiarity.novelty(climb.phi), unseen)
        return Answer(
            relevance=self._supported(settled.relevance, percept),
            reading=reading,
            surprise=self._surprise(climb, self.errors.errors(climb.states, context)),
            values=near(values, climb.phi),
            evened=near(self.readout.evened(values, self.config.class_balance), climb.phi),
            trust=near(trust(novelty, self.config.trust_sharpness), climb.phi),
            learned=near(self.unlearned.log_odds(values, novelty, percept.asked != "sequence"), climb.phi),
            gamma=gamma,
            settled=settled,
            climb=climb,
            features=features,
            scene=scene,
            context=context,
            course=course,
        )

    def _look(
        self, percept: Percept, features: Tensor, context: Tensor
    ) -> tuple[Tensor, Settled, Course | None, Tensor, Climb]:
        """gamma (B, N), what it settles to, the moments before, weights of reading (B, N), and the climb."""
        gamma, settled, course = self._settle(percept, features, context)
        reading = self._spread(settled.relevance, percept)
        climb = self.rule.infer(self.ladder, self._climb(reading, features, context, percept))
        return gamma, settled, course, reading, climb

    def _surprise(self, climb: Climb, errors: list[Tensor]) -> Tensor:
        said = self.answers
        return self.errors.surprise(errors) if said is None else said.surprise(climb.drives[-1])

    def _seen(self, percept: Percept) -> tuple[Tensor, Tensor]:
        """Features (B, N, F) and scene statistics of every entry; those that share tokens share the work."""
        made, sample, mask = {} if percept.made is None else percept.made, percept.sample, percept.mask
        features = made.get((self, "features"))
        if features is None:
            features = made[self, "features"] = self.ladder.features(percept.tokens)
        if sample is not None and mask is not None:
            features, sample = features[sample], None
        scene = made.get((self, "scene")) if mask is None else None
        if scene is None:
            scene = scene_statistics(features[..., : self.ladder.width], mask)
        if mask is None:
            made[self, "scene"] = scene
        return (features, scene) if sample is None else (features[sample], scene[sample])

    def _settle(
        self, percept: Percept, features: Tensor, context: Tensor
    ) -> tuple[Tensor, Settled, Course | None]:
        """gamma (B, N), what it settles to, and what the moments before had to say."""
        config = self.config

        def score(further: Tensor | None, rows: slice) -> Tensor:
            weight = self.relevance_weight
            return self._score(percept[rows], features[rows], context[rows], weight, further)

        def settled(gamma: Tensor, rows: slice) -> Settled:
            mask = None if percept.mask is None else percept.mask[rows]
            least, most = config.settle_tolerance, config.settle_steps
            return settle(gamma, features[rows], config.lateral, mask, tolerance=least, steps=most)

        if self.in_time.on:
            return self.in_time.settle(percept, features, context, score, settled)
        gamma = score(None, slice(None))
        return gamma, settled(gamma, slice(None)), None

    def _context(self, context: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(context.float(), dim=-1)
        if not self.config.centre_contexts:
            return unit
        return torch.nn.functional.normalize(unit - self.context_key.mean.to(unit), dim=-1)

    def _score(
        self,
        percept: Percept,
        features: Tensor,
        context: Tensor,
        weight: Tensor,
        further: Tensor | None = None,
    ) -> Tensor:
        own = None if percept.own is None else percept.own.float()
        gain = self.config.attention_gain
        gain = float(own is None or percept.asked == "sequence") if gain is None else gain
        asked = self.config.unasked_gain if percept.asked == "image" else 1.0
        return log_precision(
            percept.attention.float(),
            context,
            features,
            weight,
            own,
            percept.mask,
            further,
            attention_gain=asked * gain,
            own_gain=asked * self.own_gain(context),
            clamp=self.config.clamp,
        )

    def _spread(self, relevance: Tensor, percept: Percept) -> Tensor:
        return on_grid(spread, relevance, self._grid(percept), self.config.spread)

    def _supported(self, relevance: Tensor, percept: Percept) -> Tensor:
        return on_grid(supported, relevance, self._grid(percept), self.config.spread)

    @staticmethod
    def _grid(percept: Percept) -> Grid:
        """The grid to spread on; none where tokens are missing in it: nothing is shared with those."""
        return percept.grid if percept.mask is None and percept.grid is not None else percept.grids

    def _climb(
        self,
        reading: Tensor,
        features: Tensor,
        context: Tensor,
        percept: Percept,
        weights: dict[str, Tensor] | None = None,
    ) -> Climb:
        drive = torch.bmm(reading.unsqueeze(1), features).squeeze(1)  # (B, F)
        return self.ladder.climb(drive, context, percept.state, weights)

    def fuse(self, own_logits: Tensor, keys: list[str] | Tensor, answer: Answer) -> Tensor:
        """The model's own scores (B, K) and the learned values, mixed by trust (see `answer.fuse`).

        Args:
            keys: the K candidates' names, any order, learned or not; or their rows in the readout (-1: none),
                (K,).
        """
        rows = keys if isinstance(keys, Tensor) else self.readout.rows(keys)
        return fuse(own_logits, rows.to(answer.values.device), answer, self.config.value_scale)

    def trusted(self, keys: list[str] | Tensor, answer: Answer) -> Tensor:
        """The trust that `fuse` mixes these candidates' scores by, (B,): 0 where none of them was learned."""
        rows = keys if isinstance(keys, Tensor) else self.readout.rows(keys)
        return answer.trust * float((rows >= 0).any())

    def probabilities(self, fused: Tensor, keys: list[str] | Tensor, answer: Answer) -> Tensor:
        """What `fuse` made of these candidates, (B, K), as probabilities as sure as the labels so far have
        borne out (see `confidence`)."""
        return self.confidence.probabilities(fused, self.trusted(keys, answer))

    # -- learning --------------------------------------------------------------------------------------------

    @exact
    def learn(self, percept: Percept, keys: list[str], source: str | None = None) -> Answer:
        """One online step towards the labels `keys` (one per sample); returns the answer from before the
        step.

        Args:
            source: who says so, with `config.sources`; what a source taught can be taken back (`forget`).

        Raises:
            ValueError: for another number of labels, or a source that cannot be one.
            FloatingPointError: if the features, or the update that the rule asks for, are not finite; then
                nothing has changed.
        """
        if len(keys) != percept.batch:
            raise ValueError(f"{len(keys)} labels were given for a batch of {percept.batch}")
        check(self, source)
        answer = self.answer(percept)
        check_finite(answer, int(self.step))
        classes, met = len(self.classes), self.readout.last_met.clone()
        rows = self.readout.rows(keys, grow=True).to(answer.values.device)
        # classes that appeared just now have had the value 0
        new = len(self.classes) - answer.values.shape[1]
        values = torch.nn.functional.pad(answer.values, (0, new))
        target = torch.nn.functional.one_hot(rows, len(self.classes)).to(values)
        clock = torch.arange(1, percept.batch + 1) + int(self.step)
        self.readout.meet(rows, clock)
        weights = evidence(self, percept, answer)
        try:
            teach(self, percept, answer, target, values)
        except FloatingPointError:
            self.readout.forget(classes)
            self.rule.forget(classes)
            self.readout.last_met = met
            raise
        self.confidence.learn(torch.nn.functional.pad(answer.evened, (0, new)), rows)
        self.unlearned.learn(answer.values, rows, classes)
        if self.drift is not None:
            dropped = int(self.drift.drops)
            self.drift.observe(self.readout, answer.climb.phi, rows, weights)
            if int(self.drift.drops) > dropped:
                self.unlearned.moments.zero_()  # they were another readout's
        if self.config.readout == "precision":
            count(self, answer.climb.phi, answer.scene, rows, source, weights)
        if self.answers is not None:
            self.answers.learn(answer.climb.drives[-1], rows, len(self.classes), self.config.eta_error)
        self._pass(percept, answer)
        self._settle_down(answer, percept.batch)
        return answer

    @exact
    def forget(self, source: str) -> int:
        """Take back all that a source has taught the readout; returns its samples; see `sources.forget`."""
        return forget(self, source)

    def read_on(self, text: Text | None) -> None:
        """What followed what in these texts; nothing where texts are not read."""
        if self.sequence is not None and text is not None:
            self.sequence.learn(text.states, text.mask)

    def _eligible(self, percept: Percept, answer: Answer, feedback: Tensor) -> tuple[Tensor, Tensor | None]:
        """What feedback to the drives (B, F) asks of U, (B, F) and of the own gain, if there is one, (B,)."""
        r = answer.settled.relevance
        score = token_feedback(r, answer.features, feedback, self._grid(percept), self.config.spread)
        direction = relevance_direction(r, answer.features, score)
        if percept.own is None or not self.config.eta_own:
            return direction, None
        return direction, own_correlation(r, score, percept.own.to(score))

    def _gate(self, answer: Answer) -> Tensor:
        mean, square = self.surprise_watch.tolist()
        return surprise_gate(
            answer.surprise, mean, max(square - mean * mean, 0.0) ** 0.5, self.config.surprise_gate
        )

    def _learns_relevance(self, asked: str) -> bool:
        wanted = {"text": True, "sequence": self.config.question_relevance, "image": False}
        return self.config.learn_relevance and wanted[asked]

    def _pass(self, percept: Percept, answer: Answer) -> None:
        """Let time pass, where it counts, and note where phi has moved."""
        if self.transport is not None:
            self.transport.follow(self, percept, answer)
        if answer.course is not None:
            key = self.context_key.key(answer.context) if self.config.context_key else answer.context
            self.in_time.observe(percept, answer.features, answer.settled.relevance, answer.course, key)

    def _settle_down(self, answer: Answer, batch: int) -> None:
        if self.config.error_module:
            errors = self.errors.errors(answer.climb.states, answer.context)
            self.errors.learn(answer.climb.states, errors, answer.context, self.config.eta_error)
        rate = 0.01
        for value in answer.surprise.double().tolist():
            self.surprise_watch += rate * (
                self.surprise_watch.new_tensor([value, value * value]) - self.surprise_watch
            )
        self.step += batch
        if self.growth is not None:
            self.growth.follow(self, answer.surprise)

    @exact
    def point_out(self, percept: Percept, target: Tensor) -> Answer:
        """One online step of U and the own gain, and nothing else, towards where somebody points: t, (B, N),
        sums to 1. Returns the answer from before the step.

        Raises:
            ValueError: for another target, or where nothing was asked for; then nothing has changed.
        """
        check_target(target, percept)
        answer = self.answer(percept)
        r = answer.settled.relevance
        own = percept.own.to(r) if percept.own is not None and self.config.eta_own else None
        step = pointed(target.to(r), r, answer.features, own)
        weight, gate = self.relevance_weight, self._gate(answer)
        self.three_factor.learn(weight, percept.asked, answer.context, *step, gate, told_where=True)
        return answer

    # -- reward ----------------------------------------------------------------------------------------------

    @exact
    def act(
        self, percept: Percept, keys: list[str], choice: Tensor | None = None
    ) -> tuple[Tensor, list[Eligibility]]:
        """Choose one of the candidates per sample by its value; see `acting.act`."""
        return acting.act(self, percept, keys, choice)

    @exact
    def reward(self, eligibility: list[Eligibility], reward: Tensor, source: str | None = None) -> Tensor:
        """Learn from how good actions were; the reward prediction errors, (B,); see `acting.reward`."""
        return acting.reward(self, eligibility, reward, source)

    def _move(self, updates: Updates) -> None:
        """Take a step along the updates of W and b, of what the rule keeps, and of a delta readout."""
        config = self.config
        if config.eta_ladder > 0:
            for name, direction in updates.ladder.items():
                self.optimizer.move(name, self.ladder.get_buffer(name), direction, config.eta_ladder)
            for name, direction in updates.own.items():
                self.optimizer.move(f"rule.{name}", self.rule.state[name], direction, config.eta_ladder)
        if config.readout == "delta":
            self.optimizer.move("readout", self.readout.weight, updates.readout, config.eta_readout)
