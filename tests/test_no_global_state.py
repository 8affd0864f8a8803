"""No global state: attached models in one process do not see each other, and leave nothing behind."""

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

import tiny
from arr_coc import ArrCocConfig, attach, state
from arr_coc.adapters.capture import _NAME, RowTap, _taps
from arr_coc.eval.tiny_inputs import example
from arr_coc.eval.tiny_models import tiny_model

SMALL = ArrCocConfig(width=16, expansion=8)
CONTEXT = torch.tensor([1, 2, 49])
GREEDY = {"max_new_tokens": 3, "do_sample": False}
KINDS = ("clip", "siglip", "llava")


def made(kind: str) -> Any:
    return tiny.generative() if kind == "llava" else tiny.dual(kind)


def given(kind: str) -> dict[str, torch.Tensor]:
    return tiny.generative_inputs() if kind == "llava" else tiny.dual_inputs()


def taught(kind: str, turn: int = 0) -> dict[str, torch.Tensor]:
    """What `learn` takes; other labels in another turn."""
    if kind == "llava":
        return tiny.answered(given(kind), torch.tensor([[7, 2], [8, 2]]) + turn)
    return {**given(kind), "labels": (torch.tensor([2, 0, 1]) + turn) % 5}


def shown(kind: str, attached: Any) -> torch.Tensor:
    out = attached(**given(kind))
    return out.logits if kind == "llava" else out.logits_per_image


def life(kind: str, attached: Any, turns: range) -> Iterator[list[torch.Tensor]]:
    """Everything that is done with an attached model, a call at a time; what each call gave."""
    inputs = given(kind)
    for turn in turns:
        out = attached(**inputs)
        yield [shown(kind, attached), out.relevance, out.surprise]
        answer = attached.learn(**taught(kind, turn))
        yield [answer.values, answer.relevance]
        how = GREEDY if kind == "llava" else {"context_ids": CONTEXT}
        handle = attached.act(**inputs, **how)
        yield [handle.choice]
        if kind == "llava":
            yield [attached.generate(**inputs, **GREEDY)]
        yield [attached.reward(handle, torch.arange(len(inputs["pixel_values"])) % 2)]
        with attached.disable():
            yield [shown(kind, attached)]
    yield [t.clone() for t in state.tensors(attached.learner).values()]


def registries() -> list[Any]:
    """What transformers looks things up in, by name and by object."""
    return [
        dict(AttentionInterface._global_mapping),
        dict(ALL_ATTENTION_FUNCTIONS._local_mapping),
        dict(AttentionMaskInterface._global_mapping),
        dict(ALL_MASK_ATTENTION_FUNCTIONS._local_mapping),
    ]


def classes(model: torch.nn.Module) -> dict[type, dict[str, Any]]:
    """The attributes of every class that a model is made of."""
    return {type(m): dict(vars(type(m))) for m in (*model.modules(), getattr(model, "config", model))}


def traces(model: torch.nn.Module) -> list[str]:
    """What of arr-coc is left in a model; transformers has hooks of its own on some towers."""

    def ours(module: torch.nn.Module) -> bool:
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        return any(getattr(h, "func", h).__module__.startswith("arr_coc") for h in hooks)

    hooked = [n for n, m in model.named_modules() if ours(m)]
    configs = {n: getattr(m, "config", None) for n, m in model.named_modules()}
    named = [n for n, c in configs.items() if getattr(c, "_attn_implementation", "") == _NAME]
    tapped = [n for n, m in model.named_modules() if m in _taps]
    return hooked + named + tapped


