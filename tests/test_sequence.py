"""Error modules and associations over token sequences: closed forms, planted chains, padding, saving."""

from dataclasses import replace

import pytest
import torch

from arr_coc import ArrCocConfig, Learner, state
from arr_coc.relevance.temporal import TemporalAssociation
from arr_coc.sequence import SequenceErrors, Text, follows

WIDE = 12


def chain(seed: int, texts: int, length: int = 10, order: bool = True) -> torch.Tensor:
    """Token states of a planted chain: word j is followed by word j + 1 of 7 in nine of ten cases."""
    draw = torch.Generator().manual_seed(seed)
    words = torch.randn(7, WIDE, generator=torch.Generator().manual_seed(0))
    at = torch.randint(7, (texts,), generator=draw)
    rows = []
    for _ in range(length):
        rows.append(at)
        jump = torch.rand(texts, generator=draw) < 0.1
        at = torch.where(jump, torch.randint(7, (texts,), generator=draw), (at + 1) % 7)
    ids = torch.stack(rows, 1)
    if not order:
        ids = torch.stack([row[torch.randperm(length, generator=draw)] for row in ids])
    return words[ids] + 0.1 * torch.randn(texts, length, WIDE, generator=draw)


def taught(states: torch.Tensor, **options: float) -> SequenceErrors:
    made = SequenceErrors(WIDE, WIDE, **options)  # type: ignore[arg-type]
    for one in states:
        made.learn(one[None], torch.ones(1, len(one), dtype=torch.bool))
    return made


def missed(errors: SequenceErrors, states: torch.Tensor) -> float:
    z = errors.features(states)
    return float(((z[:, 1:] - errors.predicted(z[:, :-1])) ** 2).mean())


def everywhere(states: torch.Tensor) -> torch.Tensor:
    return torch.ones(states.shape[:2], dtype=torch.bool)


def test_one_step_is_the_closed_form_of_key_and_of_precision() -> None:
    states = torch.randn(1, 2, WIDE, generator=torch.Generator().manual_seed(3))
    made = SequenceErrors(WIDE, WIDE, eta=0.1, ridge=2.0)
    made.learn(states, everywhere(states))
    z = torch.nn.functional.layer_norm(states[0].double(), (WIDE,))
    now, after = torch.cat([z[0], torch.ones(1).double()]), z[1]
    key = now / 2 / (1 + now @ now / 2)
    torch.testing.assert_close(made.weight, torch.outer(after, key), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        made.log_precision, (0.1 * 0.5 * (1 - after**2)).clamp_min(-1), atol=1e-12, rtol=0
    )


def test_one_step_without_a_key_is_eta_precision_error_times_state_normalised() -> None:
    states = torch.randn(1, 2, WIDE, generator=torch.Generator().manual_seed(3))
    made = SequenceErrors(WIDE, WIDE, eta=0.1, key=False)
    made.learn(states, everywhere(states))
    z = torch.nn.functional.layer_norm(states[0].double(), (WIDE,))
    now, after = torch.cat([z[0], torch.ones(1).double()]), z[1]
    wanted = 0.1 * torch.outer(after, now) / (1 + 0.1 * now @ now)
    torch.testing.assert_close(made.weight, wanted, atol=1e-12, rtol=0)


def test_a_planted_chain_is_learned_as_well_as_by_least_squares() -> None:
    train, held = chain(1, 150), chain(2, 100)
    made = taught(train)
    z = made.features(train)
    now = torch.nn.functional.pad(z[:, :-1], (0, 1), value=1.0).flatten(0, 1)
    best = torch.linalg.lstsq(now, z[:, 1:].flatten(0, 1)).solution
    h = made.features(held)
    floor = float(((h[:, 1:] - torch.nn.functional.pad(h[:, :-1], (0, 1), value=1.0) @ best) ** 2).mean())
    assert missed(made, held) < 1.01 * floor
    fresh = SequenceErrors(WIDE, WIDE)
    assert floor < 0.6 * missed(fresh, held)
    before = fresh.surprise(h, everywhere(held)).mean()
    assert made.surprise(h, everywhere(held)).mean() < before - 0.2


def test_the_plain_rule_learns_a_chain_too_but_less_of_it() -> None:
    train, held = chain(1, 150), chain(2, 100)
    keyed, plain = taught(train), taught(train, key=False, eta=0.003)
    assert missed(keyed, held) < missed(plain, held) < missed(SequenceErrors(WIDE, WIDE), held)


def test_words_in_random_order_give_no_gain() -> None:
    train, held = chain(1, 150, order=False), chain(2, 100, order=False)
    made = taught(train)
    z = made.features(held)
    mean = made.features(train)[:, 1:].mean((0, 1))
    assert missed(made, held) > 0.97 * float(((z[:, 1:] - mean) ** 2).mean())
    ordered = taught(chain(1, 150)).announced(made.features(chain(2, 100)), everywhere(held))
    assert ordered[:, 1:].mean() > 0.3 > 0.1 > made.announced(z, everywhere(held))[:, 1:].mean().abs()


def test_what_follows_is_strengthened_and_what_precedes_is_weakened() -> None:
    made, held = taught(chain(1, 150)), chain(2, 50)
    mask = everywhere(held)
    forward = made.announced(made.features(held), mask)[:, 1:].mean()
    backward = made.announced(made.features(held.flip(1)), mask)[:, 1:].mean()
    assert forward > 0.3
    assert backward < -0.3


