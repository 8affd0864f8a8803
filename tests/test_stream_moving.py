"""moving: frames in order and motion as drawn, masks that say where things are, signs a lead before."""

import numpy as np
import pytest

from arr_coc.training import stream_moving, streams
from arr_coc.training.items import emoji
from arr_coc.training.scenes import CUE_COLOURS, SIDE
from arr_coc.training.stream_moving import (
    BOX,
    FASTEST,
    SLOWEST,
    STAY,
    bounced,
    covered,
    picture,
    scene,
    symbol,
)

NAMES = ("moving", "moving-wrap", "moving-lead")


def load(name: str = "moving", **options) -> streams.Stream:
    return streams.load(name, **{"seed": 3, "n_train": 192, "n_test": 96, **options})


def pixels(sample: streams.Sample) -> bytes:
    return np.asarray(sample["image"]).tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_frames_come_in_order_and_are_the_same_for_a_seed(name: str) -> None:
    stream, again, other = load(name), load(name), load(name, seed=4)
    keys = stream.samples.keys
    assert [k.frame for k in keys] == [n % 16 for n in range(192)]
    assert len({k.scene for k in keys}) == 12
    assert all(len({k.scene for k in keys[i : i + 16]}) == 1 for i in range(0, 192, 16))
    assert all(pixels(stream.samples[i]) == pixels(again.samples[i]) for i in (0, 5, 17))
    assert pixels(stream.samples[5]) != pixels(other.samples[5])
    assert pixels(stream.samples[5]) != pixels(stream.probes[0][5])
    cues = [stream.samples[i]["context"] for i in range(0, 192, 16)]
    assert sorted(cues) == sorted(CUE_COLOURS * 2)
    for sample in (stream.samples[0], stream.probes[0][20]):
        assert sample["label"] in sample["candidates"]
        assert (sample["mask"].shape, sample["mask"].dtype) == ((12, 12), np.dtype(bool))


def test_an_order_is_one_of_scenes_and_never_of_frames() -> None:
    first, second = load(order=0), load(order=1)
    one = [(k.scene, k.frame, k.index) for k in first.samples.keys]
    two = [(k.scene, k.frame, k.index) for k in second.samples.keys]
    assert one != two
    assert sorted(one) == sorted(two)
    assert [frame for _, frame, _ in two] == [frame for _, frame, _ in one]
    assert sum(len(batch) for batch in first.batches()) == 192  # and no index twice


@pytest.mark.parametrize("name", ["moving", "moving-wrap"])
def test_the_mask_is_where_the_cued_colour_is(name: str) -> None:
    """Beside a frame drawn without the cued item: what differs lies in its box, most of it in the mask."""
    for number in range(6):
        moving = scene(3, "train", number, "wrap" if "wrap" in name else "bounce")
        for frame in (0, 7, 15):
            gone = moving.there.copy()
            gone[frame, 0] = False
            without = stream_moving.Scene(**{**vars(moving), "there": gone})
            pair = [np.asarray(picture(m, frame)).astype(int) for m in (moving, without)]
            differs = (np.abs(pair[0] - pair[1]).sum(2) > 0).reshape(12, 8, 12, 8).sum((1, 3))
            mask = covered(moving, frame)[0]
            assert 9 <= mask.sum() <= 25  # four tokens wide, five where the halves are met exactly
            assert differs[~mask].sum() <= 0.5 * differs.sum()
            rows, columns = moving.corners[frame, 0] // 8
            touched = np.zeros((12, 12), bool)
            for dy in range(5):
                for dx in range(5):
                    touched[(rows + dy) % 12, (columns + dx) % 12] = True
            assert differs[~touched].sum() == 0


def test_a_box_moves_as_fast_as_it_was_drawn_to_and_stays_in_the_picture() -> None:
    for number in range(8):
        corners = scene(3, "train", number).corners
        assert corners.min() >= 0
        assert corners.max() <= SIDE - BOX
        step = np.abs(np.diff(corners, axis=0)).max()
        assert step <= FASTEST + 1
    wrapped = scene(3, "train", 0, "wrap").corners
    ahead = np.diff(wrapped, axis=0)
    ahead = (ahead + SIDE // 2) % SIDE - SIDE // 2
    speed = np.hypot(*ahead.mean(0).T)  # nothing is thrown back here
    assert ((speed > SLOWEST - 1) & (speed < FASTEST + 1)).all()


def test_bouncing_is_a_triangle() -> None:
    at = bounced(np.array([-3.0, 0.0, 4.0, 10.0, 13.0, 20.0, 23.0, -13.0]), 10.0)
    assert at.tolist() == [3, 0, 4, 10, 7, 0, 3, 7]


def test_a_sign_comes_a_lead_before_and_an_afterthought_a_lead_after() -> None:
    starts = set()
    for number in range(24):
        moving = scene(5, "train", number, lead=3)
        came = [int(np.flatnonzero(moving.there[:, item])[0]) for item in (-2, 0, -1)]
        assert (came[1] - came[0], came[2] - came[1]) == (3, 3)
        assert moving.there.sum(0)[[0, -2, -1]].tolist() == [STAY] * 3
        assert moving.there[:, 1:3].all()
        starts.add(came[1])
        for frame in range(16):
            assert covered(moving, frame)[0].any() == moving.there[frame, 0]
        assert (moving.pictures[-2] != scene(5, "train", number % 6, lead=3).pictures[-2]).sum() == 0
    assert len(starts) > 5  # when it comes cannot be told by the clock
    whole = [symbol(5, colour, after).tobytes() for colour in range(6) for after in (False, True)]
    assert len(set(whole)) == 12
    art = emoji("noto")
    known = {image.tobytes() for image in art.images[~art.held_out]}
    drawn = {symbol(s, c, a).tobytes() for s in range(9) for c in range(6) for a in (False, True)}
    assert drawn <= known
    assert whole != [symbol(6, colour, after).tobytes() for colour in range(6) for after in (False, True)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"edge": "teleport"}, "'bounce', 'wrap'"),
        ({"items": 1}, "items=1"),
        ({"items": 7}, "items=7"),
        ({"colours": 0}, "colours=0"),
        ({"frames": 1}, "frames=1"),
        ({"frames": 7, "lead": 3}, "frames=7"),
        ({"lead": True}, "lead=True"),
        ({"n_train": 90}, "n_train=90.*96"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(**options)
