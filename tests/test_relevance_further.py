"""Families 6 to 8 on scenes of one item: the truth beside random maps, and what a row is made of."""

import numpy as np
import pytest

from arr_coc.adapters import embedded
from arr_coc.eval import relevance_further as rf
from arr_coc.eval import relevance_report as report


@pytest.fixture(scope="module")
def dual():
    return embedded.load("dual")


def test_a_scene_shows_its_item_in_one_cell() -> None:
    made = rf.singles(12, 0)
    assert [m.asked for m in made] == [m.asked for m in rf.singles(12, 0)]
    for one in made:
        assert one.shown.sum() == 36
        assert any((one.shown == cell).all() for cell in one.truths)
        assert len(set(one.asked)) == rf.TOLD
        pixels = np.asarray(one.image, float)
        cells = pixels.reshape(2, 48, 2, 48, 3).swapaxes(1, 2).reshape(4, -1, 3)
        assert cells.std(1).mean(1).argmax() == one.shown[::6, ::6].ravel().argmax()


@pytest.mark.slow
def test_arr_coc_beside_random_and_uniform_maps(dual) -> None:
    rows, left = rf.measure(*dual, images=6, draws=1, methods=("arr-coc", "random", "uniform"))
    own, random, uniform = (rows[m] for m in ("arr-coc", "random", "uniform"))
    assert 0 <= left < 6
    assert own.gap == pytest.approx(own.lerf - own.morf)
    assert own.gap > max(random.gap, 0)
    assert random.minus is not None
    assert random.minus.mean == pytest.approx(own.gap - random.gap)
    assert own.brier < own.base == pytest.approx(0.25 * 0.75)
    assert random.brier == pytest.approx(random.base, abs=0.02)
    assert own.mass[0] == 1
    assert (np.diff(own.mass) <= 0).all()
    assert own.accuracy[0] == random.accuracy[0] == uniform.accuracy[0]  # nothing is dropped yet
    assert uniform.rise is None
    assert random.rise == pytest.approx(0, abs=0.2)
    table = report.further(rows, left, 6)
    assert [row[0] for row in table.rows] == ["arr-coc, nothing learned", "random", "uniform"]
    assert all(len(row) == len(table.columns) for row in table.rows)
