"""What the moments before have to say, inside the learner: switched off, switched on, saved, gone on with."""

from dataclasses import replace

import pytest
import torch

import tiny
from arr_coc import ArrCocConfig, ArrCocModel, Learner, Percept, attach, merge, state
from arr_coc.relevance import RelevancePredictor
from arr_coc.relevance.predict import Moment

SMALL = ArrCocConfig(width=6, expansion=4)
BOTH = replace(SMALL, predict_gain=0.5, temporal_gain=0.5, predict_radius=1)


def percept(seed: int, batch: int = 1, masked: bool = False, asked: str = "text") -> Percept:
    draw = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(batch, 12, 6, generator=draw) for _ in range(2))
    attention = torch.rand(batch, 12, generator=draw)
    context = torch.eye(4)[torch.randint(3, (batch,), generator=draw)]
    own = torch.randn(batch, 12, generator=draw)
    mask = torch.ones(batch, 12, dtype=torch.bool)
    mask[:, 5] = False
    return Percept(
        tokens,
        attention,
        context,
        own,
        mask if masked else None,
        grid=(3, 4),
        asked=asked,  # type: ignore[arg-type]
    )


def learner(config: ArrCocConfig) -> Learner:
    return Learner(config, [6, 6], 4)


def taught(config: ArrCocConfig, steps: int = 8, batch: int = 1, **options: bool) -> Learner:
    made = learner(config)
    for t in range(steps):
        made.learn(percept(t, batch, **options), ["a", "b", "c"][t % 3 : t % 3 + 1] * batch)
    return made


def equal(one: Learner, two: Learner, only: tuple[str, ...] | None = None) -> bool:
    mine, its = state.tensors(one), state.tensors(two)
    return all(torch.equal(mine[k], its[k]) for k in (only or mine.keys() | its.keys()))


def test_what_is_off_has_no_state_and_what_only_learns_changes_nothing_else() -> None:
    off, learns = taught(SMALL), taught(replace(SMALL, predict_gain=0.0, temporal_gain=0.0))
    assert not any(name.startswith(("predictor.", "association.")) for name in state.tensors(off))
    assert off.answer(percept(99)).course is None
    assert equal(off, learns, tuple(state.tensors(off)))
    one, two = off.answer(percept(99)), learns.answer(percept(99))
    assert torch.equal(one.gamma, two.gamma)
    assert torch.equal(one.climb.phi, two.climb.phi)
    assert two.course is not None
    assert torch.equal(two.course.evidence, two.settled.relevance)


def test_gains_weigh_what_each_part_says_and_are_off_one_by_one() -> None:
    made = taught(replace(BOTH, predict_gain=0.7, temporal_gain=0.3))
    seen = percept(50)
    answer = made.answer(seen)
    course, in_time = answer.course, made.in_time
    assert course is not None
    assert course.forecast is not None
    assert in_time.association is not None
    said = in_time.association.announced(answer.context[0], answer.features[0])
    expected = 0.7 * course.forecast[0].log() + 0.3 * said.float()
    torch.testing.assert_close(course.further[0], expected, rtol=1e-4, atol=1e-5)
    plain = made._score(seen, answer.features, answer.context, made.relevance_weight)
    torch.testing.assert_close(answer.gamma, plain + expected - expected.mean(), rtol=1e-4, atol=1e-4)
    assert learner(replace(SMALL, temporal_gain=0.1)).in_time.predictor is None
    assert learner(replace(SMALL, predict_gain=0.1)).in_time.association is None


@pytest.mark.parametrize("masked", [False, True])
def test_to_answer_lets_no_time_pass(masked: bool) -> None:
    one, two = taught(BOTH, masked=masked), taught(BOTH, masked=masked)
    for seed in range(20, 24):
        one.answer(percept(seed, 3, masked=masked))
    assert equal(one, two)
    if masked:
        assert float(one.answer(percept(30, masked=True)).relevance[0, 5]) == 0


