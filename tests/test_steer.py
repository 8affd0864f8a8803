"""Steering: attention weights become softmax(logits + bias), and everything else stays as it was."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers.modeling_utils import AttentionInterface

import tiny
from arr_coc import ArrCocConfig, attach, state
from arr_coc.adapters.capture import _NAME, _taps
from arr_coc.adapters.rows import Bias
from arr_coc.adapters.steer import LEAST, log_relevance

SMALL = ArrCocConfig(width=16, expansion=8, spread=0)
CONTEXT = torch.tensor([1, 2, 49])
BOX = (0.0, 0.0, 0.5, 0.25)  # the first two of 4 x 4 tokens
INSIDE = torch.zeros(16)
INSIDE[:2] = 0.5


def asked(attached: Any, inputs: dict[str, Any]) -> Any:
    return attached(**inputs, context_ids=CONTEXT)


def hooks(model: Any) -> int:
    """How many there are; transformers leaves some of its own at a model's first pass."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_relevance_as_a_bias_is_its_log_over_even_relevance() -> None:
    r = torch.tensor([[0.25, 0.25, 0.25, 0.25], [0.5, 0.5, 0.0, 0.0]])
    bias = log_relevance(r)
    assert not bias[0].any()  # what is even steers nothing
    two = torch.tensor(2.0).log()
    torch.testing.assert_close(bias[1], torch.stack([two, two, torch.tensor(LEAST), torch.tensor(LEAST)]))
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    assert not log_relevance(r, mask).any()


# -- dual encoders -------------------------------------------------------------------------------------------


def test_a_class_tokens_attention_becomes_the_softmax_of_its_logits_and_the_bias() -> None:
    inputs, strength = tiny.dual_inputs(), 0.7
    attached = attach(tiny.dual("clip", "eager"), SMALL)
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    now = [False]
    layers = attached.model.vision_model.encoder.layers
    hooks = [b.self_attn.register_forward_hook(lambda m, a, o: seen[now[0]].append(o[1])) for b in layers]
    asked(attached, inputs)
    now[0] = True
    with attached.steer(strength, layers=(2, 3), box=BOX):
        asked(attached, inputs)
    for hook in hooks:
        hook.remove()
    bare, steered = seen[False], seen[True]
    for layer in (0, 1):
        assert torch.equal(bare[layer], steered[layer])
    bias = torch.cat([torch.zeros(1), strength * log_relevance(INSIDE[None])[0]])  # the class token: 0
    # the first steered layer still sees what it saw: log weights are its logits, but for a constant
    want = (bare[2][:, :, 0].log() + bias).softmax(-1)
    torch.testing.assert_close(steered[2][:, :, 0], want, rtol=1e-5, atol=1e-7)
    assert torch.equal(steered[2][:, :, 1:], bare[2][:, :, 1:])  # the patches' own rows
    assert not torch.equal(steered[3][:, :, 0], bare[3][:, :, 0])
    attached.detach()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_every_kernel_is_steered_alike(kind: str) -> None:
    inputs, out = tiny.dual_inputs(), []
    for kernel in ("eager", "sdpa"):
        attached = attach(tiny.dual(kind, kernel), SMALL)
        bare = asked(attached, inputs).logits_per_image
        with attached.steer(2.0, box=BOX):
            out.append(asked(attached, inputs).logits_per_image)
        assert float((out[-1] - bare).abs().max()) > 1e-4
        attached.detach()
    torch.testing.assert_close(out[0], out[1], rtol=1e-4, atol=1e-5)


def test_a_pooling_head_of_torch_is_steered_too() -> None:
    attached, inputs = attach(tiny.dual("siglip"), SMALL), tiny.dual_inputs()
    rows: list[torch.Tensor] = []
    head = attached.model.vision_model.head.attention
    hook = head.register_forward_hook(lambda m, a, o: rows.append(o[1]))
    attached(**inputs)
    with attached.steer(1.5, box=BOX):
        attached(**inputs)
    hook.remove()
    rows = [r[:, 0] for r in rows if r.shape[:1] == (3,)]  # single tokens go through it as well
    steered = (1.5 * log_relevance(INSIDE[None])).exp()
    assert len(rows) == 2
    # its rows are means over the heads: steering by -10 nats leaves all of them to the box
    assert float(rows[1][:, :2].sum(1).min()) > 1 - 16 * float(steered[0, -1]) * 100
    assert float(rows[0][:, :2].sum(1).max()) < 0.5
    with pytest.raises(ValueError, match="leave layers empty"), attached.steer(layers=(1,)):
        pass
    attached.detach()


