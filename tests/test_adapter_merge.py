"""Merging adapters that were trained apart: what it adds up to, and where it would not be exact."""

import itertools
from dataclasses import replace

import pytest
import torch

import tiny
from arr_coc import attach
from sets import CONTEXT, FIXED, SMALL, batches, same, states, three


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
@pytest.mark.parametrize("context", [None, CONTEXT], ids=["unasked", "asked"])
def test_merged_statistics_are_those_of_one_who_saw_everything(order: tuple[str, ...], context) -> None:
    asked = {} if context is None else {"context_ids": context}
    config = SMALL if context is None else FIXED  # asked, relevance weighs the samples
    attached, one = three(config), attach(tiny.dual(), config)
    streams = {name: batches(3, seed=place) for place, name in enumerate(attached.adapters)}
    for name in order:
        attached.set_plastic([name])
        for batch in streams[name]:
            attached.learn(**batch, **asked)
    for name in "bca":
        for batch in streams[name]:
            one.learn(**batch, **asked)
    parts = states(attached)
    attached.merge(order, into="all")
    now = states(attached)
    assert all(same(parts[name], now[name]) for name in parts)
    merged, whole = attached.adapter("all"), one.learner
    assert set(merged.classes) == set(whole.classes)
    rows = merged.readout.rows(whole.classes)
    for name in ("weight", "cross", "class_count"):
        mine, its = getattr(merged.readout, name)[rows], getattr(whole.readout, name)
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-10)
    for mine, its in (
        (merged.readout.familiarity, whole.readout.familiarity),
        (merged.scenes, whole.scenes),
    ):
        torch.testing.assert_close(mine.precision, its.precision, rtol=0, atol=1e-10)
        torch.testing.assert_close(mine.gram, its.gram, rtol=0, atol=1e-9)
        torch.testing.assert_close(mine.leverage[3:], its.leverage[3:], rtol=1e-12, atol=0)
    assert int(merged.step) == int(whole.step) == 36
    sure = [float(attached.adapter(name).confidence.log_scale) for name in "abc"]
    assert float(merged.confidence.log_scale) == pytest.approx(sum(sure) / 3)  # twelve samples each
    assert len(set(sure)) == 3
    if context is not None:
        key = merged.context_key.inverse_correlation
        torch.testing.assert_close(key, whole.context_key.inverse_correlation, rtol=0, atol=1e-10)
        assert int(merged.context_key.count) == int(whole.context_key.count)
        assert float(merged.readout.familiarity.leverage[3]) < 30  # they weigh less than one each
    assert all(torch.isfinite(t).all() for t in now["all"].values() if t.is_floating_point())
    for model in (attached, one):
        model.detach()


def test_confidence_is_averaged_by_samples() -> None:
    attached = three(FIXED)
    for place, name in enumerate(attached.adapters):
        attached.set_plastic([name])
        for batch in batches(1 + 2 * place, seed=place):
            attached.learn(**batch)
    sure = [float(attached.adapter(name).confidence.log_scale) for name in "abc"]
    attached.merge(["a", "b", "c"], into="all")
    merged = float(attached.adapter("all").confidence.log_scale)
    assert merged == pytest.approx((sure[0] + 3 * sure[1] + 5 * sure[2]) / 9)
    assert merged != pytest.approx(sum(sure) / 3)
    attached.detach()


