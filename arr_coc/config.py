"""What an adapter is: one frozen, checked, JSON-able dataclass."""

import difflib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from arr_coc.activation import ACTIVATIONS
from arr_coc.relevance.gain import MOST
from arr_coc.rules import RULES, make_rule

CONFIG_VERSION = 4
_CHOICES = {
    "rule": tuple(RULES),
    "reads": ("all", "top"),
    "activation": tuple(ACTIVATIONS),
    "readout": ("precision", "delta"),
    "evidence": ("uniform", "relevance"),
    "error": ("softmax", "squared"),
    "surprise_gate": ("off", "boost", "damp"),
    "surprise": ("context", "answer"),
    "optimizer": ("direction", "sgd", "adam"),
    "consolidation": ("off", "ewc", "si"),
    "protect": ("off", "relevance"),
    "drift": ("off", "challenge"),
    "growth_start": ("copy", "drawn"),
}


@dataclass(frozen=True)
class ArrCocConfig:
    """How relevance is scored, settled and learned, and how the ladder answers.

    Args:
        sites: blocks of the backbone that are read, from the bottom; negative numbers count from the top.
            Empty: a middle and a late block, chosen by the structure of the model.
        width: width of a rung; wider site features are reduced by a fixed orthogonal projection, (width, d).
        expansion: fixed random features of the drives that the readout sees beside them; 0 for none.
        reads: what the readout sees: drives, rungs where they learn or were drawn, expansion and state
            ("all"), or the top rung alone ("top", which is how rules are compared).
        activation: f of the rungs.
        ladder_gain: W of the rungs starts at random with standard deviation gain / sqrt(fan-in); 0: at zero.
        attention_gain: weight of log a_n in the log-precision. None: 1 for a generative model, and where a
            dual encoder has no score of its own for a context; 0 where it has one (what the image's summary
            attends to says little about what was asked).
        own_gain: weight of the model's own score of its tokens in the log-precision (see `Percept.own`), for
            a context that nothing was learned for.
        unasked_gain: what both weights are multiplied with where nothing was asked and the image's own
            embedding is the context; 0 makes relevance even there, before it is spread.
        clamp: |gamma| is kept under this after the mean is subtracted.
        lateral: lambda of the settling, in [0, 2); 0 is the closed form (one softmax).
        predict_gain: weight in the log-precision of the log of what was predicted from the moments before
            (see `relevance.predict`); 0 only learns and says how surprising what came is, None is off.
        predict_radius: how many tokens relevance may move along a side of the grid, from one moment to the
            next.
        temporal_gain: weight of the match that a token announces by what it came before (see
            `relevance.temporal`); 0 only learns, None is off.
        temporal_tau: of the window of that association, in moments, both before and after.
        temporal_penalty: what a feature after the match costs, where one before it earns 1.
        spread: what is relevant is read with the tokens up to this far away on the grid, where there is one,
            and shown where those are relevant too; 0: neighbours have no say.
        settle_tolerance: settling stops when no r_n moves by more.
        settle_steps: and after this many steps at the latest.
        learn_relevance: whether U and the own gain are learned.
        question_relevance: whether they are learned too where the context is a sample's own words, never the
            same twice (generative models); on scene-qa that is worth a point or two.
        eta: step of the relevance update, in nats of log-precision along its own direction.
        eta_pointed: the same where somebody pointed (`Learner.point_out`), who is not to be doubted.
        eta_own: step of the own gain, which is learned for each context (see `relevance.OwnGain`); 0 leaves
            it as it is.
        own_first: multiply each sample's part in the step of U by (1 - g / 2)^2, g the own gain: what the
            model's own score finds need not be learned. Without a score, with eta_own = 0, or where somebody
            pointed, it is 1.
        centre_contexts: subtract the running mean of the contexts before U sees them.
        context_key: replace c on the update side by its key Q c / (c' Q c), Q the recursive inverse
            correlation.
        context_reset: start a context that was never met from the model's own relevance, not from what was
            learned for contexts like it.
        context_ridge: the prior 1/variance of Q.
        error: with labels, what is fed back: t - softmax(s v) ("softmax", the gradient of the log-likelihood
            over s) or t - v ("squared"). Values of a young readout are noisy, and t - v then teaches
            relevance to blur.
        teaching_scale: s.
        error_window: only classes met in this many samples before, by a label or a reward for them, take part
            in the error, 0 for all: where classes come one after another, all others would only learn to be
            wrong. Source: Caccia et al. (2022), ER-ACE.
        rule: how W, b and U change, a name of `rules.RULES`; `arr-coc rules --explain NAME` tells them apart.
        rule_options: options of that rule, by name.
        optimizer: what is done with an update: its direction scaled to eta min(1, |delta|), plain SGD, or
            Adam.
        consolidation: whether plastic tensors are held back where they were important: by squared updates
            ("ewc") or by their share in what was learned ("si"); see `consolidation`.
        consolidation_strength: of the penalty; 0 only watches.
        consolidation_decay: d of the running averages that it goes by, a step; 1: of the whole life.
        protect: whether W and a delta readout move by how relevant their input is now ("relevance"; see
            `protection`).
        eta_ladder: step of W and b; 0 leaves the rungs as they are.
        columns: of rungs at most; above 1, the column is frozen and a new one begins beside it when surprise
            stays high (see `growth`).
        growth_threshold: of the cumulative sum of standardised surprise at which one begins.
        growth_patience: samples for which a column is left alone at first.
        growth_start: how one begins: as a copy of the frozen one ("copy", after Chen et al., 2016, Net2Net:
            for all that was counted its rungs were what the frozen ones' were), or drawn as the first one was
            ("drawn", as in Rusu et al., 2016: its rungs count as 0 in all samples before).
        readout: "precision" (recursive least squares) or "delta" (trained by the rule, step eta_readout).
        eta_readout: step of the delta readout.
        ridge: prior precision of the readout's weights.
        forgetting: lambda of the precision readout: a sample weighs lambda to the number of those that came
            later; 1: all weigh the same, in any order. For concepts that drift.
        drift: whether a precision readout drops what it has counted when labels have changed their meaning
            ("challenge": when a second readout that began with the suspicion is right more often; see
            `drift`).
        drift_margin: hits by which that one has to be ahead.
        transport: samples after which what a precision readout has counted is carried along to where U, W and
            b have moved phi (see `transport`); 0: never.
        sources: keep the readout's sums by source too, so that `forget(source)` takes back exactly what one
            taught (see `sources`); each costs a (D, D) matrix and a row per class it taught.
        class_balance: k of v_c (n / (K n_c))^k, by which values answer: n_c samples of class c out of n of K
            classes. 0: as ridge regression has them, by which what is rare answers too seldom; up to 1 (see
            `PrecisionReadout.evened`).
        evidence: what a sample weighs in the readout's statistics: 1 ("uniform"), or, where relevance is
            learned, how concentrated it was, 1 - H(r) / log N: what was read off the whole scene says little.
        error_module: whether predictions and precisions of the rungs are learned (they give the surprise).
        eta_error: their step.
        sequence: whether the tokens of texts have relevance and surprise of their own, and what follows what
            in them is learned (see `sequence`).
        eta_sequence: step of its precisions.
        sequence_gain: what an association is worth in the relevance of a text's tokens, nats; 0 only learns.
        surprise: what predicts: the rungs above and the context ("context"), or the answer ("answer", see
            `answer_error`; it needs the module to be on).
        surprise_gate: whether surprise multiplies the relevance update, and with which sign.
        trust_sharpness: how fast trust falls with the predictive variance (see `familiarity.trust`).
        unlearned_prior: probability, before anything is seen, that the answer is one of the named candidates
            that were never learned, where there are such (see `unlearned`); 0: never while the input is like
            those learned.
        value_scale: inverse temperature of the learned values where they are mixed with the model's own
            scores.
        explore: share of actions drawn from softmax(values); the rest are the best ones.
        explore_bonus: beta of the upper confidence bound that is best: value + beta sqrt(rho phi' P_s phi),
            P_s of that answer's own statistics (Li et al., 2010, LinUCB) and rho the ridge, so that beta is
            the deviation of the prior of every weight, whatever the ridge; 0: the value itself. A delta
            readout has no such statistics.
        pending: actions that may wait for their reward at a time.
        seed: of every random choice.
    """

    sites: tuple[int, ...] = ()
    width: int = 192
    expansion: int = 640
    reads: str = "all"
    activation: str = "relu"
    ladder_gain: float = 0.0
    attention_gain: float | None = None
    own_gain: float = 1.0
    unasked_gain: float = 0.0
    clamp: float = 20.0
    lateral: float = 0.0
    predict_gain: float | None = None
    predict_radius: int = 2
    temporal_gain: float | None = None
    temporal_tau: float = 3.0
    temporal_penalty: float = 1.0
    spread: int = 1
    settle_tolerance: float = 1e-6
    settle_steps: int = 200
    learn_relevance: bool = True
    question_relevance: bool = False
    eta: float = 0.3
    eta_pointed: float = 2.0
    eta_own: float = 0.1
    own_first: bool = True
    centre_contexts: bool = False
    context_key: bool = True
    context_reset: bool = True
    context_ridge: float = 0.1
    error: str = "softmax"
    teaching_scale: float = 2.5
    error_window: int = 100
    rule: str = "attention_gated"
    rule_options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "direction"
    consolidation: str = "off"
    consolidation_strength: float = 1.0
    consolidation_decay: float = 0.999
    protect: str = "off"
    eta_ladder: float = 0.0
    columns: int = 1
    growth_threshold: float = 10.0
    growth_patience: int = 100
    growth_start: str = "copy"
    readout: str = "precision"
    eta_readout: float = 0.05
    ridge: float = 0.03
    forgetting: float = 1.0
    drift: str = "off"
    drift_margin: float = 5.0
    transport: int = 0
    sources: bool = False
    class_balance: float = 0.33
    evidence: str = "relevance"
    error_module: bool = True
    eta_error: float = 0.01
    sequence: bool = False
    eta_sequence: float = 0.01
    sequence_gain: float = 0.0
    surprise: str = "context"
    surprise_gate: str = "off"
    trust_sharpness: float = 1.0
    unlearned_prior: float = 0.5
    value_scale: float = 10.0
    explore: float = 0.02
    explore_bonus: float = 3.0
    pending: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", tuple(int(s) for s in self.sites))
        for name, possible in _CHOICES.items():
            given = getattr(self, name)
            if given not in possible:
                near = difflib.get_close_matches(str(given), possible, n=1, cutoff=0.3)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{name}={given!r}: possible are {', '.join(map(repr, possible))}{hint}")
        at_least = dict.fromkeys(("error_window", "spread", "expansion", "transport", "growth_patience"), 0)
        at_least |= dict.fromkeys(("width", "settle_steps", "pending", "predict_radius", "columns"), 1)
        for name, least in at_least.items():
            if not isinstance(getattr(self, name), int) or getattr(self, name) < least:
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: a whole number of at least {least} is needed"
                )
        positive = (
            *("clamp", "settle_tolerance", "ridge", "context_ridge"),
            *("value_scale", "teaching_scale", "trust_sharpness", "temporal_tau"),
            *("drift_margin", "growth_threshold"),
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r}: a number above 0 is needed")
        for name in (
            *("eta", "eta_pointed", "eta_own", "eta_ladder", "eta_readout", "eta_error", "eta_sequence"),
            *(
                "own_gain",
                "unasked_gain",
                "ladder_gain",
                "temporal_penalty",
                "explore_bonus",
                "sequence_gain",
            ),
            "consolidation_strength",
        ):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)!r}: a finite number of at least 0 is needed")
        for name in ("attention_gain", "predict_gain", "temporal_gain"):
            given = getattr(self, name)
            if given is not None and not 0 <= given < float("inf"):
                raise ValueError(f"{name}={given!r}: None or a finite number of at least 0 is needed")
        # a wrong option is an error now, not at the first step
        rule = make_rule(self.rule, self.rule_options)
        if self.columns > 1:
            self._check_growth(rule.grows)
        if self.transport and (self.predict_gain, self.temporal_gain) != (None, None):
            raise ValueError(
                f"transport={self.transport!r} looks at a sample twice, and with predict_gain or "
                "temporal_gain it is another one at each moment: None is needed for both"
            )
        if not isinstance(self.sources, bool):
            raise ValueError(f"sources={self.sources!r}: True or False is needed")
        needs = {"readout": "precision", "forgetting": 1, "transport": 0, "drift": "off"}
        for name, needed in needs.items() if self.sources else ():
            if getattr(self, name) != needed:
                raise ValueError(
                    f"sources=True with {name}={getattr(self, name)!r}: what one source has added can only "
                    f"be taken back with {name}={needed!r}"
                )
        if self.drift != "off" and (self.readout, self.transport) != ("precision", 0):
            raise ValueError(
                f"drift={self.drift!r} with readout={self.readout!r}, transport={self.transport!r}: it "
                "compares two precision readouts of one phi; readout='precision' and transport=0 are needed"
            )
        if self.own_gain > MOST:
            raise ValueError(f"own_gain={self.own_gain!r}: the own gain is kept between 0 and {MOST:g}")
        if not 0 <= self.lateral < 2:
            raise ValueError(f"lateral={self.lateral!r}: settling contracts for 0 <= lateral < 2 only")
        for name in ("consolidation_decay", "forgetting"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: a number above 0 and up to 1 is needed")
        if not 0 <= self.unlearned_prior < 1:
            raise ValueError(
                f"unlearned_prior={self.unlearned_prior!r}: a number from 0 to below 1 is needed"
            )
        for name in ("explore", "class_balance"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}: a number between 0 and 1 is needed")

    def _check_growth(self, possible: bool) -> None:
        """Whether columns can be added."""
        if not possible:
            raise ValueError(
                f"columns={self.columns!r} with rule={self.rule!r}, rule_options={self.rule_options!r}: its "
                "rungs cannot learn from frozen columns beside them; possible are the rules but 'hebbian', "
                "'stdp' and 'equilibrium_propagation' with energy='hopfield', or columns=1"
            )
        needs = {"error_module": True, "surprise": "context", "transport": 0, "sources": False}
        for name, needed in needs.items():
            if getattr(self, name) != needed:
                raise ValueError(
                    f"columns={self.columns!r} with {name}={getattr(self, name)!r}: a column begins when the "
                    f"rungs' surprise says so, and changes phi for all sources; {name}={needed!r} is needed"
                )
        if not self.eta_ladder:
            raise ValueError(
                f"columns={self.columns!r} with eta_ladder=0: a new column would stay what the frozen one "
                "was; a step above 0 is needed"
            )

    @property
    def phi(self) -> str:
        """What the ladder's phi has (see `Ladder.reads`): rungs that start at zero and never learn say f(x),
        of drives that are read already, and are left out."""
        flat = self.reads == "all" and not self.eta_ladder and not self.ladder_gain
        return "drives" if flat else self.reads

    def to_json(self) -> str:
        """The config as JSON text, with the version of its format."""
        return json.dumps({"config_version": CONFIG_VERSION, **asdict(self)}, indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ArrCocConfig":
        """The inverse of `to_json`.

        Raises:
            ValueError: on text that is no JSON object, an unknown field (the nearest is named) or a newer
                version.
        """
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"the config is not JSON: {error}") from error
        if not isinstance(raw, dict):
            raise ValueError(f"the config is a {type(raw).__name__}; a JSON object is needed")
        version = raw.pop("config_version", None)
        if version != CONFIG_VERSION:
            raise ValueError(
                f"config_version is {version!r}; this release reads {CONFIG_VERSION} (before 4 the readout "
                "saw other features, and what was learned from those does not go on with these)"
            )
        known = [f.name for f in fields(cls)]
        for name in raw:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
                raise ValueError(f"unknown field {name!r} in the config; the nearest is {near[0]!r}")
        return cls(**raw)