@pytest.mark.parametrize("kind", KINDS)
def test_two_models_in_turn_give_what_each_gives_alone(kind: str) -> None:
    lives = (range(5), range(6, 1, -1))  # other labels, so that what leaks would show
    alone = []
    for turns in lives:
        attached = attach(made(kind), SMALL)
        alone.append(list(life(kind, attached, turns)))
        attached.detach()
    pair = [attach(made(kind), SMALL) for _ in lives]
    both = zip(*(life(kind, one, turns) for one, turns in zip(pair, lives, strict=True)), strict=True)
    for calls, (first, second) in enumerate(both):
        for expected, found in zip((alone[0][calls], alone[1][calls]), (first, second), strict=True):
            assert len(expected) == len(found)
            assert all(torch.equal(e, f) for e, f in zip(expected, found, strict=True)), calls
    last = -7 if kind == "llava" else -6  # the forward of the last turn
    assert not torch.equal(alone[0][last][0], alone[0][0][0])  # it did learn
    for one in pair:
        one.detach()


def test_a_call_inside_another_models_call_changes_neither() -> None:
    """A second model runs between the first one's blocks, where the first has just begun to listen."""
    inputs, lone = tiny.dual_inputs(), attach(tiny.dual(), SMALL)
    lone.learn(**taught("clip"))
    expected = lone(**inputs)
    lone.detach()
    outer, inner = attach(tiny.dual(), SMALL), attach(tiny.dual(), SMALL)
    heard = []
    block = outer.model.vision_model.encoder.layers[2]
    for one in (outer, inner):
        one.learn(**taught("clip"))
    block.register_forward_hook(lambda *_: heard.append(inner(**inputs)))
    for found in (outer(**inputs), heard[-1]):
        assert torch.equal(found.logits_per_image, expected.logits_per_image)
        assert torch.equal(found.relevance, expected.relevance)
    for one in (outer, inner):
        one.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_the_other_model_works_on_when_one_is_detached(kind: str) -> None:
    one, two = attach(made(kind), SMALL), attach(made(kind), SMALL)
    for _ in range(3):
        two.learn(**taught(kind))
    before = shown(kind, two)
    for turn in range(3):
        one.learn(**taught(kind, turn))
    assert torch.equal(shown(kind, two), before)
    one.detach()
    assert torch.equal(shown(kind, two), before)
    for _ in range(3):
        two.learn(**taught(kind, 1))
    assert not torch.equal(shown(kind, two), before)
    two.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_registries_and_classes_are_as_they_were_after_the_last_detach(kind: str) -> None:
    one, two = made(kind), made(kind)
    before, attributes = registries(), classes(one)
    attached = [attach(model, SMALL) for model in (one, two)]
    if kind != "siglip":  # whose pooling head is hooked and needs no function of ours
        assert registries() != before
    assert classes(one) == attributes  # nothing is patched, while attached either
    for turn, each in enumerate(attached):
        each.learn(**taught(kind, turn))
        each.detach()
    assert registries() == before
    assert classes(one) == attributes
    assert traces(one) == traces(two) == []


def test_an_attachment_that_fails_half_way_leaves_nothing() -> None:
    model = tiny.dual()
    before = registries()
    last = RowTap(model.vision_model.encoder.layers[2].self_attn)  # somebody listens already
    held = registries()
    for config in (SMALL, ArrCocConfig(sites=(1, 2))):
        with pytest.raises(ValueError, match="tapped already"):
            attach(model, config)
        assert registries() == held
        assert traces(model) == ["vision_model.encoder.layers.2.self_attn"] * 2
    last.remove()
    assert registries() == before
    assert traces(model) == []
    attach(model, SMALL).detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", ["forward", "learn", "act", "the model itself"])
