"""A generative model's own score: its visual tokens' match with the words of content of its question."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from arr_coc.adapters import ArrCocModel, attach, embedded
from arr_coc.adapters.question_words import FUNCTION_WORDS, QuestionWords
from arr_coc.config import ArrCocConfig
from arr_coc.eval.mosaic_questions import mosaics
from arr_coc.eval.relevance_questions import rows_of
from arr_coc.relevance.asked import word_evidence
from arr_coc.training.collate import AnswerCollator

FOLDER = embedded.Path(embedded.__file__).parent / "generative"
shipped = pytest.mark.skipif(not (FOLDER / "model.safetensors").is_file(), reason="weights are not there")
SAID = {"red": 20, "▁circle": 21, "the": 5, "Ġwhat": 6, "!": 7, "12": 8, "<s>": 0}


class Tokenizer:
    """Red, circle, two function words, and what is no word; other ids are pieces of words, and say so."""

    all_special_ids = (0,)

    def convert_ids_to_tokens(self, token: int) -> str:
        return {i: text for text, i in SAID.items()}.get(token, "piece")

    def get_vocab(self) -> dict[str, int]:
        return SAID


def seeing() -> Any:
    """A model to which two words are what two corners of the first picture look like."""
    model = tiny.generative()
    with torch.no_grad():
        picture = asking([20])["pixel_values"]
        tokens = torch.cat(list(model.model.get_image_features(pixel_values=picture).pooler_output))
        tokens = tokens.reshape(16, -1) - tokens.reshape(16, -1).mean(0)
        corners = torch.stack([tokens[[0, 1, 4, 5]].mean(0), tokens[[10, 11, 14, 15]].mean(0)])
        table = model.get_input_embeddings().weight
        table[[20, 21]] = 50 * corners
        table[[5, 6]] = 0.0  # what names nothing looks like nothing
        for block in model.model.language_model.layers:  # attention at random weights is all but even
            block.self_attn.q_proj.weight *= 30
    return model


@pytest.fixture
def attached() -> Iterator[ArrCocModel]:
    made = attach(seeing(), processor=Tokenizer())
    yield made
    made.detach()


def asking(*rows: list[int]) -> dict[str, Tensor]:
    """Questions about different pictures of 16 tokens, padded on the left."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + [tiny.IMAGE] * 16 + row for row in rows])
    pixels = torch.randn(len(rows), 3, 32, 32, generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": pixels}


def own(attached: ArrCocModel, inputs: dict[str, Tensor], labels: Tensor | None = None) -> Tensor | None:
    if labels is None:
        labels = torch.full_like(inputs["input_ids"], -100)
        labels[:, -1] = 9
    return attached.perceive(labels=labels, **inputs).percept.own


def test_it_is_the_evidence_of_the_words_of_content_against_function_words(attached: ArrCocModel) -> None:
    inputs = asking([6, 20, 5, 21, 7, 8])
    given = []
    stack = attached.model.model.language_model
    hook = stack.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    found = own(attached, inputs)
    hook.remove()
    table = attached.model.get_input_embeddings().weight.detach()
    table = table - table.mean(0)
    expected = word_evidence(given[0][:, :16], table[None, [20, 21]], table[[5, 6]], grid=(4, 4))
    assert found is not None
    torch.testing.assert_close(found, expected)
    assert float(found.std()) > 0


def test_a_sample_is_scored_as_it_is_alone(attached: ArrCocModel) -> None:
    inputs = asking([6, 20, 7], [20, 21, 30, 31, 5, 7], [6, 5, 7])
    together = own(attached, inputs)
    assert together is not None
    for b in range(2):
        there = inputs["attention_mask"][b].bool()
        one = {
            "input_ids": inputs["input_ids"][b : b + 1, there],
            "pixel_values": inputs["pixel_values"][b : b + 1],
        }
        alone = own(attached, {**one, "attention_mask": torch.ones_like(one["input_ids"])})
        assert alone is not None
        torch.testing.assert_close(together[b], alone[0], rtol=1e-4, atol=1e-4)
    assert not together[2].any()  # it says no word of content
    assert own(attached, asking([6, 5, 7])) is None


def test_an_answer_is_no_part_of_the_question(attached: ArrCocModel) -> None:
    inputs = asking([6, 20, 7, 21])
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -1] = 21
    torch.testing.assert_close(own(attached, inputs, labels), own(attached, asking([6, 20, 7, 7])))


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_relevance_is_attention_and_match(attached: ArrCocModel, gain: float) -> None:
    """log r = log a + g sum z + const, where nothing was learned and neighbours have no say."""
    longer = asking([6, 20, 5, 21, 7, 9])  # whose last token is answered at the place before it
    inputs = {name: value[:, :-1] if value.dim() == 2 else value for name, value in longer.items()}
    other = attach(seeing(), ArrCocConfig(own_gain=gain, spread=0), Tokenizer())
    labels = torch.full_like(longer["input_ids"], -100)
    labels[:, -1] = 9
    percept = other.perceive(labels=labels, **longer).percept
    found = other(**inputs).relevance.log()
    other.detach()
    assert percept.own is not None
    expected = percept.attention.log() + gain * percept.own
    assert float(percept.attention.log().std()) > 0.01
    torch.testing.assert_close(found, expected.log_softmax(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 2])
def test_what_is_written_is_scored_by_the_question(attached: ArrCocModel, beams: int) -> None:
    inputs = asking([6, 20, 5, 7], [6, 20, 21, 7])
    seen = []

    def learner(percept: Any, answer: Any = attached.learner.answer) -> Any:
        seen.append(percept.own)
        return answer(percept)

    attached.learner.answer = learner  # type: ignore[method-assign]
    attached.generate(**inputs, max_new_tokens=3, num_beams=beams, do_sample=False, suppress_tokens=[2])
    one = own(attached, inputs)
    assert one is not None
    assert len(seen) == 3
    for match in seen:
        torch.testing.assert_close(match, one.repeat_interleave(beams, 0), rtol=1e-4, atol=1e-4)


def test_where_no_words_or_no_table_are_known_attention_stands_alone() -> None:
    bare = attach(tiny.generative())
    assert own(bare, asking([6, 20, 7])) is None
    assert "no processor" in bare.inspect().own
    bare.detach()
    ids, said = torch.tensor([[20]]), torch.tensor([[True]])
    for table in (nn.Embedding(60, 8), nn.Embedding(60, 32, device="meta"), nn.Identity()):
        words = QuestionWords(lambda table=table: table, Tokenizer())  # type: ignore[misc]
        assert words.evidence(ids, said, torch.randn(1, 16, 32)) is None


def test_function_words_are_words() -> None:
    assert all(w.isalpha() and w == w.lower() for w in FUNCTION_WORDS)
    assert {"where", "what", "the"} <= FUNCTION_WORDS
    assert not {"red", "circle", "left"} & FUNCTION_WORDS


@shipped
def test_the_built_in_model_finds_what_is_asked_for() -> None:
    """Where a conjunction is, which its attention does not know: .23 of four tiles."""
    model, processor = embedded.load("generative")
    attached = attach(model, processor=processor)
    rows = [r for r in rows_of(mosaics(2, 32, 77)) if r["question"].startswith("where")]
    relevance = attached(**AnswerCollator(processor, attached).prompts(rows)).relevance
    attached.detach()
    truth = torch.from_numpy(np.stack([row["mask"].ravel() for row in rows]))
    pointed = truth.gather(1, relevance.argmax(1, keepdim=True)).float().mean()
    assert len(rows) >= 12
    assert float(pointed) > 0.5
