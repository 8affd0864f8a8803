"""The exam of relevance: the sanity ladder, arr-coc's own row, and the command as it is typed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from arr_coc.adapters import attach, embedded
from arr_coc.eval import relevance_baselines as rb
from arr_coc.eval import relevance_exam as ex
from arr_coc.eval import relevance_report as report
from arr_coc.eval.cli import app
from arr_coc.eval.intervals import paired_bootstrap
from arr_coc.eval.relevance_protocols import KINDS, Mosaic, mosaics
from arr_coc.eval.relevance_randomised import redrawn


@pytest.fixture(scope="module")
def dual():
    return embedded.load("dual")


@pytest.fixture(scope="module")
def shown() -> list[Mosaic]:
    return mosaics("emoji-3x3", 1, 11)


def ladder(shown: list[Mosaic], maps: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Scores of one map a question over a Latin square: maps of (11, 144) each."""
    rows = [ex.scored(r, m) for r, m in zip(maps, shown, strict=True)]
    return {s: np.array([row[s] for row in rows]) for s in ex.SCORES}


def test_an_oracle_is_one_and_an_inverted_one_zero(shown: list[Mosaic]) -> None:
    truths = [np.concatenate([m.truths.reshape(9, -1), np.ones((2, 144))]).astype(float) for m in shown]
    right, wrong = ladder(shown, truths), ladder(shown, [1 - t for t in truths])
    assert all(right[s].tolist() == pytest.approx([9.0 if s == "lift" else 1.0] * 9) for s in ex.SCORES)
    for score in ("pointing", "lift", "rank", "auroc", "swap"):
        assert (wrong[score] == 0).all()
    assert wrong["contrast"] == pytest.approx(-1 / 8)


@pytest.mark.parametrize("kind", list(KINDS))
def test_maps_that_ignore_the_question_score_chance_on_every_image(kind: str) -> None:
    draw = np.random.default_rng(0)
    expected = ex.chance(KINDS[kind].grid)
    for mosaic in mosaics(kind, 1, 0)[:3]:
        m = KINDS[kind].grid ** 2
        for one in (
            np.ones(144),
            draw.random(144),
            draw.normal(size=144),
            ex.baselines.centre_prior(12).ravel(),
        ):
            found = ex.scored(np.repeat(one[None], m + 2, 0), mosaic)
            assert found == pytest.approx(expected, abs=1e-12)
            assert (found["contrast"], found["swap"], found["absent"]) == (0, 0.5, 0.5)


@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_random_maps_score_chance_within_three_standard_errors(shown: list[Mosaic], blur: float) -> None:
    draw = np.random.default_rng(1)
    maps = [draw.random((11, 12, 12)) for _ in range(8 * len(shown))]
    maps = [np.stack([gaussian_filter(r, blur) for r in of]).reshape(11, -1) for of in maps]
    found = ladder(shown * 8, maps)
    for score, chance in ex.chance(3).items():
        error = found[score].std(ddof=1) / len(maps) ** 0.5
        assert abs(found[score].mean() - chance) < 3 * error, score


def test_on_redrawn_weights_arr_coc_scores_chance(dual, shown: list[Mosaic]) -> None:
    """And it did not on the trained ones: what points is what the model knows."""
    model, processor = dual
    eye, draw = rb.open_eye(model), torch.Generator()
    known = ladder(shown, list(ex.maps_of(ex.OWN, eye, processor, shown, draw)))
    assert known["pointing"].mean() > 0.85
    assert known["contrast"].mean() > 0.4
    with redrawn(model, 0):
        blind = ladder(shown, list(ex.maps_of(ex.OWN, rb.open_eye(model), processor, shown, draw)))
    for score in ("pointing", "rank", "auroc", "contrast"):
        chance = ex.chance(3)[score]
        assert abs(blind[score].mean() - chance) < 0.1 * (known[score].mean() - chance), score


def test_arr_cocs_row_is_what_an_attached_model_says(dual, shown: list[Mosaic]) -> None:
    model, processor = dual
    maps = ex.maps_of(ex.OWN, rb.open_eye(model), processor, shown[:1], torch.Generator())
    attached = attach(model, None, processor)
    try:
        for q in (0, 8, 9):
            text = [*shown[0].asked, *shown[0].absent][q]
            (said,) = attached.predict(shown[0].image, ["a thing"], context=text)
            assert maps[0, q] == pytest.approx(said.relevance.numpy(), abs=1e-5)
    finally:
        attached.detach()
    assert maps.shape == (1, 11, 144)
    assert maps.sum(-1) == pytest.approx(np.ones((1, 11)), abs=1e-5)


