"""Several adapters on one model: who answers, who learns, what merging adds up to, how a set is saved."""

import itertools
from dataclasses import replace

import pytest
import torch

import tiny
from arr_coc import ArrCocConfig, ArrCocModel, attach, state

SMALL = ArrCocConfig(width=16, expansion=8)
FIXED = replace(SMALL, eta=0.0, eta_own=0.0)  # U and the own gain stay as they are
CONTEXT = torch.tensor([1, 2, 49])


def batches(count: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Steps of four pictures each, labelled with one of five texts, in an order of the texts of their own."""
    draw, texts = torch.Generator().manual_seed(seed), tiny.dual_inputs()["input_ids"]
    found = []
    for _ in range(count):
        labels = torch.randint(5, (4,), generator=draw)
        pixels = torch.randn(4, 3, 32, 32, generator=draw) + labels[:, None, None, None] * 0.3
        order = torch.randperm(5, generator=draw)
        found.append({"pixel_values": pixels, "input_ids": texts[order], "labels": order.argsort()[labels]})
    return found


def states(attached: ArrCocModel) -> dict[str, dict[str, torch.Tensor]]:
    return {
        name: {k: t.clone() for k, t in state.tensors(attached.adapter(name)).items()}
        for name in attached.adapters
    }


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def three(config: ArrCocConfig = SMALL) -> ArrCocModel:
    attached = attach(tiny.dual(), config)
    attached.rename("default", "a")
    for name in "bc":
        attached.add_adapter(name)
    return attached


def taught(config: ArrCocConfig = SMALL) -> ArrCocModel:
    """Three adapters, each with a stream of its own behind it."""
    attached = three(config)
    for place, name in enumerate(attached.adapters):
        attached.set_plastic([name])
        for batch in batches(3, seed=place):
            attached.learn(**batch)
    return attached


# -- who answers ---------------------------------------------------------------------------------------------


def test_a_fresh_adapter_neither_answers_nor_learns_until_it_is_told_to() -> None:
    attached, (batch, *_) = three(), batches(1)
    assert (attached.adapters, attached.active, attached.plastic) == (["a", "b", "c"], ["a"], ["a"])
    fresh = states(attached)
    attached.learn(**batch)
    now = states(attached)
    assert same(fresh["b"], now["b"])
    assert not same(fresh["a"], now["a"])
    assert attached.learner is attached.adapter("a")
    attached.detach()


def test_several_are_fused_in_turn_each_on_what_the_one_before_made() -> None:
    """By the definition: log p' = log((1 - t) p + t softmax(s v)), once for each."""
    attached = taught()
    inputs = {k: v for k, v in batches(1, seed=9)[0].items() if k != "labels"}
    seen = attached.perceive(**inputs)
    results = {}
    for order in (["b", "c"], ["c", "b"], ["c", "a", "b"]):
        attached.set_active(order)
        out = attached(**inputs)
        scores, answers = seen.output.logits_per_image.double(), []
        for name in order:
            learner = attached.adapter(name)
            answer = learner.answer(seen.percept)
            known = [learner.classes.index(key) for key in seen.keys]
            learned = (learner.config.value_scale * answer.values[:, known]).softmax(1)
            t, own = answer.trust.unsqueeze(1), scores.softmax(1)
            scores = scores + torch.log((1 - t) * own + t * learned) - own.log()
            answers.append(answer)
        torch.testing.assert_close(out.logits_per_image.double(), scores, rtol=1e-5, atol=1e-5)
        relevance = sum(a.relevance for a in answers) / len(answers)
        torch.testing.assert_close(out.relevance, relevance)
        torch.testing.assert_close(out.relevance.sum(1), torch.ones(4))
        results[tuple(order)] = out.logits_per_image
    assert not torch.allclose(results["b", "c"], results["c", "b"], atol=1e-3)
    attached.detach()


def test_without_an_active_adapter_the_model_answers_alone_and_may_still_learn() -> None:
    attached = taught()
    inputs = {k: v for k, v in batches(1, seed=9)[0].items() if k != "labels"}
    with attached.disable():
        bare = attached(**inputs).logits_per_image
    assert not torch.equal(attached(**inputs).logits_per_image, bare)
    attached.set_active([])
    out = attached(**inputs)
    assert torch.equal(out.logits_per_image, bare)
    assert not hasattr(out, "relevance")
    before = states(attached)
    attached.learn(**batches(1, seed=9)[0])
    assert not same(before["c"], states(attached)["c"])  # which is the plastic one
    attached.processor = object()
    with pytest.raises(ValueError, match="no adapter is active, of a, b, c"):
        attached.predict([object()], ["a"])
    attached.detach()


def test_a_generative_model_writes_with_all_active_adapters() -> None:
    """One knows the first word and nothing of the second, the other the second: together they write both."""
    model, inputs = tiny.generative(), tiny.generative_inputs()
    attached = attach(model, SMALL)
    attached.add_adapter("end")
    words = torch.tensor([[7, 2], [8, 2]])
    for place, name in enumerate(attached.adapters):
        attached.set_plastic([name])
        lesson = tiny.answered(inputs, words)
        lesson["labels"] = lesson["labels"].clone()
        lesson["labels"][:, -1 - place] = -100
        for _ in range(10):
            attached.learn(**lesson)
    start = inputs["input_ids"].shape[1]
    asked = {"max_new_tokens": 2, "do_sample": False}
    written = {}
    for names in (["default"], ["end"], ["default", "end"], ["end", "default"]):
        attached.set_active(names)
        written[tuple(names)] = attached.generate(**inputs, **asked)[:, start:]
    assert written["default",][:, 0].tolist() == [7, 8]
    assert torch.equal(written["default", "end"], words)
    attached.set_active([])
    out = attached.generate(**inputs, **asked)
    assert torch.equal(out, attached.detach().generate(**inputs, **asked))


# -- who learns ----------------------------------------------------------------------------------------------


def test_every_plastic_adapter_learns_from_one_forward_pass() -> None:
    together, alone = three(), attach(tiny.dual(), SMALL)
    together.set_plastic(["c", "b"])
    passes = []
    hook = together.model.register_forward_hook(lambda *_: passes.append(1))
    fresh = states(together)
    for batch in batches(3):
        together.learn(**batch)
        alone.learn(**batch)
    hook.remove()
    assert len(passes) == 3
    expected, now = states(alone)["default"], states(together)
    assert same(now["b"], expected)
    assert same(now["c"], expected)
    assert same(now["a"], fresh["a"])
    together.set_active(["a", "b", "c"])
    hook = together.model.register_forward_hook(lambda *_: passes.append(1))
    together(**{k: v for k, v in batches(1)[0].items() if k != "labels"})
    hook.remove()
    assert len(passes) == 4
    for one in (together, alone):
        one.detach()


def test_an_action_is_rewarded_to_all_who_took_it_and_still_learn() -> None:
    attached = three(replace(SMALL, explore=0.5))
    attached.set_plastic(["b", "c"])
    inputs = {k: v for k, v in batches(1)[0].items() if k != "labels"}
    with pytest.raises(KeyError, match="unknown"):
        attached.reward(type(attached.act(**inputs))(99, torch.zeros(4)), 1.0)
    handle, late, lost = (attached.act(**inputs) for _ in range(3))
    assert handle.numbers == {"b": 1, "c": 1}
    fresh = states(attached)
    attached.reward(handle, torch.tensor([1.0, 0.0, 1.0, 0.0]))
    now = states(attached)
    assert same(fresh["a"], now["a"])
    assert int(now["b"]["step"]) == int(now["c"]["step"]) == 4
    with pytest.raises(KeyError, match="rewarded already"):
        attached.reward(handle, 1.0)
    attached.set_plastic(["c"])
    attached.reward(late, 1.0)
    assert [int(t["step"]) for t in states(attached).values()] == [0, 4, 8]
    attached.set_plastic(["b", "c"])
    with pytest.raises(KeyError, match="rewarded already"):  # not even to the one that did not learn then
        attached.reward(late, 1.0)
    attached.delete_adapter("c")
    attached.rename("b", "d")
    with pytest.raises(KeyError, match="taken with b, c, and none of them learns now: plastic are d"):
        attached.reward(lost, 1.0)
    attached.detach()


def test_words_are_rewarded_to_all_who_wrote_them() -> None:
    attached, inputs = attach(tiny.generative(), SMALL), tiny.generative_inputs()
    attached.add_adapter("b")
    attached.set_plastic(["default", "b"])
    handle = attached.act(**inputs, max_new_tokens=3, do_sample=False)
    written = (handle.choice != 0).sum()
    assert attached.reward(handle, torch.tensor([1.0, 0.0])).shape == (written,)
    assert same(*states(attached).values())
    attached.detach()


def test_learning_without_a_plastic_adapter_is_an_error() -> None:
    attached, (batch, *_) = three(), batches(1)
    attached.set_plastic([])
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    for do in (lambda: attached.learn(**batch), lambda: attached.act(**inputs)):
        with pytest.raises(ValueError, match="no adapter is plastic, of a, b, c"):
            do()
    attached.detach()


# -- merging -------------------------------------------------------------------------------------------------


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
    if context is not None:
        key = merged.context_key.inverse_correlation
        torch.testing.assert_close(key, whole.context_key.inverse_correlation, rtol=0, atol=1e-10)
        assert int(merged.context_key.count) == int(whole.context_key.count)
        assert float(merged.readout.familiarity.leverage[3]) < 30  # they weigh less than one each
    assert all(torch.isfinite(t).all() for t in now["all"].values() if t.is_floating_point())
    for model in (attached, one):
        model.detach()


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


# -- coming, going, saving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "a\\b", "a..b", ".git", "a b", "é", "A", None, 3])
def test_a_name_that_cannot_be_a_folder_is_refused(name) -> None:
    attached = three()
    for do in (attached.add_adapter, lambda n: attached.rename("b", n), lambda n: attached.merge("bc", n)):
        with pytest.raises((ValueError, TypeError)):
            do(name)
    assert attached.adapters == ["a", "b", "c"]
    attached.detach()


def test_sites_are_shared() -> None:
    attached = attach(tiny.dual(), replace(SMALL, sites=(1, 2)))
    with pytest.raises(ValueError, match=r"sites \(0,\) .* share its sites, which are \(1, 2\)"):
        attached.add_adapter("b", replace(SMALL, sites=(0,)))
    with pytest.raises(ValueError, match="site 9 does not exist"):
        attached.add_adapter("b", replace(SMALL, sites=(9,)))
    for name, sites in (("b", ()), ("c", (1, -2))):
        attached.add_adapter(name, replace(SMALL, sites=sites, width=8))
        assert attached.adapter(name).config.sites == (1, 2)
        assert attached.adapter(name).ladder.width == 8
    attached.detach()


def test_deleting_takes_an_adapter_out_of_every_set() -> None:
    attached = three()
    attached.set_active(["b", "a"])
    attached.set_plastic(["a", "b"])
    size = attached.inspect().state_bytes
    attached.delete_adapter("a")
    assert (attached.adapters, attached.active, attached.plastic) == (["b", "c"], ["b"], ["b"])
    assert attached.inspect().state_bytes == size * 2 // 3
    attached.delete_adapter("c")
    with pytest.raises(ValueError, match="'b' is the only adapter"):
        attached.delete_adapter("b")
    for do in (attached.delete_adapter, attached.adapter, lambda n: attached.rename(n, "x")):
        with pytest.raises(ValueError, match="no adapter 'bb', only b; did you mean 'b'"):
            do("bb")
    for names in ("b", [3]):
        with pytest.raises(TypeError, match="no list of adapters' names"):
            attached.set_active(names)
    attached.detach()


def test_a_set_is_saved_whole_and_goes_on_as_it_was(tmp_path) -> None:
    attached = taught()
    attached.rename("b", "run-2.b")
    attached.set_active(["c", "a"])
    attached.set_plastic(["run-2.b", "c"])
    inputs = {k: v for k, v in batches(1, seed=9)[0].items() if k != "labels"}
    handle = attached.act(**inputs)
    attached.save_pretrained(tmp_path / "set")
    names = {p.parent.name for p in (tmp_path / "set").rglob("arr_coc_config.json")}
    assert names == {"set", "run-2.b", "c"}
    resumed = ArrCocModel.from_pretrained(tiny.dual(), tmp_path / "set")
    for what in ("adapters", "active", "plastic"):
        assert getattr(resumed, what) == getattr(attached, what)
    for one in (attached, resumed):
        one.reward(handle, torch.tensor([1.0, 0.0, 0.5, 0.0]))
        one.learn(**batches(1, seed=4)[0])
    before, now = states(attached), states(resumed)
    assert before.keys() == now.keys()
    assert all(same(before[name], now[name]) for name in now)
    assert torch.equal(attached(**inputs).logits_per_image, resumed(**inputs).logits_per_image)
    for one in (attached, resumed):
        one.detach()


def test_adapters_of_a_set_are_loaded_by_name_and_from_several_places(tmp_path) -> None:
    attached = taught()
    attached.save_pretrained(tmp_path / "set")
    kept = states(attached)
    attached.detach()
    some = ArrCocModel.from_pretrained(tiny.dual(), tmp_path / "set", adapters=["c", "a"])
    assert (some.adapters, some.active, some.plastic) == (["c", "a"], ["a"], ["c"])
    alone = ArrCocModel.from_pretrained(tiny.dual(), tmp_path / "set", subfolder="b")
    assert (alone.adapters, alone.active, alone.plastic) == (["b"], ["b"], ["b"])
    alone.load_adapter(tmp_path / "set", "first")
    alone.load_adapter(tmp_path / "set", adapter="c")
    assert (alone.adapters, alone.active) == (["b", "first", "c"], ["b"])
    for one, name, its in ((some, "c", "c"), (some, "a", "a"), (alone, "b", "b"), (alone, "first", "a")):
        assert same(states(one)[name], kept[its])
    with pytest.raises(ValueError, match="there is one called 'b'"):
        alone.load_adapter(tmp_path / "set", adapter="b")
    with pytest.raises(ValueError, match="no adapter 'x', only a, b, c"):
        alone.load_adapter(tmp_path / "set", adapter="x")
    with pytest.raises(ValueError, match="names none"):
        ArrCocModel.from_pretrained(tiny.dual(), tmp_path / "set", adapters=[])
    for one in (some, alone):
        one.detach()


def test_a_set_with_one_damaged_adapter_is_refused_whole(tmp_path) -> None:
    attached = taught()
    attached.save_pretrained(tmp_path / "set")
    attached.detach()
    (tmp_path / "set" / "b" / "arr_coc_model.safetensors").write_bytes(b"")
    model = tiny.dual()
    with pytest.raises(ValueError, match="checksum"):
        ArrCocModel.from_pretrained(model, tmp_path / "set")
    assert not any(m._forward_hooks for m in model.modules())
    ArrCocModel.from_pretrained(model, tmp_path / "set", adapters=["a", "c"]).detach()