def test_an_exception_inside_a_forward_leaves_nothing_listening(kind: str, call: str) -> None:
    model = made(kind)
    before, answer = registries(), shown(kind, model.eval())
    attached = attach(model, SMALL)
    attached.learn(**taught(kind))
    expected = shown(kind, attached)
    last = attached.body.tower.blocks[-1]
    broken = last.register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("inside")))
    calls = {
        "forward": lambda: attached(**given(kind)),
        "learn": lambda: attached.learn(**taught(kind)),
        "act": lambda: attached.act(**given(kind), **(GREEDY if kind == "llava" else {})),
        "the model itself": lambda: model(**given(kind)),
    }
    with pytest.raises(RuntimeError, match="inside"):
        calls[call]()
    broken.remove()
    capture = attached._capture
    assert not capture.listening
    assert capture.tokens == {}
    assert all(tap.rows is None and tap.result is None for tap in capture.taps)
    assert torch.equal(shown(kind, attached), expected)
    attached.detach()
    assert registries() == before
    assert traces(model) == []
    assert torch.equal(shown(kind, model), answer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_let_go_of_without_detach_is_freed_and_takes_the_registered_function(
    kind: str,
) -> None:
    gc.collect()
    before = registries()
    attached = attach(made(kind), SMALL)
    attached.learn(**taught(kind))
    model, learner = weakref.ref(attached.model), weakref.ref(attached.learner)
    del attached
    gc.collect()
    assert model() is None
    assert learner() is None
    assert not _taps
    assert registries() == before


def test_the_registered_function_stays_while_another_model_needs_it() -> None:
    one, two = attach(tiny.dual(), SMALL), attach(tiny.dual(), SMALL)
    expected = shown("clip", two)
    del one
    gc.collect()
    assert torch.equal(shown("clip", two), expected)
    two.detach()


def other(kind: str) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A model, inputs and what `learn` takes; also of one that attends to its picture from beside."""
    if kind in KINDS:
        return made(kind), given(kind), taught(kind)
    model = tiny_model(kind, "generative")
    inputs = example(model)
    return model, inputs, tiny.answered(inputs, torch.tensor([[7, 9], [8, 9]]))


@pytest.mark.parametrize("kind", [*KINDS, "blip"])
def test_a_copy_of_an_attached_model_is_one_of_its_own(kind: str) -> None:
    """Once its attention was not known to be listened to, and its blocks spoke to the model copied from."""
    model, inputs, lesson = other(kind)
    attached = attach(model, SMALL)
    attached.learn(**lesson)

    def said(one: Any) -> torch.Tensor:
        out = one(**inputs)
        return out.logits if hasattr(out, "logits") else out.logits_per_image

    kept = said(attached)
    twin = copy.deepcopy(attached)
    assert twin.model is not attached.model
    assert torch.equal(said(twin), kept)
    for _ in range(3):
        twin.learn(**lesson)
    assert not torch.equal(said(twin), kept)
    assert torch.equal(said(attached), kept)
    attached.detach()
    moved = said(twin)
    twin.learn(**lesson)
    assert not torch.equal(said(twin), moved)
    assert traces(model) == []
    bare = twin.detach()
    assert traces(bare) == []
    assert not _taps
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in bare.state_dict().items())


def test_a_copy_cannot_be_attached_to_twice_either() -> None:
    attached = attach(tiny.dual(), SMALL)
    twin = copy.deepcopy(attached)
    for again in (twin, twin.model):
        with pytest.raises(ValueError, match="detach"):
            attach(again, SMALL)
    attach(twin.detach(), SMALL).detach()
    attached.detach()


@pytest.mark.parametrize("kind", ["clip", "llava"])
def test_an_attached_model_is_not_pickled_and_says_how_it_is_saved(kind: str) -> None:
    """Pickle once failed to look up the model's own class in this package."""
    attached = attach(made(kind), SMALL)
    for what in (attached, attached.model):  # whose hooks are the attached model's
        for save in (lambda one: torch.save(one, io.BytesIO()), pickle.dumps):
            with pytest.raises(TypeError, match=r"save_pretrained\(folder\) writes what was learned"):
                save(what)
    bare = io.BytesIO()
    torch.save(attached.detach(), bare)
    assert bare.tell() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_processs_own_random_numbers_and_modes_are_left_alone(kind: str) -> None:
    model = made(kind)
    drawn, modes = torch.get_rng_state(), (torch.is_grad_enabled(), torch.get_default_dtype())
    attached = attach(model, ArrCocConfig(width=16, expansion=8, explore=0.5))
    for _ in life(kind, attached, range(2)):
        assert torch.equal(torch.get_rng_state(), drawn)
        assert modes == (torch.is_grad_enabled(), torch.get_default_dtype())
        assert not torch.is_inference_mode_enabled()
    attached.detach()
