"""The built-in generative model: packed questions equal single ones, visual tokens start as words."""

import numpy as np
import pytest
import torch
from PIL import Image

from arr_coc.adapters import embedded
from arr_coc.eval.cards_generative import right
from arr_coc.training import generative_model, items, questions, scenes
from arr_coc.training.questions import PROMPT, Composer, Turn
from arr_coc.training.train_generative import answer_logits, looking, naming, pixels

FOLDER = embedded.Path(embedded.__file__).parent / "generative"
shipped = pytest.mark.skipif(not (FOLDER / "model.safetensors").is_file(), reason="weights are not there")


@pytest.fixture(scope="module")
def small():
    """An untrained model on the dual encoder's tower."""
    torch.manual_seed(0)
    dual, processor = embedded.load("dual")
    words = generative_model.tokenizer(["what is this?", "where is the red cat?", "circle", "top left"])
    model = generative_model.build(words, dual, layers=2).eval()
    return model, generative_model.processor(words, processor.image_processor), dual


def test_a_visual_token_starts_where_its_word_is(small):
    """Names of what cells show, read off the projector by the language model's own embeddings."""
    dual = small[2]
    _, dual_processor = embedded.load("dual")
    names = [name for name, _ in questions.emoji_names(False)]
    words = generative_model.tokenizer(names)
    model = generative_model.build(words, dual, layers=1).eval()
    rng = np.random.default_rng(0)
    art, rows = items.emoji("noto").images, dict(questions.emoji_names(False))
    asked = rng.integers(len(names), size=(24, 4))
    drawn = [
        scenes.compose([art[rows[names[i]]] for i in four], 2, scenes.background(rng), rng) for four in asked
    ]
    pictures = pixels([image for image, _ in drawn])
    generative_model.inherit(model, words, dual, dual_processor.tokenizer, pictures)
    with torch.no_grad():
        hidden = model.model.vision_tower(pictures, output_hidden_states=True).hidden_states[-1][:, 1:]
        tokens = model.model.multi_modal_projector(hidden)  # (24, 144, width)
        said = model.get_input_embeddings().weight[words.convert_tokens_to_ids(names)]
    cells = torch.stack(
        [tokens[:, torch.from_numpy(drawn[0][1][c].reshape(-1))].mean(1) for c in range(4)], 1
    )
    scores = torch.nn.functional.cosine_similarity(cells[:, :, None], said, dim=-1)  # (24, 4, names)
    right = float((scores.argmax(2) == torch.from_numpy(asked)).float().mean())
    assert right > 10 / len(names)  # ten times chance before a single step


def test_spelled_words_are_their_characters(small):
    _, processor, _ = small
    words = processor.tokenizer
    row = [[Turn("where is the red cat?", "top left", "where")]]
    plain = questions.pack(words, row)
    spelled = questions.pack(words, row, spelled=1.0, rng=np.random.default_rng(0))
    text = words.decode(spelled["input_ids"][0], skip_special_tokens=True)
    assert text == words.decode(plain["input_ids"][0], skip_special_tokens=True)
    assert spelled["input_ids"].shape[1] > plain["input_ids"].shape[1]
    kept = spelled["labels"][spelled["labels"] != -100].tolist()
    assert kept == plain["labels"][plain["labels"] != -100].tolist()  # answers are never spelled


def test_the_tower_starts_as_the_dual_encoders(small):
    model, _, dual = small
    mine, theirs = model.model.vision_tower.state_dict(), dual.vision_model.state_dict()
    assert len(mine) == len(theirs)
    for key, value in theirs.items():
        found = mine.get(key, mine.get("vision_model." + key))
        assert torch.equal(found, value), key


def test_unknown_words_are_split_and_come_back(small):
    words = small[1].tokenizer
    ids = words("dax t-shirt")["input_ids"]
    assert words.unk_token_id not in ids
    assert words.decode(ids) == "dax t-shirt"


def test_a_packed_turn_equals_a_row_of_its_own_through_the_processor(small):
    model, processor, _ = small
    image = Composer(np.random.default_rng(0)).draw(2).image
    turns = [Turn("where is the red cat?", "top left", ""), Turn("what is this?", "circle", "")]
    packed = questions.pack(processor.tokenizer, [turns, turns[:1]])
    with torch.inference_mode():
        logits, wanted = answer_logits(model, pixels([image, image]), packed)
        at = 0
        for turn in [*turns, turns[0]]:
            text = PROMPT.format(question=turn.question) + " " + turn.answer + "</s>"
            single = model(**processor(images=image, text=text, return_tensors="pt")).logits[0]
            n = len(processor.tokenizer(turn.answer)["input_ids"]) + 1
            torch.testing.assert_close(logits[at : at + n], single[-n - 1 : -1], atol=2e-4, rtol=1e-3)
            at += n
    assert at == len(wanted)


def test_teaching_reaches_answers_only(small):
    words = small[1].tokenizer
    packed = questions.pack(words, [[Turn("what is this?", "circle", "")]])
    taught = packed["labels"][packed["labels"] != -100].tolist()
    assert taught == [*words("circle")["input_ids"], words.eos_token_id]


