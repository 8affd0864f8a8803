"""The loss that comes with labels is the one of the logits that come with it."""

import pytest
import torch
from torch.nn.functional import cross_entropy, logsigmoid

import tiny
from arr_coc import ArrCocConfig, attach
from arr_coc.adapters.answers import behind, labels_for
from arr_coc.eval.tiny_inputs import example
from arr_coc.eval.tiny_models import tiny_model

CONFIG = ArrCocConfig(width=16, expansion=8)
WORDS = torch.tensor([[7, 2], [8, 2]])


@pytest.mark.parametrize("items", [None, 7])
def test_a_generative_models_loss_is_the_cross_entropy_of_its_adapted_logits(items: int | None) -> None:
    """It was the bare model's, whatever had been learned."""
    model, given = tiny.generative(), tiny.answered(tiny.generative_inputs(), WORDS)
    given["labels"][0, 0] = 5  # words before the picture are taught too
    named = {} if items is None else {"num_items_in_batch": items}
    with torch.no_grad():
        bare = model(**given, **named).loss
    attached = attach(model, CONFIG)
    assert torch.equal(attached(**given, **named).loss, bare)  # nothing is learned yet
    for _ in range(4):
        attached.learn(**given)
    output = attached(**given, **named)
    right, logits = given["labels"][:, 1:], output.logits[:, :-1]
    how = {"reduction": "mean"} if items is None else {"reduction": "sum"}
    expected = cross_entropy(logits.flatten(0, 1), right.flatten(), **how) / (items or 1)
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert output.loss < bare - 0.1
    with attached.disable():
        assert torch.equal(attached(**given, **named).loss, bare)
    attached.detach()


@pytest.mark.parametrize("kind", ["t5gemma2", "florence2", "blip-2", "qwen2_5_vl", "git"])
def test_other_families_losses_are_that_too(kind: str) -> None:
    """An encoder and decoder, whose labels stand where they are answered; a language model within; pictures
    in front of the words."""
    model = tiny_model(kind, "generative")
    inputs = example(model)
    attached = attach(model, CONFIG)
    assert attached.body.kind == "generative"
    if attached.body.encoder_decoder:
        given = {**inputs, "labels": WORDS + 20}
        given.pop("decoder_input_ids", None)
        right, shift = given["labels"], 0
    else:
        family = attached.body.family
        given = behind(inputs, WORDS + 20, family)
        given["labels"] = labels_for(inputs, WORDS + 20, None, family)
        right, shift = given["labels"][:, 1:], 1
    with attached.disable():
        bare = attached(**given).loss
    for _ in range(4):
        attached.learn(**given)
    output = attached(**given)
    logits = output.logits[:, -right.shape[1] - shift :][:, : right.shape[1]]
    expected = cross_entropy(logits.flatten(0, 1), right.flatten())
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)
    assert output.loss < bare
    attached.detach()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_contrastive_loss_is_that_of_the_adapted_scores(kind: str) -> None:
    model, inputs = tiny.dual(kind), tiny.dual_inputs()
    texts = {name: inputs[name][:3] for name in ("input_ids", "attention_mask")}  # as many as pictures
    inputs |= texts
    with torch.no_grad():
        bare = model(**inputs, return_loss=True).loss
    attached = attach(model, CONFIG)
    assert torch.equal(attached(**inputs, return_loss=True).loss, bare)
    for _ in range(4):
        attached.learn(**inputs, labels=torch.arange(3))
    output = attached(**inputs, return_loss=True)
    scores, right = output.logits_per_image, torch.arange(3)
    if kind == "clip":
        expected = (cross_entropy(scores, right) + cross_entropy(scores.T, right)) / 2
    else:
        expected = -logsigmoid(scores * (2 * torch.eye(3) - 1)).sum(1).mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(output.loss, bare, atol=1e-3)
    attached.detach()