def test_the_exam_keeps_one_row_an_image(dual) -> None:
    found = ex.exam(*dual, "emoji-3x3", [3, 4], 1, ("arr-coc", "centre", "patch-text"))
    assert found.seeds.tolist() == [3] * 9 + [4] * 9
    assert len(np.unique(found.groups)) == 2
    assert all(len(v) == 18 for of in found.scores.values() for v in of.values())
    assert (found.scores["centre"]["contrast"] == 0).all()
    lines = report.verdict([found], {ex.OWN: 1.02})
    assert lines[0].startswith("emoji-3x3, pointing: arr-coc is above")
    assert lines[-1].endswith("1.02x the frozen forward pass, within the 1.05x aimed at.")
    table = report.scores(found, {"centre": 1.0})
    assert table.rows[1][0] == "centre"
    assert table.rows[1][-1] == "1.00x"
    assert table.rows[-1][0] == "chance"
    again = ex.exam(*dual, "emoji-3x3", [3, 4], 1, ("patch-text",))
    assert (again.scores["patch-text"]["contrast"] == found.scores["patch-text"]["contrast"]).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in dual[0].modules())
    with pytest.raises(ValueError, match="there are arr-coc, random"):
        ex.exam(*dual, "emoji-3x3", [0], 1, ("lime",))


def test_every_method_has_its_cost(dual) -> None:
    steps = ex.steps(*dual, mosaics("emoji-3x3", 1, 0)[:1])
    assert set(steps) == {"forward", ex.NEW, *ex.METHODS}


def test_another_grid_is_refused() -> None:
    import tiny

    with pytest.raises(ValueError, match="4 x 4 patches"):
        ex.exam(tiny.dual(), None, "emoji-3x3", [0], 1)


def test_the_bootstrap_is_the_normal_interval_of_many_images_and_pairs() -> None:
    draw = np.random.default_rng(0)
    base = draw.normal(size=400)
    a, b = base + draw.normal(0.1, 0.1, 400), base
    found = paired_bootstrap(a, b)
    error = (a - b).std(ddof=1) / 20
    assert found.mean == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx(
        (found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.2 * error
    )
    assert (found.sign, paired_bootstrap(b, a).sign, paired_bootstrap(a, a).sign) == (1, -1, 0)
    assert found == paired_bootstrap(a, b)  # the seed decides


def test_images_that_share_something_are_drawn_together() -> None:
    """Twenty copies of five numbers: the interval of five numbers, not of a hundred."""
    d = np.repeat([1.0, 2.0, 3.0, 4.0, 5.0], 20)
    zero, groups = np.zeros(100), np.repeat(np.arange(5), 20)
    few, whole = paired_bootstrap(d[::20], zero[:5]), paired_bootstrap(d, zero, groups)
    assert (few.low, few.high) == pytest.approx((whole.low, whole.high))
    assert whole.n == 5
    alone = paired_bootstrap(d, zero)
    assert alone.high - alone.low < 0.5 * (whole.high - whole.low)
    with pytest.raises(ValueError, match="at least 2"):
        paired_bootstrap(d, zero, np.zeros(100))
    with pytest.raises(ValueError, match="same images"):
        paired_bootstrap([1.0], [1.0, 2.0])


def test_what_cannot_be_run_is_said_in_one_line(tmp_path: Path) -> None:
    for changed, said in (
        (["--protocol", "P9"], "there are P1, P2, P3, further"),
        (["--seeds", "x"], "possible are"),
        (["--json", str(tmp_path / "no" / "x.json")], "no folder"),
    ):
        run = CliRunner().invoke(app, ["relevance", *changed])
        assert run.exit_code == 2
        assert said in run.stderr


@pytest.mark.slow
def test_the_command_prints_its_tables(tmp_path: Path) -> None:
    out = tmp_path / "p1.json"
    run = CliRunner().invoke(app, ["relevance", "--quick", "--markdown", "--json", str(out)])
    assert run.exit_code == 0, run.output
    rows = [line for line in run.stdout.splitlines() if line.startswith("|")]
    assert sum(line.startswith("| arr-coc, nothing learned |") for line in rows) == 2
    kept = json.loads(out.read_text())
    assert set(kept["costs"]) == {ex.NEW, *ex.METHODS}
    assert {len(v) for r in kept["results"] for of in r["scores"].values() for v in of.values()} == {18}