def test_questions_have_the_answer_their_scene_shows():
    """With one item everything asked is about it; held-out and garment names never come up in training."""
    composer = Composer(np.random.default_rng(1))
    held = {name for name, _ in questions.emoji_names(True)}
    for i in range(60):
        turns = composer.draw(1 + i % 3).turns
        assert turns
        assert {t.kind for t in turns} <= set(questions.KINDS)
        said = {w for t in turns for w in (t.question + " " + t.answer).replace("?", "").split()}
        assert not said & held
        assert not said & {*items.FASHION_CLASSES}
        if i % 3 == 0:
            name = next(t.answer for t in turns if t.question == "what is this?")
            assert all(t.answer == name for t in turns if t.kind == "by colour")


def test_garments_are_no_item_of_training():
    names = {name for held in (False, True) for name, _ in questions.emoji_names(held)}
    assert len(names) > 400
    assert not names & {*items.FASHION_CLASSES}


def test_the_same_seed_draws_the_same_scene():
    one, two = (Composer(np.random.default_rng(3)).draw(2) for _ in range(2))
    assert (one.turns, one.names) == (two.turns, two.names)
    assert np.array_equal(np.asarray(one.image), np.asarray(two.image))


def test_the_cells_of_a_question_are_those_its_answer_is_read_from():
    composer = Composer(np.random.default_rng(2))
    for _ in range(80):
        scene = composer.draw(2)
        for t in scene.turns:
            shown = [scene.names[c] for c in t.cells]
            if t.kind in ("place", "by colour", "beside"):
                assert shown == [t.answer], t
            elif t.kind == "where":
                assert [scenes.PLACES[2][c][0] for c in t.cells] == [t.answer]
                assert scene.names[t.cells[0]] in t.question
            elif t.kind == "colour":
                assert scene.names[t.cells[0]] in t.question
            elif t.kind == "yes or no":
                assert (t.answer == "yes") == bool(t.cells)
            if t.kind == "beside":
                assert t.first == (t.cells[0] ^ 1,)
                assert scene.names[t.first[0]] in t.question
            if t.kind == "count":
                assert questions.COUNTS[len(t.cells)] == t.answer


def test_looking_is_the_attention_on_the_cells_that_tell():
    """Two layers, two heads; the one that is judged puts a known share on the asked cell."""
    words = generative_model.tokenizer(["where is the cat?", "top left", "no"])
    image = words.convert_tokens_to_ids("<image>")
    turns = [Turn("where is the cat?", "top left", "where", 2, (0,), (0,)), Turn("is there a cat?", "no", "")]
    packed = questions.pack(words, [turns])
    begin = int((packed["input_ids"][0] == image).nonzero()[0])
    length = packed["input_ids"].shape[1]
    cell = torch.from_numpy(scenes.cell_mask(2, 0).ravel())
    attentions = []
    for share in (0.2, 0.5):
        seen = torch.zeros(1, 2, length, length)
        seen[..., begin : begin + 144] = torch.where(cell, share / 36, (1 - share) / 108)
        seen[:, 1] = 0.0  # the second head is free
        attentions.append(seen)
    found = looking(tuple(attentions), packed, [turns], image)
    assert float(found) == pytest.approx(-(np.log(0.2) + np.log(0.5)) / 2, rel=1e-5)
    untold = looking(tuple(attentions), questions.pack(words, [turns[1:]]), [turns[1:]], image)
    assert float(untold) == 0.0


def test_naming_is_the_cross_entropy_of_the_cells_mean_token():
    torch.manual_seed(1)
    seen, table = torch.randn(2, 144, 6), torch.randn(5, 6)
    cell = torch.from_numpy(scenes.cell_mask(2, 3).ravel())
    mean = seen[1, cell].mean(0)
    cosine = torch.nn.functional.cosine_similarity(mean, table, dim=1)
    expected = -(20 * cosine).log_softmax(0)[4]
    torch.testing.assert_close(naming(seen, [(1, 2, 3, 4)], table), expected)
    assert float(naming(seen, [], table)) == 0.0


def test_an_unknown_split_is_said():
    with pytest.raises(ValueError, match="train and test"):
        questions.easy_vqa("validation")


@shipped
def test_shipped_weights_are_small_and_greedy_decoding_agrees_with_the_card():
    """The card's one-pass count says what generate says."""
    assert (FOLDER / "model.safetensors").stat().st_size < 15e6
    model, processor = embedded.load("generative")
    images, turns = questions.easy_vqa("test")
    images, turns = images[:12], [row[:1] for row in turns[:12]]
    texts = [PROMPT.format(question=row[0].question) for row in turns]
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
    made = model.generate(**inputs, max_new_tokens=6, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    said = processor.batch_decode(made, skip_special_tokens=True)
    expected = [row[0].answer == text.strip() for row, text in zip(turns, said, strict=True)]
    assert [row[0] for row in right(model, processor, images, turns)] == expected


@shipped
def test_the_chat_template_writes_what_the_model_was_taught_with():
    _, processor = embedded.load("generative")
    assert processor.chat_template == questions.CHAT
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is this?"}]}
    prompt = processor.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
    assert prompt == PROMPT.format(question="what is this?")
    said = {"role": "assistant", "content": [{"type": "text", "text": "circle"}]}
    assert processor.apply_chat_template([asked, said], tokenize=False) == prompt + " circle</s>"
    image = Image.new("RGB", (96, 96), (220, 30, 30))
    asked["content"][0]["image"] = image
    made = processor.apply_chat_template(
        [asked], tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    by_hand = processor(images=image, text=prompt, return_tensors="pt")
    assert torch.equal(made["input_ids"], by_hand["input_ids"])
    assert torch.equal(made["pixel_values"], by_hand["pixel_values"])