def test_rows_of_a_batch_are_moments_in_turn() -> None:
    """With nothing learned on the way, answers to a batch are those to its rows, one after another."""
    frozen = replace(BOTH, learn_relevance=False, error_module=False)
    one, two = taught(frozen), taught(frozen)
    seen = percept(40, 3)
    batch = one.answer(seen)
    predictor = two.in_time.predictor
    assert predictor is not None
    for i in range(3):
        alone = two.answer(seen[i : i + 1])
        torch.testing.assert_close(alone.relevance[0], batch.relevance[i], rtol=1e-5, atol=1e-7)
        moment = predictor.advance(predictor.moment, alone.settled.relevance[0], alone.features[0], (3, 4))
        predictor.remember(moment)
    # without the moments before it the last row is another
    other = one.answer(seen[2:]).relevance[0]
    assert not torch.allclose(other, batch.relevance[2], rtol=1e-3)


def test_a_forecast_goes_on_from_what_was_settled_on_and_learns_from_the_frame_alone() -> None:
    made = learner(replace(SMALL, predict_gain=2.0, predict_radius=1))
    alone, moment = RelevancePredictor(12, 1), None
    for t in range(6):
        answer = made.learn(percept(t), ["a"])
        r, evidence = answer.settled.relevance[0], answer.course.evidence[0]
        moment = alone.advance(moment, r, answer.features[0], (3, 4), None, evidence)
        plain = made._score(
            percept(t), answer.features, answer.context, torch.zeros_like(made.relevance_weight)
        )
        assert t or torch.allclose(plain.softmax(1)[0], evidence)  # nothing is learned before the first
    assert not torch.allclose(r, evidence, rtol=0.01)
    kept = made.in_time.predictor
    assert kept is not None
    assert kept.moment is not None
    assert isinstance(moment, Moment)
    assert torch.equal(kept.transitions, alone.transitions)
    assert torch.equal(kept.moment.belief, moment.belief)