def test_what_steers_is_the_relevance_of_a_bare_pass_and_even_relevance_steers_nothing() -> None:
    attached, inputs = attach(tiny.dual(), SMALL), tiny.dual_inputs()
    r = asked(attached, inputs).relevance
    with attached.steer(1.0):
        own = asked(attached, inputs).logits_per_image
        even = attached(**inputs).logits_per_image  # nothing asked: relevance is even
    with attached.steer(1.0, mask=r.reshape(3, 4, 4)):
        told = asked(attached, inputs).logits_per_image
    torch.testing.assert_close(own, told, rtol=1e-5, atol=1e-6)
    assert not torch.equal(own, asked(attached, inputs).logits_per_image)
    torch.testing.assert_close(even, attached(**inputs).logits_per_image, rtol=1e-5, atol=1e-6)
    attached.detach()


def test_learning_inside_sees_the_steered_pass() -> None:
    inputs, labels = tiny.dual_inputs(), torch.tensor([0, 1, 2])
    attached = attach(tiny.dual(), SMALL)
    with attached.steer(3.0, layers=(0, 1, 2, 3), box=BOX):
        steered = attached.learn(**inputs, labels=labels, context_ids=CONTEXT)
        handle = attached.act(**inputs, context_ids=CONTEXT)
        attached.reward(handle, 1.0)
    other = attach(tiny.dual(), SMALL)
    bare = other.learn(**inputs, labels=labels, context_ids=CONTEXT)
    assert float((steered.climb.phi - bare.climb.phi).abs().max()) > 1e-6
    attached.detach()
    other.detach()


# -- generative models ---------------------------------------------------------------------------------------


def padded() -> dict[str, torch.Tensor]:
    """Inputs whose first sample starts with two places of padding."""
    inputs = tiny.generative_inputs()
    ids = inputs["input_ids"]
    first = torch.cat([torch.zeros(2).long(), ids[0, :-2]])
    ids = torch.stack([first, ids[1]])
    return {**inputs, "input_ids": ids, "attention_mask": (ids > 0).long()}


def test_the_rows_behind_the_image_attend_by_softmax_of_logits_and_bias() -> None:
    inputs, strength = padded(), 0.8
    attached = attach(tiny.generative("eager"), SMALL)
    blocks = attached.body.tower.blocks
    seen: list[list[torch.Tensor]] = []
    hooks = [b.self_attn.register_forward_hook(lambda m, a, o: seen[-1].append(o[1])) for b in blocks]
    seen.append([])
    bare = attached(**inputs)
    seen.append([])
    with attached.steer(strength, layers=(1,), box=BOX):
        steered = attached(**inputs)
    for hook in hooks:
        hook.remove()
    assert torch.equal(seen[0][0], seen[1][0])
    image = inputs["input_ids"] == tiny.IMAGE
    added = strength * log_relevance(INSIDE[None])[0]
    for sample in range(2):
        last = int(image[sample].nonzero()[-1])
        bias = torch.zeros(image.shape[1])
        bias[image[sample]] = added
        was, now = seen[0][1][sample], seen[1][1][sample]  # (H, Q, K)
        assert torch.equal(now[:, : last + 1], was[:, : last + 1])
        want = (was[:, last + 1 :].log() + bias).softmax(-1)
        torch.testing.assert_close(now[:, last + 1 :], want, rtol=1e-5, atol=1e-7)
        first = int(inputs["attention_mask"][sample].argmax())  # eager padding sees everything
        assert torch.equal(steered.logits[sample, first : last + 1], bare.logits[sample, first : last + 1])
        assert not torch.equal(steered.logits[sample, last + 1 :], bare.logits[sample, last + 1 :])
    attached.detach()


