"""same-different: answers balanced, nothing told by an item or by the mean, truth where it is claimed."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from arr_coc.training import stream_same, streams
from arr_coc.training.items import FASHION_CLASSES
from arr_coc.training.scenes import COLOURS, CUE_COLOURS, cell_mask
from arr_coc.training.stream_same import ANSWERS, KINDS, PAIRS, asked

KINDS_OF = (2, 3, 4, 10)


def load(**options: Any) -> streams.Stream:
    sizes = {"seed": 3, "n_train": 120, "n_test": 60}
    return streams.load("same-different", **{**sizes, **options})


def pixels(sample: streams.Sample) -> bytes:
    return np.asarray(sample["image"]).tobytes()


def keys(samples: Sequence[streams.Sample]) -> Sequence[Any]:
    assert isinstance(samples, streams.Rendered)
    return samples.keys


def one_hot(kinds: np.ndarray, classes: int) -> np.ndarray:
    """Sum over items of one-hot kinds, (n, classes)."""
    return np.eye(classes)[kinds].sum(1)


def linear(x: np.ndarray, y: np.ndarray) -> float:
    """How often least squares on [x, 1] is right about the very samples it was solved on; half of a tie."""
    whole = np.column_stack([x, np.ones(len(x))])
    said = whole @ np.linalg.lstsq(whole, y, rcond=None)[0]
    return float(np.mean(np.where(np.abs(said) < 1e-9, 0.5, said * y > 0)))


def scenes(classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Kinds of every scene that there is, those asked for first, (n, 4), and +1 for same, -1 for not."""
    every = [asked(classes, n) for n in range(2 * classes * classes * (classes - 1))]
    return np.array([kinds for _, kinds in every]), np.array([1.0 if same else -1.0 for same, _ in every])


@pytest.mark.parametrize("classes", KINDS_OF)
def test_it_loads_with_both_answers_equally_often_for_every_pair_of_colours(classes: int) -> None:
    least = len(PAIRS) * 2 * classes
    stream = load(classes=classes, n_train=2 * least + 7, n_test=least)
    assert (len(stream.samples), [len(p) for p in stream.probes]) == (2 * least, [least])
    assert stream.experiences == [list(ANSWERS)]
    assert stream.classes == list(ANSWERS)
    for samples in (stream.samples, stream.probes[0]):
        told = Counter((k.pair, asked(classes, k.number)[0]) for k in keys(samples))
        assert set(told.values()) == {len(samples) // (2 * len(PAIRS))}


@pytest.mark.parametrize("classes", KINDS_OF)
def test_the_label_follows_from_the_two_kinds_that_are_asked_for(classes: int) -> None:
    kinds, y = scenes(classes)
    assert ((kinds[:, 0] == kinds[:, 1]) == (y > 0)).all()
    assert ((kinds[:, 2] == kinds[:, 3]) == (y < 0)).all()  # the pair not asked for would say the opposite
    assert len(set(map(tuple, kinds.tolist()))) == len(kinds)


@pytest.mark.parametrize("classes", KINDS_OF)
def test_neither_an_item_nor_what_is_in_the_picture_tells_the_answer(classes: int) -> None:
    whole = len(PAIRS) * 2 * classes
    stream = load(classes=classes, n_train=whole, n_test=whole)
    rows = [(k.pair, *asked(classes, k.number)) for k in keys(stream.samples)]
    for place in range(4):
        by_answer = [
            Counter((p, kinds[place]) for p, same, kinds in rows if same == s) for s in (True, False)
        ]
        assert by_answer[0] == by_answer[1]
        assert set(by_answer[0].values()) == {1}
    shown = [Counter((p, *sorted(kinds)) for p, same, kinds in rows if same == s) for s in (True, False)]
    assert shown[0] == shown[1]


@pytest.mark.parametrize("classes", KINDS_OF)
def test_a_linear_readout_of_the_mean_is_at_chance_and_a_bent_one_is_not(classes: int) -> None:
    kinds, y = scenes(classes)
    both = one_hot(kinds[:, :2], classes)
    assert linear(both, y) == 0.5
    assert linear(one_hot(kinds, classes), y) == 0.5
    # told item by item, in order, it is still not linear
    assert linear(np.eye(classes)[kinds].reshape(len(kinds), -1), y) == 0.5
    assert linear((both - 1).clip(0), y) == 1.0  # relu(sum - 1): somebody is there twice
    assert linear((one_hot(kinds, classes) - 1).clip(0), y) == 0.5  # but of the whole picture, it is no help


def test_the_mask_is_the_two_cells_that_have_the_colours() -> None:
    stream = load()
    cells = [cell_mask(2, c) for c in range(4)]
    wide = np.ones((8, 8))
    places = Counter[tuple[int, ...]]()
    for sample in [*stream.samples, *stream.probes[0]]:
        inside = [c for c in range(4) if (sample["mask"] & cells[c]).any()]
        assert len(inside) == 2
        assert (sample["mask"] == cells[inside[0]] | cells[inside[1]]).all()
        picture = np.asarray(sample["image"]).astype(int)
        unit = picture / np.linalg.norm(picture, axis=-1, keepdims=True).clip(1)
        words = sample["context"].split(" and ")
        assert len(set(words)) == 2
        found = []
        for word in words:
            near = unit @ (np.array(COLOURS[word]) / np.linalg.norm(COLOURS[word])) > 0.995
            near &= picture.max(-1) > 120
            found.append(max(range(4), key=lambda c: (near & (np.kron(cells[c], wide) > 0)).sum()))
        assert sorted(found) == inside
        places[tuple(inside)] += 1
    assert len(places) == 6


def test_the_items_are_of_the_kinds_that_were_dealt(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, str]] = []
    rows, labels, names = stream_same.fashion("train")
    by_image = {image.tobytes(): int(label) for image, label in zip(rows, labels, strict=True)}

    def tint(grey: np.ndarray, colour: str) -> np.ndarray:
        drawn.append((colour, names[by_image[grey.tobytes()]]))
        return real(grey, colour)

    real = stream_same.tint
    monkeypatch.setattr(stream_same, "tint", tint)
    stream = load(classes=4, n_test=120)
    for number in range(len(stream.samples)):
        drawn.clear()
        sample = stream.samples[number]
        shown = dict(drawn)
        assert len(shown) == 4
        assert set(shown.values()) <= set(KINDS[:4])
        one, two = (shown[word] for word in sample["context"].split(" and "))
        assert sample["label"] == (ANSWERS[0] if one == two else ANSWERS[1])


