"""A person asks, judges, tells and points; the model learns it at once, and what is wrong changes nothing."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from arr_coc import ArrCocConfig, attach
from arr_coc.adapters import embedded
from arr_coc.eval.desk import MOST_TEXT, Desk, Said, opened
from arr_coc.eval.seen import see
from arr_coc.training import streams

CANDIDATES = "a photo of a sandal\na photo of a coat\n\na photo of a bag\n"


def scene() -> Image.Image:
    image: Image.Image = next(iter(streams.load("cued-clutter", seed=0, n_train=12, n_test=12)))["image"]
    return image


@pytest.fixture
def chooser() -> Desk:
    model, processor = embedded.load("dual")
    return Desk(attach(model, ArrCocConfig(), processor))


@pytest.fixture
def writer() -> Desk:
    model, processor = embedded.load("generative")
    return Desk(attach(model, ArrCocConfig(), processor))


def state(desk: Desk) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in desk.attached.learner.state_dict().items()}


def same(before: dict[str, Tensor], desk: Desk) -> bool:
    now = desk.attached.learner.state_dict()
    return before.keys() == now.keys() and all(torch.equal(before[k], now[k]) for k in before)


def test_an_answer_is_the_models_best_and_the_map_is_what_it_finds_relevant(chooser: Desk) -> None:
    said = chooser.ask(scene(), "red", CANDIDATES)
    names = [line for line in CANDIDATES.splitlines() if line]
    assert said.candidates == tuple(names)
    assert said.answer == chooser.attached.predict([scene()], names, context="red")[0].label
    np.testing.assert_array_equal(said.seen.whole, see(chooser.attached, scene(), "red").whole)
    assert chooser.ask(scene(), "red").handle is None  # a map alone: there is nothing to judge


def test_what_is_told_becomes_the_answer(chooser: Desk) -> None:
    said = chooser.ask(scene(), "red", CANDIDATES)
    wanted = next(c for c in said.candidates if c != said.answer)
    for _ in range(30):
        said = chooser.tell(said, wanted)
    assert said.answer == wanted
    assert chooser.lessons == 30


def test_an_answer_is_judged_once(chooser: Desk) -> None:
    said = chooser.ask(scene(), "red", CANDIDATES)
    first = chooser.judge(said, False)
    assert chooser.lessons == 1
    assert first.handle is not None
    before = state(chooser)
    with pytest.raises(ValueError, match="judged already"):
        chooser.judge(said, True)
    assert same(before, chooser)
    assert chooser.lessons == 1
    for _ in range(40):
        first = chooser.judge(first, first.answer.endswith("bag"))
    assert first.answer.endswith("bag")
    assert chooser.ask(scene(), "red", CANDIDATES).answer.endswith("bag")


def test_an_answer_that_was_wrong_is_not_given_again_until_all_were(chooser: Desk) -> None:
    said = chooser.ask(scene(), "red", CANDIDATES)
    given = [said.answer]
    for _ in range(2):
        said = chooser.judge(said, False)
        given.append(said.answer)
    assert sorted(given) == sorted(said.candidates)
    assert chooser.judge(said, False).ruled_out == frozenset()


def test_a_click_moves_relevance_to_where_it_was(chooser: Desk) -> None:
    said = chooser.ask(scene(), "dax")
    before = said.seen.whole[1, 10]
    for _ in range(10):
        said = chooser.point(said, 10.5 / 12, 1.5 / 12)
    assert said.seen.whole[1, 10] > 3 * before
    assert said.seen.whole[:3, 9:].sum() > 0.4  # of 9 tokens among 144


def test_a_generative_model_is_told_what_to_write(writer: Desk) -> None:
    said = writer.ask(scene(), "what is red?")
    assert said.answer
    for _ in range(15):
        said = writer.tell(said, "circle" if said.answer == "triangle" else "triangle")
        if said.answer in ("circle", "triangle"):
            break
    assert said.answer in ("circle", "triangle")
    judged = writer.judge(said, True)
    assert judged.handle is not None
    assert writer.point(judged, 0.2, 0.2).seen.whole.shape == (12, 12)


WRONG: dict[str, tuple[Callable[[Desk, Said], Any], str]] = {
    "no picture": (lambda d, s: d.ask(None, "red"), "no picture"),
    "no text": (lambda d, s: d.ask(scene(), "  "), "question is empty"),
    "a long text": (lambda d, s: d.ask(scene(), "x" * (MOST_TEXT + 1)), f"up to {MOST_TEXT}"),
    "twice": (lambda d, s: d.ask(scene(), "red", "a\nb\na"), "twice"),
    "too many": (lambda d, s: d.ask(scene(), "red", "\n".join(map(str, range(101)))), "up to 100"),
    "another answer": (lambda d, s: d.tell(s, "a hat"), "none of the candidates"),
    "no answer": (lambda d, s: d.tell(s, ""), "right answer is empty"),
    "outside": (lambda d, s: d.point(s, 1.2, 0.5), "no place in the picture"),
    "nowhere": (lambda d, s: d.point(s, float("nan"), 0.5), "no place in the picture"),
    "nothing to judge": (lambda d, s: d.judge(d.ask(scene(), "red"), True), "no answer to judge"),
    "no folder": (lambda d, s: d.save(), "no folder was named"),
}


@pytest.mark.parametrize("case", list(WRONG))
def test_what_is_wrong_is_said_and_changes_nothing(case: str, chooser: Desk) -> None:
    said = chooser.ask(scene(), "red", CANDIDATES)
    before = state(chooser)
    call, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        call(chooser, said)
    assert same(before, chooser)
    assert chooser.lessons == 0


def test_uploads_are_looked_at_before_they_are_decoded(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="no picture that can be read"):
        opened(tmp_path / "text.png")
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="9000 x 9000"):
        opened(tmp_path / "large.png")
    scene().save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    with pytest.raises(ValueError, match="no picture that can be read"):
        opened(tmp_path / "cut.png")
    turned = Image.new("RGB", (20, 10))
    exif = turned.getexif()
    exif[274] = 6  # to be turned by a quarter
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert opened(tmp_path / "turned.jpg").size == (10, 20)


def test_several_people_at_once_are_each_answered_from_a_whole_state(chooser: Desk) -> None:
    alone = chooser.ask(scene(), "red", CANDIDATES)
    found: list[Said] = []
    failed: list[BaseException] = []

    def person(lesson: bool) -> None:
        try:
            for _ in range(3):
                said = chooser.ask(scene(), "red", CANDIDATES)
                found.append(chooser.tell(said, said.candidates[0]) if lesson else said)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=person, args=(lesson,)) for lesson in (True, False, True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert chooser.lessons == 6
    # the readout's statistics are those of six samples, whoever came between
    again = Desk(attach(chooser.attached.detach(), ArrCocConfig(), chooser.attached.processor))
    for _ in range(6):
        again.tell(alone, alone.candidates[0])
    for name in ("readout.weight", "relevance_weight"):
        torch.testing.assert_close(
            chooser.attached.learner.state_dict()[name], again.attached.learner.state_dict()[name]
        )


def test_what_was_learned_is_written_to_the_named_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, processor = embedded.load("dual")
    desk = Desk(attach(model, ArrCocConfig(), processor), tmp_path / "kept")
    desk.tell(desk.ask(scene(), "red", CANDIDATES), "a photo of a bag")
    assert list(tmp_path.iterdir()) == []
    assert desk.save() == tmp_path / "kept"
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "arr_coc_model.safetensors").is_file()


def test_a_choice_made_elsewhere_is_the_one_that_is_remembered(chooser: Desk) -> None:
    attached = chooser.attached
    given = chooser._chosen(scene(), "red", ("a", "b", "c"))
    assert attached.act(choice=torch.tensor([2]), **given).choice.tolist() == [2]
    before = state(chooser)
    for wrong, error in (
        (torch.tensor([3]), ValueError),
        (torch.tensor([0, 1]), ValueError),
        (torch.tensor([0.5]), TypeError),
    ):
        with pytest.raises(error, match="choice"):
            attached.act(choice=wrong, **given)
    assert same(before, chooser)


def test_predicted_probabilities_are_those_of_the_output_and_the_label_scores_best(
    chooser: Desk,
) -> None:
    attached, names = chooser.attached, [line for line in CANDIDATES.splitlines() if line]
    asked = attached.processor(text=names, images=[scene()], return_tensors="pt", padding=True)
    cue = attached.processor(text=["red"], return_tensors="pt")["input_ids"]
    for label in (0, 1, 1, 0, 1):  # contradictions: values are not to be believed
        attached.learn(**asked, labels=torch.tensor([label]), context_ids=cue)
    out = attached(**asked, context_ids=cue)
    said = attached.predict([scene()], names, context="red")[0]
    assert list(said.probabilities.values()) == pytest.approx(out.probabilities[0].tolist(), abs=1e-5)
    assert said.label == names[int(out.logits_per_image[0].argmax())]
    assert float(out.logits_per_image[0].softmax(0).max()) > max(said.probabilities.values()) + 1e-3