@pytest.mark.parametrize("acted", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_it_goes_on_from_where_it_was_saved(acted: bool, masked: bool) -> None:
    def go(on: Learner, steps: range) -> None:
        for t in steps:
            seen = percept(t, 2, masked=masked)
            if acted:
                _, left = on.act(seen, ["a", "b"])
                on.reward(left, torch.tensor([1.0, 0.0]))
            else:
                on.learn(seen, ["a", "b"])

    whole, first, second = learner(BOTH), learner(BOTH), learner(BOTH)
    go(whole, range(8))
    go(first, range(4))
    state.load(second, state.tensors(first), state.meta(first))
    go(first, range(4, 8))
    go(second, range(4, 8))
    assert equal(whole, first)
    assert equal(whole, second)
    assert int(whole.in_time.predictor.grid[0]) == 3  # type: ignore[union-attr]


def test_a_saved_adapter_of_before_loads_and_a_damaged_one_does_not() -> None:
    old = state.tensors(taught(SMALL))
    about = state.meta(taught(SMALL))
    state.load(learner(SMALL), old, about)
    with pytest.raises(ValueError, match=r"lacks predictor.transitions"):
        state.load(learner(BOTH), old, about)
    new, about = state.tensors(taught(BOTH)), state.meta(taught(BOTH))
    with pytest.raises(ValueError, match="unexpected tensor 'predictor"):
        state.load(learner(SMALL), {k: t for k, t in new.items() if "assoc" not in k}, about)
    with pytest.raises(ValueError, match=r"predictor.features is .* shape \(3, 12\)"):
        state.load(learner(BOTH), {**new, "predictor.features": new["predictor.features"][:3]}, about)
    said = SMALL.to_json()
    without = "\n".join(n for n in said.splitlines() if '"predict_' not in n and '"temporal_' not in n)
    assert ArrCocConfig.from_json(without) == SMALL


def test_an_adapter_on_a_model_saves_and_loads(tmp_path) -> None:
    attached = attach(tiny.dual(), replace(BOTH, width=16))
    for _ in range(2):
        attached.learn(**tiny.dual_inputs(), labels=torch.tensor([0, 1, 2]))
    attached.save_pretrained(tmp_path / "a")
    again = ArrCocModel.from_pretrained(tiny.dual(), tmp_path / "a")
    assert equal(attached.learner, again.learner)
    assert len(attached.learner.in_time.predictor.belief)


def test_to_rest_forgets_the_last_moment_alone() -> None:
    made = taught(BOTH)
    before = {k: t.clone() for k, t in state.tensors(made).items()}
    made.in_time.rest()
    gone = {"predictor.belief", "predictor.features", "association.feature_trace", "association.match_trace"}
    for name, tensor in state.tensors(made).items():
        assert torch.equal(tensor, before[name]) == (name not in gone), name
    course = made.answer(percept(60)).course
    assert course is not None
    torch.testing.assert_close(course.forecast, torch.full((1, 12), 1 / 12))


def test_what_is_followed_is_found_where_nothing_is_asked() -> None:
    """An item stands still for ten frames, then elsewhere; it is asked for in every other frame alone."""
    mass = {}
    for gain in (1.0, 0.0):
        made = learner(replace(SMALL, predict_gain=gain, predict_radius=1, spread=0))
        mass[gain] = []
        for t in range(60):
            own = torch.zeros(1, 12)
            own[0, 5 * (t // 10) % 12] = 8.0
            # things look the same from frame to frame
            tokens = tuple(site.clone() for site in percept(0).tokens)
            for site in tokens:
                site[0, 5 * (t // 10) % 12] = torch.arange(6.0) * (-1) ** torch.arange(6)
            asked = "text" if t % 2 == 0 else "image"
            seen = replace(percept(t, asked=asked), own=own, tokens=tokens)
            mass[gain].append(float(made.learn(seen, ["a"]).relevance[0, 5 * (t // 10) % 12]))
    unasked = torch.tensor(mass[1.0])[1::2]
    assert float(unasked[-4:].min()) > 0.7
    assert float(unasked.min()) > 1 / 12  # where it has just turned up, too
    torch.testing.assert_close(torch.tensor(mass[0.0])[1::2], torch.full((30,), 1 / 12))


def test_a_failed_step_lets_no_time_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    made, same = taught(BOTH), taught(BOTH)

    def fails(*_: object) -> None:
        raise FloatingPointError("not finite")

    monkeypatch.setattr("arr_coc.learner.teach", fails)
    with pytest.raises(FloatingPointError):
        made.learn(percept(70), ["new"])
    assert equal(made, same, tuple(n for n in state.tensors(same) if n.startswith(("predictor", "assoc"))))


@pytest.mark.parametrize("config", [BOTH, replace(BOTH, predict_gain=2.0), SMALL])
def test_a_rule_with_a_graph_scores_with_what_was_predicted(
    config: ArrCocConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `Teaching.forward` gives at the weights as they are is what was answered."""
    made = taught(replace(config, rule="backprop"))
    seen, found = percept(80), []
    step = made.rule.step

    def listening(ladder, climb, teaching):
        copies = {**ladder.weights(), "relevance": made.relevance_weight, "readout": teaching.readout.float()}
        found.append(teaching.forward({name: t.clone() for name, t in copies.items()}))
        return step(ladder, climb, teaching)

    monkeypatch.setattr(made.rule, "step", listening)
    values = made.answer(seen).values
    made.learn(seen, ["b"])
    torch.testing.assert_close(found[0].to(values), values, rtol=1e-4, atol=1e-6)


def test_parts_of_a_stream_are_not_merged() -> None:
    with pytest.raises(ValueError, match="predict_gain and temporal_gain"):
        merge.check({"one": learner(BOTH), "two": learner(BOTH)})


@pytest.mark.parametrize(
    ("field", "given"),
    [
        *[("predict_gain", -0.1), ("predict_gain", float("inf")), ("temporal_gain", -1.0)],
        *[("predict_radius", 0), ("predict_radius", 1.5), ("temporal_tau", 0.0), ("temporal_penalty", -1.0)],
    ],
)
def test_settings_that_cannot_be_are_refused(field: str, given: float) -> None:
    with pytest.raises(ValueError, match=field):
        ArrCocConfig(**{field: given})  # type: ignore[arg-type]
