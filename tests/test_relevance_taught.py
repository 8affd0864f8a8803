"""What the tables of pointing and steering print, and that a pass by each teaching signal is one."""

import pytest
import torch

import fakes
from arr_coc import ArrCocConfig
from arr_coc.eval import relevance_taught as taught
from arr_coc.eval import steered
from arr_coc.eval.percepts import Plan


def planned() -> tuple:
    """A store whose cued cell is the one whose tokens say something, and one pass over half of it."""
    store = fakes.fake_store(60)
    order = store.cue.argsort(stable=True)
    first = int((store.cue == 0).sum())
    train = [order[:first][::2], order[first:][::2]]
    probes = [order[:first][1::2], order[first:][1::2]]
    ends = [len(train[0]), len(train[0]) + len(train[1])]
    plan = Plan(torch.cat(train), ends, probes, [["red"], ["blue"]], [], None, [], [])  # type: ignore[arg-type]
    return store, plan


@pytest.mark.parametrize("way", list(taught.WAYS))
def test_a_way_counts_the_samples_that_a_word_needed(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, plan = planned()
    config = ArrCocConfig(width=8, expansion=0, spread=0)
    asked: list[int] = []

    def found(learner: object, store: object, rows: torch.Tensor) -> float:
        asked.append(len(rows))
        return 0.95 if len(asked) == 2 else 0.1

    monkeypatch.setattr(taught, "pointing", found)
    run = taught.taught(way, store, plan, config)
    assert run.needed == [10, plan.ends[1] - plan.ends[0]]
    assert run.reached == [True, False]
    # the learned part of relevance is taken out again, and nothing of it is left
    assert run.out == run.before
    assert len(run.after) == len(taught.SCORES)
    if way in ("masks", "clicks", "labels"):
        assert run.after != run.before


def test_pointing_shares_ties_and_masks_teach_it() -> None:
    from arr_coc import Learner

    store, plan = planned()
    learner = Learner(ArrCocConfig(width=8, expansion=0, spread=0, own_gain=0.0), store.site_widths, 6)
    rows = torch.cat(plan.probes)
    even = learner.own_gain.weight  # an untrained learner follows the own score alone, which is off here
    assert not even.any()
    assert taught.pointing(learner, store, rows) == pytest.approx(0.25)
    for _ in range(20):
        for row in plan.train.split(1):
            taught.WAYS["masks"](learner, store.batch(row), store)
    assert taught.pointing(learner, store, plan.train) > 0.5


def test_the_tables_say_means_intervals_and_what_never_got_there() -> None:
    low, high, mid = (0.25,) * 4, (1.0,) * 4, (0.9, 0.5, 0.5, 0.5)
    runs = [
        taught.Taught([10, 20], [True, True], low, high, low),
        taught.Taught([20, 30], [True, True], low, mid, low),
    ]
    never = taught.Taught([40, 40], [False, False], low, (0.5,) * 4, low)
    lines = taught.table({"masks": runs, "labels": [runs[0], never]})
    before, after = "0.250 / 0.250 / 0.250 / 0.250", "0.950 / 0.750 / 0.750 / 0.750"
    assert f"| masks alone | {before} | {after} | {before} |" in lines
    # mean 15 and 25: 20 with t(.975, 1) sd / sqrt 2 = 12.706 * 7.071 / 1.414
    assert "| masks alone | 20 ± 64 | 4 of 4 | 95.0 ± 63.5 |" in lines
    assert "| labels alone | at least 28 ± 159 | 2 of 4 | 75.0 ± 317.7 |" in lines
    found = {
        ("nothing", "", 0.0): [(0.25, 1.0), (0.35, 2.0)],
        ("the true cell", "upper", 1.0): [(0.75, 1.5), (0.85, 3.0)],
    }
    assert "| the true cell | upper | 1 | 80.0 ± 63.5 | +50.0 ± 0.0 | 1.50x |" in steered.table(found)
    one = steered.table({key: rows[:1] for key, rows in found.items()})
    assert "| the true cell | upper | 1 | 75.0 | +50.0 | 1.50x |" in one