def test_answers_that_stand_behind_a_prompt_are_steered_by_what_they_are_asked() -> None:
    """Teacher forcing: the same labels' loss, read from a steered pass with labels and from one without."""
    answered = tiny.answered(tiny.generative_inputs(), torch.tensor([[7, 2], [8, 2]]))
    attached = attach(tiny.generative(), SMALL)
    labels = answered.pop("labels")
    with attached.steer(1.0):
        taught = attached.perceive(labels=labels, **answered).output.logits
        loss = attached(**answered, labels=labels).loss
    bare = attached.perceive(labels=labels, **answered).output.logits
    assert float((taught - bare).abs().max()) > 1e-4
    flat = torch.nn.functional.cross_entropy(taught[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(loss, flat, rtol=1e-5, atol=1e-6)
    attached.detach()


def test_decoding_goes_on_from_what_the_prompt_was_steered_by() -> None:
    """With a cache, without one, with beams, by hand and with another kernel: one and the same answer."""
    inputs = padded()
    how: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    how["return_dict_in_generate"] = True
    found = []
    for kernel in ("sdpa", "eager"):
        attached = attach(tiny.generative(kernel), SMALL)
        bare = attached.generate(**inputs, **how)
        with attached.steer(1.0):
            for more in ({}, {"use_cache": False}):
                found.append(torch.stack(attached.generate(**inputs, **how, **more).logits))
            beams = attached.generate(**inputs, max_new_tokens=2, do_sample=False, num_beams=2)
            assert len(beams) == 2
            first = attached(**inputs, use_cache=True)
            mask = torch.cat([inputs["attention_mask"], torch.ones(2, 1).long()], 1)
            word = found[0][0].argmax(1, keepdim=True)
            second = attached(input_ids=word, attention_mask=mask, past_key_values=first.past_key_values)
            by_hand = torch.stack([first.logits[:, -1], second.logits[:, -1]])
            torch.testing.assert_close(by_hand, found[0][:2], rtol=1e-4, atol=1e-5)
        assert float((found[-1] - torch.stack(bare.logits)).abs().max()) > 1e-4
        attached.detach()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


def test_beams_and_shorter_sequences_are_steered_at_the_same_places() -> None:
    bias = Bias(
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0, 1], [1, 2]]), torch.tensor([1, 2]), 5
    )
    rows, added, steered = bias.over(4, 5, 5)  # two beams each
    assert rows.tolist() == [2, 3, 4]
    assert added[0, 0].tolist() == [[1, 2, 0, 0, 0]] * 3
    assert added[1].equal(added[0])
    assert added[2, 0].tolist() == [[0] * 5, [0, 3, 4, 0, 0], [0, 3, 4, 0, 0]]
    assert steered[3].tolist() == [False, True, True]
    rows, added, steered = bias.over(2, 1, 7)  # one word further on
    assert rows.tolist() == [0]
    assert bool(steered.all())
    assert added[1, 0].tolist() == [[0, 3, 4, 0, 0, 0, 0]]


# -- off, and failures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["clip", "siglip", "generative"])
def test_off_and_detached_are_bit_identical_after_an_exception_too(kind: str) -> None:
    made = tiny.generative() if kind == "generative" else tiny.dual(kind)
    inputs = tiny.generative_inputs() if kind == "generative" else tiny.dual_inputs()
    field = "logits" if kind == "generative" else "logits_per_image"
    with torch.no_grad():
        before = made(**inputs)[field]
    own = hooks(made)
    attached = attach(made, SMALL)
    taps = len(_taps)
    with attached.steer(2.0, box=BOX):
        assert not torch.equal(attached(**inputs)[field], before)
        with attached.disable():
            assert torch.equal(attached(**inputs)[field], before)
        broken = attached.body.tower.blocks[-1].register_forward_hook(
            lambda *_: (_ for _ in ()).throw(RuntimeError("inside"))
        )
        with pytest.raises(RuntimeError, match="inside"):
            attached(**inputs)
        broken.remove()
        with torch.no_grad():  # nothing is steered but what goes through the attached model
            assert torch.equal(made(**inputs)[field], before)
    assert len(_taps) == taps
    assert torch.equal(attached(**inputs)[field], before)
    with pytest.raises(KeyError), attached.steer(2.0, box=BOX):
        raise KeyError
    assert torch.equal(attached(**inputs)[field], before)
    with attached.steer(2.0, box=BOX):
        model = attached.detach()
        assert hooks(model) == own
    assert hooks(model) == own
    assert not _taps
    assert _NAME not in AttentionInterface._global_mapping
    with torch.no_grad():
        assert torch.equal(model(**inputs)[field], before)


def test_what_cannot_be_steered_is_said_before_anything_changes() -> None:
    from arr_coc.eval.tiny_models import tiny_model

    inputs = tiny.dual_inputs()
    attached = attach(tiny.dual(), SMALL)
    taps = len(_taps)
    kept = {k: v.clone() for k, v in state.tensors(attached.learner).items()}
    cases: list[tuple[dict[str, Any], str]] = [
        ({"strength": float("nan")}, "finite number"),
        ({"layers": (9,)}, r"site 9 .* nearest is 3"),
    ]
    for how, words in cases:
        with pytest.raises(ValueError, match=words), attached.steer(**how):
            pass
    for where, words in (({"box": (0, 0, 0, 1)}, "x0 < x1"), ({"click": [[0, 0]] * 2}, "1 or 3")):
        with attached.steer(**where), pytest.raises(ValueError, match=words):
            asked(attached, inputs)
    with attached.steer(), pytest.raises(RuntimeError, match="steered already"), attached.steer():
        pass
    assert len(_taps) == taps
    assert all(torch.equal(v, kept[k]) for k, v in state.tensors(attached.learner).items())
    attached.detach()
    beside = attach(tiny_model("mllama", "generative"), SMALL)
    with pytest.raises(ValueError, match="beside its blocks"), beside.steer():
        pass
    beside.detach()
    sliding = attach(tiny_model("gemma3", "generative"), replace(SMALL, sites=()))
    slides = sliding.model.config.text_config.layer_types.index("sliding_attention")
    with pytest.raises(ValueError, match="part of the sequence"), sliding.steer(layers=(slides,)):
        pass
    sliding.detach()
