"""Several adapters on one model: who answers, who learns, how a set is saved."""

import math
from dataclasses import replace

import pytest
import torch

import tiny
from arr_coc import ArrCocModel, attach, state
from arr_coc.adapters import card, saving
from arr_coc.adapters.in_turn import Answers, InTurn
from sets import CONTEXT, FIXED, SMALL, batches, same, states, taught, three

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
            learned = (learner.config.value_scale * answer.evened[:, known]).softmax(1)
            t, own = answer.trust.unsqueeze(1), scores.softmax(1)
            scores = scores + torch.log((1 - t) * own + t * learned) - own.log()
            answers.append(answer)
        torch.testing.assert_close(out.logits_per_image.double(), scores, rtol=1e-5, atol=1e-5)
        relevance = sum(a.relevance for a in answers) / len(answers)
        torch.testing.assert_close(out.relevance, relevance)
        torch.testing.assert_close(out.relevance.sum(1), torch.ones(4))
        for i, probabilities in enumerate(out.probabilities):  # as sure as who is trusted most learned to be
            t, place = max((float(a.trust[i]), -place) for place, a in enumerate(answers))
            learner = attached.adapter(order[-place])
            sharper = 1 + t * (float(learner.confidence.log_scale.exp()) / learner.config.value_scale - 1)
            told = (out.logits_per_image[i].double() * sharper).softmax(0)
            torch.testing.assert_close(probabilities.double(), told, rtol=1e-5, atol=1e-6)
        results[tuple(order)] = out.logits_per_image
    assert not torch.allclose(results["b", "c"], results["c", "b"], atol=1e-3)
    attached.detach()


def test_whichever_is_trusted_most_says_how_sure_and_who_knows_no_candidate_is_not_asked() -> None:
    made, (batch, *_) = taught(), batches(1, seed=9)
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    seen = made.perceive(**inputs)
    learners = [made.adapter(name) for name in "ab"]
    for one, s in zip(learners, (2.0, 5.0), strict=True):
        one.confidence.log_scale.fill_(math.log(s))
    answers = Answers([one.answer(seen.percept) for one in learners])
    fused = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    trusts = torch.tensor([[0.9, 0.2, 0.9, 0.2], [0.2, 0.9, 0.1, 0.8]], dtype=torch.float64)
    answers = Answers([replace(a, trust=t) for a, t in zip(answers.parts, trusts, strict=True)])
    told = InTurn(learners).probabilities(fused, seen.keys, answers)
    t, s = torch.tensor([0.9, 0.9, 0.9, 0.8]), torch.tensor([2.0, 5.0, 2.0, 5.0])
    torch.testing.assert_close(told, (fused * (1 + t * (s / 10 - 1))[:, None]).softmax(1))
    new = InTurn(learners).probabilities(fused, ["never", "met", "any", "of", "these"], answers)
    torch.testing.assert_close(new, fused.softmax(1))
    made.detach()


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
    attached.set_plastic(["a"])
    with pytest.raises(KeyError, match="taken with b, c, and none of them learns now: plastic are a"):
        attached.reward(lost, 1.0)
    attached.detach()


def test_an_action_that_waits_follows_a_renamed_adapter() -> None:
    """Once the name it was taken under was looked for, and its reward was lost, or went to another one."""
    attached, inputs = three(), {k: v for k, v in batches(1)[0].items() if k != "labels"}
    attached.set_plastic(["b", "c"])
    handle = attached.act(**inputs)
    number = handle.numbers["b"]
    attached.rename("b", "d")
    attached.add_adapter("b")
    attached.set_plastic(["b"])
    other = attached.act(**inputs)  # the new b's first action has the same number
    assert other.numbers == {"b": number}
    attached.set_plastic(["b", "c", "d"])
    assert len(attached.reward(handle, 1.0)) == 4
    assert [int(t["step"]) for t in states(attached).values()] == [0, 4, 4, 0]  # a, d, c, b
    attached.reward(other, 1.0)
    assert [int(t["step"]) for t in states(attached).values()] == [0, 4, 4, 4]
    attached.detach()


@pytest.mark.parametrize("merged", [False, True])
def test_an_action_does_not_wait_for_what_took_its_adapters_place(merged: bool) -> None:
    attached, inputs = three(FIXED), {k: v for k, v in batches(1)[0].items() if k != "labels"}
    attached.set_plastic(["b"])
    handle = attached.act(**inputs)
    if merged:
        attached.merge(["a", "b"], "b")
    else:
        attached.delete_adapter("b")
        attached.add_adapter("b")
        attached.set_plastic(["b"])
    attached.act(**inputs)  # has the same number
    with pytest.raises(KeyError, match="taken with b, and none of them learns now"):
        attached.reward(handle, 1.0)
    assert attached.adapter("b").pending.groups.keys() == {0}
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


# -- coming, going, saving -----------------------------------------------------------------------------------


_CLASHES = [*saving.FILES, card.CARD, card.PICTURE, "readme.MD", "x" * 101, "b."]


@pytest.mark.parametrize(
    "name", ["", "..", ".", "a/b", "a\\b", "a..b", ".git", "a b", "é", "A", None, 3, *_CLASHES]
)
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


def test_everything_that_was_learned_moves_with_the_model() -> None:
    config = replace(
        SMALL,
        rule="feedback_alignment",
        rule_options={"mode": "kp"},
        optimizer="adam",
        eta_ladder=1e-3,
        ladder_gain=1.0,
    )
    attached = attach(tiny.dual(), config)
    batch = batches(1)[0]
    attached.learn(**batch)
    attached.act(**{k: v for k, v in batch.items() if k != "labels"})
    kept = state.tensors(attached.learner)
    for part in ("rule.", "optimizer.", "pending."):
        assert any(name.startswith(part) for name in kept), part
    attached.learners.to("meta")  # the one other device that every machine has
    left = [n for n, t in state.tensors(attached.learner).items() if t.device.type != "meta"]
    assert left == ["generator"]
    attached.detach()


def test_contexts_are_embedded_anew_where_the_model_has_gone() -> None:
    attached, inputs = attach(tiny.dual(), SMALL), tiny.dual_inputs()
    attached(**inputs, context_ids=CONTEXT)
    body = attached.body
    body._contexts = {key: row.to("meta") for key, row in body._contexts.items()}
    again = attached(**inputs, context_ids=CONTEXT)
    assert torch.isfinite(again.logits_per_image).all()
    assert {row.device.type for row in body._contexts.values()} == {"cpu"}
    attached.detach()
