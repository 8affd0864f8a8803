"""How people call: from threads, inside `inference_mode`, with embeddings, for chosen places, as tuples."""

import copy
import threading
import time
from typing import Any

import pytest
import torch

import tiny
from arr_coc import ArrCocConfig, attach
from arr_coc.adapters.attached import ArrCocModel
from arr_coc.adapters.calls import Turn

SMALL = ArrCocConfig(width=16, expansion=8)
ANSWERS = torch.tensor([[7, 2], [8, 2]])
GREEDY = {"max_new_tokens": 3, "do_sample": False}


def taught(turns: int = 5) -> tuple[ArrCocModel, dict[str, torch.Tensor]]:
    attached, inputs = attach(tiny.generative(), SMALL), tiny.generative_inputs()
    for _ in range(turns):
        attached.learn(**tiny.answered(inputs, ANSWERS))
    return attached, inputs


def test_threads_that_share_a_model_wait_for_one_another() -> None:
    """They once heard each other's passes: other answers, or errors about shapes."""
    attached, inputs = taught()
    expected = attached.generate(**inputs, **GREEDY)
    wrong: list[Any] = []

    def write(rows: slice) -> None:
        some = {name: tensor[rows] for name, tensor in inputs.items()}
        for _ in range(8):
            try:
                found = attached.generate(**some, **GREEDY)
                if not torch.equal(found[:, :22], expected[rows][:, :22]):
                    wrong.append(found)
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=write, args=(rows,)) for rows in (slice(0, 2), slice(0, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    attached.detach()


def test_threads_take_turns_in_the_order_in_which_they_came() -> None:
    """And whoever comes again stands behind those that wait: nobody is passed over twice."""
    turn, taken = Turn(), []

    def twice(mine: int) -> None:
        for _ in range(2):
            with turn, turn:  # a thread may take it again
                taken.append(mine)
                while len(turn._waiting) < min(4, 9 - len(taken)):  # until all the others stand there
                    time.sleep(0.0005)

    threads = [threading.Thread(target=twice, args=(mine,)) for mine in range(5)]
    with turn:
        for there, thread in enumerate(threads):
            thread.start()
            while len(turn._waiting) == there:
                time.sleep(0.0005)
    for thread in threads:
        thread.join(timeout=60)
    assert taken == [0, 1, 2, 3, 4] * 2
    with copy.deepcopy(turn), turn:
        pass


def test_another_thread_waits_while_learning_is_off() -> None:
    attached, inputs = taught()
    expected, found = attached(**inputs).logits, []
    with attached.disable():
        other = threading.Thread(target=lambda: found.append(attached(**inputs).logits))
        other.start()
        other.join(0.2)
        assert found == []
        bare = attached(**inputs).logits
    other.join()
    assert torch.equal(found[0], expected)
    assert not torch.equal(bare, expected)
    attached.detach()


@pytest.mark.parametrize("rule", ["attention_gated", "backprop"])
@pytest.mark.parametrize("kind", ["dual", "generative"])
def test_what_is_learned_inside_inference_mode_is_no_inference_tensor(kind: str, rule: str) -> None:
    """A later step outside of it was refused by torch: "Inplace update to inference tensor"."""
    config = ArrCocConfig(width=16, expansion=8, rule=rule)
    model: Any = tiny.generative() if kind == "generative" else tiny.dual()
    inputs = tiny.generative_inputs() if kind == "generative" else tiny.dual_inputs()
    how = {"max_new_tokens": 2} if kind == "generative" else {}

    def lesson(turn: int) -> dict[str, torch.Tensor]:
        if kind == "generative":
            return tiny.answered(inputs, ANSWERS + turn)
        return {**inputs, "labels": (torch.tensor([0, 1, 2]) + turn) % 5}

    def life(attached: ArrCocModel, turn: int) -> torch.Tensor:
        attached.learn(**lesson(turn))
        attached.reward(attached.act(**inputs, **how), 1.0)
        return attached.learn(**lesson(turn + 1)).values

    with torch.inference_mode():
        within = attach(model, config)
        life(within, 0)
        within.add_adapter("more")
        within.set_plastic(["default", "more"])
        life(within, 0)
    found = life(within, 2)
    within.detach()
    outside = attach(model, config)
    life(outside, 0)
    life(outside, 0)
    assert torch.equal(found, life(outside, 2))
    outside.detach()


def test_logits_kept_before_the_picture_are_the_models_own_however_they_are_asked_for() -> None:
    """Those that a tensor chose were answered as if the picture had been seen there already."""
    attached, inputs = taught()
    whole = attached(**inputs).logits
    with attached.disable():
        bare = attached(**inputs).logits
    for places in ([0, 5, 18, 20], [20, 3, 17], [-1, -21, -2], [0, 3], [20]):
        keep = torch.tensor(places)
        out = attached(**inputs, logits_to_keep=keep)
        torch.testing.assert_close(out.logits, whole[:, keep])
        early = keep % whole.shape[1] < 16  # the last visual token stands at 16
        assert torch.equal(out.logits[:, early], bare[:, keep][:, early])
        assert hasattr(out, "relevance") == (not bool(early.all()))
    attached.detach()


@pytest.mark.parametrize("kind", ["dual", "generative"])
def test_a_tuple_has_no_place_for_relevance_and_leaves_nothing(kind: str) -> None:
    if kind == "generative":
        attached, inputs = taught(1)
    else:
        attached, inputs = attach(tiny.dual(), SMALL), tiny.dual_inputs()
    with pytest.raises(ValueError, match="return_dict=True"):
        attached(**inputs, return_dict=False)
    with attached.disable():
        assert isinstance(attached(**inputs, return_dict=False), tuple)
    assert attached(**inputs).relevance.shape[1] == 16
    attached.detach()


def test_a_prompt_may_come_as_inputs_or_as_embeddings() -> None:
    """With embeddings no picture was found, and nothing that was learned was said."""
    attached, inputs = taught(8)
    expected = attached.generate(**inputs, **GREEDY)
    ids, rest = inputs["input_ids"], {k: v for k, v in inputs.items() if k != "input_ids"}
    assert expected[:, ids.shape[1]].tolist() == [7, 8]
    assert torch.equal(attached.generate(inputs=ids, **rest, **GREEDY), expected)
    assert torch.equal(attached.generate(ids, **rest, **GREEDY), expected)
    with torch.no_grad():
        words = attached.model.get_input_embeddings()(ids)
    assert torch.equal(attached.generate(inputs_embeds=words, **rest, **GREEDY), expected[:, ids.shape[1] :])
    out, same = attached(**inputs), attached(inputs_embeds=words, **rest)
    torch.testing.assert_close(same.logits, out.logits)
    torch.testing.assert_close(same.relevance, out.relevance)
    attached.detach()


def test_in_a_batch_a_sample_without_a_picture_keeps_the_models_own_words() -> None:
    """The whole batch was an error about masking, in `forward` and in `generate`."""
    attached, inputs = taught(8)
    alone, other = ({k: v[i : i + 1] for k, v in inputs.items()} for i in range(2))
    ids = inputs["input_ids"].clone()
    ids[1, 1:17] = 5  # words where the picture was
    mixed = {**inputs, "input_ids": ids, "pixel_values": alone["pixel_values"]}
    text = {"input_ids": ids[1:], "attention_mask": other["attention_mask"]}
    with attached.disable():
        bare, written = attached(**mixed).logits, attached.generate(**mixed, **GREEDY)
    out, expected = attached(**mixed), attached(**alone)
    assert torch.equal(out.logits[1], bare[1])
    torch.testing.assert_close(out.logits[1:], attached(**text).logits)
    torch.testing.assert_close(out.logits[:1].softmax(-1), expected.logits.softmax(-1))
    torch.testing.assert_close(out.relevance[:1], expected.relevance)
    torch.testing.assert_close(out.surprise[:1], expected.surprise)
    assert (out.relevance[1].abs().sum(), out.surprise[1]) == (0, 0)
    found = attached.generate(**mixed, **GREEDY)
    assert torch.equal(found[1, :22], written[1, :22])
    assert found[0, 21] == 7 != written[0, 21]
    assert attached.generate(**mixed, **GREEDY, num_beams=2)[0, 21] == 7
    with pytest.raises(ValueError, match=r"samples \[1\] have no image token"):
        attached.learn(**tiny.answered(mixed, ANSWERS))
    attached.detach()


@pytest.mark.parametrize("kind", ["dual", "generative"])
def test_a_prediction_is_of_one_state_between_two_steps_while_another_thread_learns(kind: str) -> None:
    """Each equals, bit for bit, what a replica that learned alone says after some number of steps, and no
    thread's predictions go back in time."""
    model: Any = tiny.dual() if kind == "dual" else tiny.generative()
    inputs = tiny.dual_inputs() if kind == "dual" else tiny.generative_inputs()
    steps = 12

    def lesson(step: int) -> dict[str, torch.Tensor]:
        if kind == "dual":
            return {**inputs, "labels": (torch.arange(3) + step) % 5}
        return tiny.answered(inputs, ANSWERS + step % 3)

    def said(attached: ArrCocModel) -> bytes:
        out = attached(**inputs)
        scores = out.logits_per_image if kind == "dual" else out.logits
        return scores.numpy().tobytes() + out.relevance.numpy().tobytes()

    def fresh() -> ArrCocModel:
        attached = attach(model, SMALL)
        for step in range(6):  # who trusts nothing learned yet says the same for some steps
            attached.learn(**lesson(step))
        return attached

    alone = fresh()
    states = [said(alone)]
    for step in range(steps):
        alone.learn(**lesson(step))
        states.append(said(alone))
    alone.detach()
    assert len(set(states)) == steps + 1

    attached, learned = fresh(), threading.Event()
    found: list[list[bytes]] = [[] for _ in range(3)]
    failed: list[BaseException] = []

    def predict(mine: list[bytes]) -> None:
        try:
            while True:
                last = learned.is_set()
                mine.append(said(attached))
                if last:
                    return
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=predict, args=(mine,)) for mine in found]
    for thread in threads:
        thread.start()
    for step in range(steps):
        attached.learn(**lesson(step))
    learned.set()
    for thread in threads:
        thread.join()
    assert not failed
    for mine in found:
        places = [states.index(one) for one in mine]  # an error for what no state says
        assert places == sorted(places)
        assert places[-1] == steps
    assert len({one for mine in found for one in mine}) > 1
    attached.detach()