def test_the_association_is_that_of_two_traces() -> None:
    """The same sum over pairs as `TemporalAssociation` finds spike by spike, both sides alike."""
    states = chain(5, 3, length=6)
    made = SequenceErrors(WIDE, WIDE, tau=2.0)
    made.learn(states, everywhere(states))
    by_traces = torch.zeros(WIDE, WIDE, dtype=torch.float64)
    for text in made.features(states):
        traces = TemporalAssociation(WIDE, WIDE, tau=2.0, penalty=1.0)
        for z in text:
            traces.pair(z, z)
        by_traces += traces.association
    torch.testing.assert_close(made.association - made.association.T, by_traces, atol=1e-10, rtol=0)


def text(states: torch.Tensor, mask: torch.Tensor | None = None) -> Text:
    mask = everywhere(states) if mask is None else mask
    draw = torch.Generator().manual_seed(9)
    attention = torch.rand(states.shape[:2], generator=draw)
    words = mask.clone()
    words[:, 0] = False
    return Text(states, mask, attention, words, states[:, 0])


def test_padding_changes_nothing_and_gets_nothing() -> None:
    states = chain(1, 4, length=7)
    padded = torch.cat([states, torch.full((4, 3, WIDE), 1e3)], 1)
    mask = torch.arange(10).expand(4, 10) < 7
    one, two = SequenceErrors(WIDE, WIDE, gain=0.5), SequenceErrors(WIDE, WIDE, gain=0.5)
    one.learn(states, everywhere(states))
    two.learn(padded, mask)
    for name in one.state_names:
        torch.testing.assert_close(one.get_buffer(name), two.get_buffer(name), atol=1e-9, rtol=0)
    short, wide = text(states), text(padded, mask)
    wide.attention[:, :7] = short.attention
    mine, its = one.read(short), two.read(wide)
    torch.testing.assert_close(mine.relevance, its.relevance[:, :7], atol=1e-6, rtol=0)
    torch.testing.assert_close(mine.surprise, its.surprise[:, :7], atol=1e-5, rtol=0)
    torch.testing.assert_close(mine.mean, its.mean, atol=1e-5, rtol=0)
    assert not its.relevance[:, 7:].any()
    assert not its.surprise[:, 7:].any()
    torch.testing.assert_close(its.relevance.sum(1), torch.ones(4))


def test_texts_of_a_batch_do_not_follow_each_other() -> None:
    states = chain(1, 2, length=5)
    both, apart = SequenceErrors(WIDE, WIDE, eta=0.0), SequenceErrors(WIDE, WIDE, eta=0.0)
    both.learn(states, everywhere(states))
    for one in states:
        apart.learn(one[None], torch.ones(1, 5, dtype=torch.bool))
    for name in both.state_names:
        torch.testing.assert_close(both.get_buffer(name), apart.get_buffer(name), atol=1e-9, rtol=0)


def test_relevance_is_attention_context_and_features_over_the_words() -> None:
    states = chain(1, 3, length=6)
    made, given = SequenceErrors(WIDE, WIDE), text(states)
    z = torch.nn.functional.layer_norm(states, (WIDE,))
    cosine = torch.nn.functional.cosine_similarity(z, z[:, :1], dim=-1)
    weight = given.attention * cosine.exp() * given.words
    torch.testing.assert_close(made.read(given).relevance, weight / weight.sum(1, keepdim=True))


def test_a_text_of_one_token_or_of_markers_alone_is_no_fault() -> None:
    states = chain(1, 2, length=1)
    made = SequenceErrors(WIDE, WIDE, gain=1.0)
    made.learn(states, everywhere(states))
    assert int(made.count) == 0
    found = made.read(text(states))
    torch.testing.assert_close(found.relevance, torch.ones(2, 1))
    assert not found.mean.any()


def test_follows_needs_both_tokens() -> None:
    mask = torch.tensor([[True, True, False, True]])
    assert follows(mask).tolist() == [[True, False, False]]


def test_wide_states_are_reduced_and_the_fixed_matrix_is_part_of_the_state() -> None:
    made = SequenceErrors(40, WIDE, seed=3)
    gram = made.project @ made.project.T
    torch.testing.assert_close(gram, torch.eye(WIDE).double() * 40 / WIDE, atol=1e-5, rtol=0)
    assert "project" in made.state_names


def test_a_learner_saves_it_and_goes_on_bit_for_bit() -> None:
    config = ArrCocConfig(width=6, expansion=4, sequence=True, sequence_gain=1.0)
    one, two = (Learner(config, [6], 4, text_width=WIDE) for _ in range(2))
    first, second = text(chain(1, 3)), text(chain(2, 3))
    one.read_on(first)
    state.load(two, {k: t.clone() for k, t in state.tensors(one).items()}, state.meta(one))
    for learner in (one, two):
        learner.read_on(second)
    mine, its = state.tensors(one), state.tensors(two)
    assert any(name.startswith("sequence.") for name in mine)
    assert all(torch.equal(mine[name], its[name]) for name in mine)


def test_off_has_no_state() -> None:
    off = Learner(ArrCocConfig(width=6, expansion=4), [6], 4, text_width=WIDE)
    off.read_on(text(chain(1, 3)))
    assert off.sequence is None
    assert not any(name.startswith("sequence.") for name in state.tensors(off))
    nothing_to_read = Learner(replace(off.config, sequence=True), [6], 4)
    assert nothing_to_read.sequence is None


@pytest.mark.parametrize("field", ["eta_sequence", "sequence_gain"])
def test_a_negative_step_or_gain_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        ArrCocConfig(**{field: -1.0})  # type: ignore[arg-type]