def test_rewards_add_up_too() -> None:
    """Rows that were rewarded on their own keep statistics of their own, and those add as well."""
    attached, one = three(FIXED), attach(tiny.dual(), FIXED)
    for place, name in enumerate(attached.adapters):
        attached.set_plastic([name])
        for batch in batches(3, seed=place):
            right = batch.pop("labels")
            handle = attached.act(**batch)
            reward = (handle.choice == right).double() * 0.5 + 0.25  # never 1, which would tell all
            attached.reward(handle, reward)
            seen = one.perceive(**batch)
            _, left = one.learner.act(seen.percept, seen.keys, handle.choice)
            one.learner.reward(left, reward)
        attached.learn(**batches(1, seed=place + 7)[0])
        one.learn(**batches(1, seed=place + 7)[0])
    assert len(one.learner.readout.partial_rows) > 1
    attached.merge(["c", "a", "b"], into="all")
    merged, whole = attached.adapter("all").readout, one.learner.readout
    rows = merged.rows(whole.classes)
    torch.testing.assert_close(merged.weight[rows], whole.weight, rtol=0, atol=1e-10)
    places = [{r.classes[row]: k for k, row in enumerate(r.partial_rows.tolist())} for r in (merged, whole)]
    assert places[0].keys() == places[1].keys()
    for key, name in itertools.product(places[0], ("partial", "partial_precision")):
        mine, its = (getattr(r, name)[p[key]] for r, p in zip((merged, whole), places, strict=True))
        torch.testing.assert_close(mine, its, rtol=0, atol=1e-9)
    for model in (attached, one):
        model.detach()


def test_a_merged_adapter_goes_on_as_the_whole_would() -> None:
    attached, one = three(FIXED), attach(tiny.dual(), FIXED)
    for place, name in enumerate("abc"):
        attached.set_plastic([name])
        for batch in batches(2, seed=place):
            attached.learn(**batch)
            one.learn(**batch)
    attached.merge(["a", "b", "c"], into="b")  # in the place of one of them
    assert attached.adapters == ["a", "b", "c"]
    attached.set_plastic(["b"])
    last = batches(1, seed=8)[0]
    for model in (attached, one):
        model.learn(**last)
    merged, whole = attached.adapter("b").readout, one.learner.readout
    rows = merged.rows(whole.classes)
    torch.testing.assert_close(merged.weight[rows], whole.weight, rtol=0, atol=1e-10)
    # when classes were met counts on, as if the parts had come in turn
    assert merged.last_met[rows].tolist() == whole.last_met.tolist()
    for model in (attached, one):
        model.detach()


def test_a_merge_that_would_not_be_exact_is_refused() -> None:
    attached = three()
    attached.add_adapter("other", replace(SMALL, expansion=4))
    attached.add_adapter("seeded", replace(SMALL, seed=5))
    attached.add_adapter("delta", replace(SMALL, readout="delta"))
    attached.set_plastic(["a"])
    for batch in batches(2):
        attached.learn(**batch, context_ids=CONTEXT)  # moves U and the own gain of one of them
    before = states(attached)
    for names, words in (
        (["a", "b"], "own_gain.weight, relevance_weight differ"),
        (["b", "other"], "made with expansion=8 and 4"),
        (["b", "seeded"], "made with seed=0 and 5"),
        (["delta", "b"], "keeps no statistics that add"),
        (["b"], "two adapters or more"),
        (["b", "b"], "names an adapter twice"),
        (["b", "d"], "no adapter 'd'"),
    ):
        with pytest.raises(ValueError, match=words):
            attached.merge(names, into="all")
    with pytest.raises(ValueError, match="there is one called 'a'"):
        attached.merge(["b", "c"], into="a")
    centred = three(replace(FIXED, centre_contexts=True))
    centred.learn(**batches(1)[0], context_ids=CONTEXT)
    with pytest.raises(ValueError, match=r"context_key\.mean differ"):
        centred.merge(["a", "b"], into="all")
    ladder = three(replace(SMALL, eta_ladder=0.1))
    ladder.set_plastic(["b"])
    for batch in batches(2):
        ladder.learn(**batch)
    with pytest.raises(ValueError, match=r"ladder\.\w+_0.* differ"):
        ladder.merge(["b", "c"], into="all")
    now = states(attached)
    assert now.keys() == before.keys()
    assert all(same(before[name], now[name]) for name in now)
    for model in (attached, centred, ladder):
        model.detach()
