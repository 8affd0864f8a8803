"""Unlearning a source: afterwards the readout is that of a learner which never met its samples."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from arr_coc import ArrCocConfig, ArrCocModel, Learner, Percept, attach, state
from arr_coc.sources import count
from sets import FIXED, SMALL, batches

KEPT = replace(FIXED, sources=True)
CLOSE = {"rtol": 0.0, "atol": 1e-8}
SOURCES = [None, "ann", "bob", "eve"]


def percepts(count: int, batch: int, seed: int = 0) -> list[Percept]:
    draw = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    return [
        Percept(
            (random(batch, 9, 6), random(batch, 9, 6)),
            random(batch, 9).softmax(1),
            random(batch, 4),
            own=random(batch, 9),
        )
        for _ in range(count)
    ]


def learner(**changes: Any) -> Learner:
    fixed = {"eta": 0.0, "eta_own": 0.0, "spread": 0, "sources": True}
    return Learner(ArrCocConfig(width=6, expansion=5, **{**fixed, **changes}), [6, 6], 4)


def lessons(batch: int, order: int) -> list[tuple[Percept, list[str], str | None]]:
    """24 steps of four sources in turn; "eve" alone teaches "x", and before others "y"."""
    found = []
    for k, percept in enumerate(percepts(24, batch)):
        source = SOURCES[k % 4]
        names = "yx" if source == "eve" else "aby"
        found.append((percept, [names[(k + i) % len(names)] for i in range(batch)], source))
    shuffle = torch.randperm(24, generator=torch.Generator().manual_seed(order)).tolist()
    return [found[i] for i in shuffle] if order else found[::-1]


def assert_same_readout(one: Learner, other: Learner) -> None:
    """Values, precisions, counts and sums, by the names of the classes, and what is familiar of scenes."""
    assert sorted(one.classes) == sorted(other.classes)
    rows = one.readout.rows(other.classes)
    for name in ("weight", "cross", "class_count"):
        torch.testing.assert_close(getattr(one.readout, name)[rows], getattr(other.readout, name), **CLOSE)
    for mine, its in ((one.readout.familiarity, other.readout.familiarity), (one.scenes, other.scenes)):
        torch.testing.assert_close(mine.gram, its.gram, **CLOSE)
        torch.testing.assert_close(mine.precision, its.precision, **CLOSE)
        torch.testing.assert_close(mine.leverage[3:], its.leverage[3:], **CLOSE)
    places = [
        {r.classes[k]: i for i, k in enumerate(r.partial_rows.tolist())} for r in (one.readout, other.readout)
    ]
    assert places[0].keys() == places[1].keys()
    for key in places[0]:
        for name in ("partial", "partial_precision"):
            mine = getattr(one.readout, name)[places[0][key]]
            torch.testing.assert_close(mine, getattr(other.readout, name)[places[1][key]], **CLOSE)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("gone", [["eve"], ["bob", "eve"], ["eve", "ann", "bob"]], ids="".join)
def test_a_forgotten_source_was_never_met(gone: list[str], batch: int, order: int) -> None:
    whole, without = learner(), learner()
    for percept, keys, source in lessons(batch, order):
        whole.learn(percept, keys, source)
        if source not in gone:
            without.learn(percept, keys, source)
    assert "x" in whole.classes
    for source in gone:
        assert whole.forget(source) == 6 * batch
    assert "x" not in whole.classes
    assert_same_readout(whole, without)
    probe = percepts(1, 7, seed=9)[0]
    mine, its = whole.answer(probe), without.answer(probe)
    torch.testing.assert_close(mine.values[:, whole.readout.rows(without.classes)], its.values, **CLOSE)
    for percept, keys, _ in lessons(batch, order + 1)[:3]:  # and life goes on
        whole.learn(percept, keys, "dan")
        without.learn(percept, keys)
    assert_same_readout(whole, without)
    assert whole.forget("dan") == 3 * batch


def test_the_last_bits_of_a_huge_source_do_not_stay_behind() -> None:
    """Subtracted from a total they would: 1e-16 of 1e24 is 1e8."""
    whole, without = learner(), learner()
    for percept, keys, source in lessons(2, 1):
        scene = torch.ones(2, whole.scenes.width)
        phi = whole.answer(percept).climb.phi
        rows = whole.readout.rows(keys, grow=True)
        count(whole, phi * (1e12 if source == "eve" else 1.0), scene, rows, source)
        if source != "eve":
            count(without, phi, scene, without.readout.rows(keys, grow=True), source)
    whole.forget("eve")
    assert_same_readout(whole, without)


def test_rewards_are_taken_back_too() -> None:
    whole, without = learner(explore=0.0), learner(explore=0.0)
    candidates, draw = ["a", "b", "c"], torch.Generator().manual_seed(3)
    for k, percept in enumerate(percepts(30, 2)):
        source = SOURCES[k % 4]
        choice = torch.randint(3, (2,), generator=draw)
        worth = torch.randint(3, (2,), generator=draw).double() / 2  # 0, 1/2 or 1
        for one in (whole, without):
            _, left = one.act(percept, candidates, choice)
            if one is whole or source != "eve":
                one.reward(left, worth, source)
    assert len(whole.readout.partial_rows) == 3
    whole.forget("eve")
    assert_same_readout(whole, without)
    for source in ("ann", "bob"):
        whole.forget(source)
    assert whole.classes == candidates  # they are what can be chosen, whoever says how good that is
    assert len(whole.readout.partial_rows) == 3  # of rewards that came from nobody


def test_what_waits_for_a_reward_keeps_its_answer() -> None:
    whole, without = learner(), learner()
    first, second, third = percepts(3, 2)
    whole.learn(first, ["poison", "poison"], "eve")
    left = []
    for one in (whole, without):
        _, eligibility = one.act(second, ["a", "b"], torch.tensor([1, 0]))
        left.append(one.pending.add([eligibility]))
    whole.forget("eve")
    assert whole.classes == ["a", "b"]
    for one, number in zip((whole, without), left, strict=True):
        (group,) = one.pending.get(number)
        assert [e.row for e in group] == [1, 0]
        one.reward(group, torch.tensor([0.0, 1.0]))
        one.learn(third, ["a", "c"])
    assert_same_readout(whole, without)


@pytest.mark.parametrize(
    "rule", ["attention_gated", "feedback_alignment", "target_propagation", "predictive_coding"]
)
@pytest.mark.parametrize("consolidation", ["off", "ewc"])
def test_every_row_of_a_class_goes_with_it_and_no_later_one_gets_its_feedback(
    rule: str, consolidation: str
) -> None:
    one = learner(
        rule=rule,
        eta_ladder=0.01,
        optimizer="adam",
        consolidation=consolidation,
        surprise="answer",
        ladder_gain=0.5,
    )
    steps = percepts(8, 2)
    one.learn(steps[0], ["x", "a"], "eve")
    one.learn(steps[1], ["b", "a"])
    before = {name: one.rule.state[name].clone() for name in one.rule.per_class if name in one.rule.state}
    one.forget("eve")
    assert one.classes == ["a", "b"]
    for name, rows in before.items():
        assert torch.equal(one.rule.state[name], rows[1:])
    assert one.answers is not None
    assert len(one.answers.mean) == 2
    for percept in steps[2:]:
        one.learn(percept, ["c", "b"], "eve")
    assert one.classes == ["a", "b", "c"]
    for name in before:
        rows = one.rule.state[name]
        assert len(rows) == 3
        if rows.any():
            assert not torch.equal(rows[2], rows[1])
    saved = {k: t.clone() for k, t in state.tensors(one).items()}
    again = Learner(one.config, [6, 6], 4)
    state.load(again, saved, state.meta(one))
    for each in (one, again):
        each.learn(steps[0], ["d", "a"], "ann")
        each.forget("eve")
    mine, its = state.tensors(one), state.tensors(again)
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert state.meta(one) == state.meta(again)


def test_off_costs_nothing_and_on_changes_no_answer() -> None:
    off, on = learner(sources=False, eta=0.3), learner(eta=0.3)
    for percept, keys, source in lessons(2, 1):
        off.learn(percept, keys)
        on.learn(percept, keys, source)
    mine, its = state.tensors(off), state.tensors(on)
    assert off.sources is None
    assert not any(name.startswith("sources.") for name in mine)
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    width, scene, classes = off.readout.width, off.scenes.width, {None: 3, "ann": 3, "bob": 3, "eve": 2}
    bytes_each = 8 * (width**2 + scene**2 + 12)  # as documented; and the table of pairs, 16 bytes each
    more = sum(bytes_each + n * (8 * width + 8 + 16) for n in classes.values())
    assert state.size(on) - state.size(off) == more


def test_merged_sources_are_forgotten_together() -> None:
    attached, one = attach(tiny.dual(), KEPT), attach(tiny.dual(), KEPT)
    attached.add_adapter("more")
    for place, name in enumerate(attached.adapters):
        attached.set_plastic([name])
        for k, batch in enumerate(batches(6, seed=place)):
            source = SOURCES[k % 4]
            attached.learn(**batch, source=source)
            if source != "eve":
                one.learn(**batch)
    attached.merge(["default", "more"], into="both")
    assert attached.sources["both"] == {"ann": 16, "bob": 8, "eve": 8}
    assert attached.forget("eve") == {"default": 4, "more": 4, "both": 8}
    assert_same_readout(attached.adapter("both"), one.learner)
    for model in (attached, one):
        model.detach()


@pytest.mark.parametrize("kind", ["dual", "generative"])
def test_a_saved_adapter_forgets_as_the_one_that_was_saved(kind: str, tmp_path: Path) -> None:
    model: Any = tiny.dual() if kind == "dual" else tiny.generative()
    config = ArrCocConfig(width=16, expansion=8, sources=True)  # U moves: phi is as it was when it came

    def lesson(k: int) -> dict[str, torch.Tensor]:
        if kind == "dual":
            return batches(6, seed=1)[k]
        return tiny.answered(tiny.generative_inputs(), torch.tensor([[7 + k, 2], [8, 2]]))

    attached = attach(model, config)
    for k in range(6):
        attached.learn(**lesson(k), source=["ann", "eve"][k % 2])
    attached.save_pretrained(tmp_path / "saved")
    expected = attached.forget("eve")
    attached.learn(**lesson(0), source="ann")
    kept = {k: t.clone() for k, t in state.tensors(attached.learner).items()}
    attached.detach()
    again = ArrCocModel.from_pretrained(model, tmp_path / "saved")
    assert again.sources == {"default": {"ann": 12, "eve": 12}}
    assert again.forget("eve") == expected
    again.learn(**lesson(0), source="ann")
    found = state.tensors(again.learner)
    assert all(torch.equal(kept[name], found[name]) for name in kept)
    again.detach()


def test_what_cannot_be_is_said_before_anything_changes() -> None:
    attached, plain = attach(tiny.dual(), KEPT), attach(tiny.dual(), SMALL)
    batch = batches(1)[0]
    attached.learn(**batch, source="ann")
    handle = attached.act(**{k: v for k, v in batch.items() if k != "labels"})
    before = {k: t.clone() for k, t in state.tensors(attached.learner).items()}
    for name, said in (("anna", r"'anna': there are 'ann'; did you mean 'ann'\?"), ("", "there are 'ann'")):
        with pytest.raises(ValueError, match=said):
            attached.forget(name)
    for source in ("", 7):
        with pytest.raises(ValueError, match="a text that is not empty"):
            attached.learn(**batch, source=source)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a text that is not empty"):
        attached.reward(handle, 1.0, source="")
    now = state.tensors(attached.learner)
    assert all(torch.equal(before[name], now[name]) for name in before)
    with pytest.raises(ValueError, match="sources=True"):
        plain.learn(**batch, source="ann")
    with pytest.raises(ValueError, match="sources=True"):
        plain.forget("ann")
    assert int(plain.learner.step) == 0
    for changes in ({"readout": "delta"}, {"forgetting": 0.9}, {"transport": 5}):
        with pytest.raises(ValueError, match="sources=True with"):
            ArrCocConfig(sources=True, **changes)  # type: ignore[arg-type]
    damaged = {**state.tensors(attached.learner)}
    damaged["sources.pairs"] = damaged["sources.pairs"] + 9
    with pytest.raises(ValueError, match="points beyond"):
        state.load(attached.learner, damaged, state.meta(attached.learner))
    for model in (attached, plain):
        model.detach()