def test_the_same_every_time_and_orders_share_their_scenes() -> None:
    one, two, other, seed = (load(**changes).samples for changes in ({}, {}, {"order": 1}, {"seed": 4}))
    assert [pixels(s) for s in one] == [pixels(s) for s in two]
    assert [s["index"] for s in one] != [s["index"] for s in other]
    assert {s["index"]: pixels(s) for s in one} == {s["index"]: pixels(s) for s in other}
    assert not {pixels(s) for s in one} & {pixels(s) for s in seed}
    assert len({s["index"] for s in load()}) == len(one)


def test_train_and_test_share_nothing() -> None:
    stream = load()
    test = load(split="test")
    assert [pixels(s) for s in test] == [pixels(s) for s in stream.probes[0]]
    assert not {pixels(s) for s in stream.samples} & {pixels(s) for s in stream.probes[0]}


def test_its_outline_is_known_without_rendering(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = load()
    monkeypatch.setattr(stream_same, "compose", None)
    index, turn = streams.outline(stream.samples)
    assert sorted(index) == list(range(120))
    assert set(turn) == {0}
    with pytest.raises(TypeError):
        stream.samples[0]


def test_garments_are_ordered_not_left_out() -> None:
    assert sorted(KINDS) == sorted(FASHION_CLASSES)
    assert len(PAIRS) == 15
    assert {c for pair in PAIRS for c in pair} == set(range(len(CUE_COLOURS)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": 1}, "from 2 to 10"),
        ({"classes": 11}, "from 2 to 10"),
        ({"classes": True}, "from 2 to 10"),
        ({"classes": 2.0}, "from 2 to 10"),
        ({"n_train": 59}, "15 pairs of colours, 2 kinds and 2 answers is needed, 60"),
        ({"classes": 4, "n_test": 119}, "n_test=119.*needed, 120"),
        ({"clases": 4}, "nearest is 'classes'"),
        ({"grid": 3}, "Its options are classes, n_train, n_test"),
    ],
)
def test_wrong_options_say_what_is_possible(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(**options)
