"""What a grid's runs are written as: the numbers stand in every form, and are those of the table."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from scipy import stats
from sklearn.metrics import balanced_accuracy_score
from typer.testing import CliRunner

from arr_coc.eval import exam, metrics, outputs, presets, table
from arr_coc.eval.across import across
from arr_coc.eval.cli import app
from arr_coc.eval.grid import Grid
from arr_coc.eval.shown import Shown, say
from arr_coc.eval.standing import standings
from browser import opened

LAST = {  # by method, of each seed: the last row of R
    "plugin": [[0.8, 0.6], [0.9, 0.7]],
    "ncm": [[0.6, 0.6], [0.7, 0.7]],
    "ranpac": [[0.8, 0.4], [0.8, 0.7]],
    "head-er": [[0.9, 0.9], [0.8, 0.9]],
    "joint": [[0.9, 0.8], [0.9, 0.9]],
}


def runs(stream: str = "split-fashion") -> list[dict[str, Any]]:
    made = []
    for method, of_seed in LAST.items():
        for seed, last in enumerate(of_seed):
            made.append(
                {
                    "stream": stream,
                    "label": f"{stream}@10",
                    "method": method,
                    "role": "bound" if method == "joint" else "method",
                    "seed": seed,
                    "order": 0,
                    "chance": 0.5,
                    "pointing_chance": None,
                    "experiences": [["bag"], ["coat <b>"]],
                    "settings": {},
                    "R": [[0.5, 0.5], None if method == "joint" else [1.0, 0.1], last],
                    "C": [[None, None], None if method == "joint" else [0.9, None], [0.7, sum(last) / 2]],
                    "P": None,
                    "CP": None,
                    "by_class": [{"bag": [round(10 * last[0]), 10]}, {"coat": [round(20 * last[1]), 20]}],
                    "zero_shot_before": None,
                    "zero_shot_after": None,
                    "n_held": 0,
                    "n_learned": 60,
                    "n_probe": [10, 20],
                    "steps": 6,
                    "step_seconds": 0.002,
                    "forward_seconds": 0.01,
                    "step_cost": 1.2,
                    "state_bytes": 10**6,
                    "stored_samples": 60 if method == "head-er" else 0,
                    "told_boundaries": False,
                    "ledger": ["global_scalar"] if method == "plugin" else None,
                }
            )
    return made


# plugin: .7 and .8; ranpac, with .6 and .75 the best other without replay: + .1 and + .05
MEAN, HALF = 0.75, float(stats.t.ppf(0.975, 1)) * 0.05
AHEAD, AHEAD_HALF = 0.075, float(stats.t.ppf(0.975, 1)) * 0.025


def test_the_summary_in_plain_numbers() -> None:
    found = pandas.read_csv(io.StringIO(outputs.as_csv(runs(), {}))).set_index("method")
    assert found.loc["plugin", "final_accuracy"] == pytest.approx(MEAN)
    assert found.loc["plugin", "final_accuracy_half"] == pytest.approx(HALF)
    assert found.loc["ranpac", "vs_plugin"] == pytest.approx(-AHEAD)
    whole = json.loads(outputs.as_json(runs(), {}))
    row = next(r for r in whole["rows"] if r["method"] == "plugin")
    assert row["final_accuracy"] == pytest.approx(MEAN)
    assert whole["runs"] == runs()
    assert [s["other"] for s in whole["standings"]] == ["ranpac", "head-er"]
    alone = json.loads(outputs.as_json([r for r in runs() if r["seed"] == 0], {}))
    assert alone["rows"][0]["final_accuracy_half"] is None  # one seed: not known, and no NaN in JSON
    text = outputs.as_latex(runs(), {})
    assert rf"arr-coc & {100 * MEAN:.1f} $\pm$ {100 * HALF:.1f} &" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1


def test_raw_records_as_parquet() -> None:
    found = pandas.read_parquet(io.BytesIO(outputs.as_parquet(runs(), {})))
    last = found[(found.score == "accuracy") & (found.step == 2) & (found.method == "ranpac")]
    assert (last.correct / last.n).tolist() == pytest.approx([0.8, 0.4, 0.8, 0.7])
    coats = found[(found.score == "class: coat") & (found.method == "plugin")]
    assert coats[["n", "correct"]].values.tolist() == [[20, 12], [20, 14]]


def test_all_streams_beside_one_another() -> None:
    other = [r for r in runs("same-different") if r["method"] != "ncm"]
    ends, own = across(table.summary(runs() + other))
    assert ends.columns == ["method", "split-fashion@10", "same-different@10"]
    mine = f"{100 * MEAN:.1f} ± {100 * HALF:.1f}"
    assert ends.rows[0] == ["arr-coc", mine, mine]
    assert ends.rows[1][0] == "ncm"
    assert ends.rows[1][2] == ""  # no place on the second
    assert ends.rows[-1] == ["chance", "50", "50"]
    gap = f"12.5 ± {100 * AHEAD_HALF:.1f}"  # joint: .85 and .9
    assert [dict(zip(own.columns, row, strict=True))["joint gap"] for row in own.rows] == [gap, gap]
    assert "vs arr-coc" not in own.columns
    assert across(table.summary(runs())) == []  # one stream
    assert len(across(table.summary([r for r in runs() + other if r["method"] != "plugin"]))) == 1


@pytest.mark.parametrize("as_markdown", [False, True])
def test_a_note_stands_under_its_table(as_markdown: bool, capsys: pytest.CaptureFixture[str]) -> None:
    first = Shown("first", ["method", "b"], [["x", "1"]], "so it is")
    say([first, Shown("second", ["method"], [["y"]])], as_markdown)
    said = capsys.readouterr().out
    order = [said.index(word) for word in ("first", "x", "so it is", "second", "y")]
    assert order == sorted(order)
    assert ("| x | 1 |" in said) == as_markdown


def test_how_the_plugin_stands() -> None:
    best, replay = standings(runs())
    assert (best.other, best.kind) == ("ranpac", "best other without replay")
    assert best.difference.mean == pytest.approx(AHEAD)
    assert best.difference.half == pytest.approx(AHEAD_HALF)
    assert not best.holds  # .075 - .318 < -.005
    assert f"+{100 * AHEAD:.1f} ± {100 * AHEAD_HALF:.1f}" in str(best)
    assert (replay.other, replay.difference.mean) == ("head-er", pytest.approx(-0.125))
    sure = [r | {"R": [*r["R"][:2], [0.5, 0.5]]} if r["method"] in ("ncm", "ranpac") else r for r in runs()]
    level = [r | {"R": [*r["R"][:2], [0.499, 0.499]]} if r["method"] == "plugin" else r for r in sure]
    assert standings(level)[0].holds  # a tenth of a point below, on every seed
    assert standings([r for r in runs() if r["seed"] == 0])[0].holds is None


def test_the_page_holds_the_table_in_a_browser(tmp_path: Path) -> None:
    found = runs() + runs("cued-clutter")
    page = tmp_path / "page.html"
    outputs.write_all(found, {"html": page}, {"ncm": "nearest <mean>"})
    text = page.read_text()
    assert text == outputs.as_html(found, {"ncm": "nearest <mean>"})  # the same runs, the same page
    with opened(page, tmp_path / "profile") as driver:
        for stream, rows in table.by_stream(table.summary(found)).items():
            section = f"#stream-{stream.replace('@', '-')}"
            for row in rows:
                at = f"{section} [data-table=summary] tr[data-method={row['method']}]"
                for key in table.columns(rows).values():
                    (cell,) = driver.find_elements("css selector", f"{at} td[data-score={key}]")
                    assert cell.text == (table.cell(row.get(key)) or "–"), (row["method"], key)
            assert len(driver.find_elements("css selector", f"{section} svg")) == 3
            (pair,) = driver.find_elements(
                "css selector", f"{section} [data-table=pairs] tr[data-method=ncm]"
            )
            assert pair.text.split()[1] == "-10.0"  # .6 and .7 beside .7 and .8
        (needs,) = driver.find_elements("css selector", "[data-table=needs] tr[data-method=plugin]")
        assert "global scalar" in needs.text
        assert "nearest <mean>" in driver.find_element("css selector", "[data-table=needs]").text
        assert (
            f"{100 * MEAN:.1f} ± {100 * HALF:.1f}"
            in driver.find_element("id", "stream-split-fashion-10").text
        )
        for link in driver.find_elements("css selector", "nav a"):
            assert driver.find_elements("css selector", f"[id='{link.get_attribute('href').split('#')[1]}']")


def test_a_stream_of_one_experience_has_a_page() -> None:
    one = {"R": [[0.5], [0.7]], "C": [[None], [0.7]], "experiences": [["yes", "no"]], "n_probe": [10]}
    text = outputs.as_html([r | one | {"by_class": [{"yes": [7, 10]}]} for r in runs()], {})
    assert "70.0 ± 0.0" in text
    assert "<svg" not in text


def test_targets_are_checked_before_anything_runs(tmp_path: Path) -> None:
    out = tmp_path / "runs.jsonl"
    with pytest.raises(ValueError, match="both"):
        outputs.targets({"csv": tmp_path / "x", "html": tmp_path / "x"})
    with pytest.raises(ValueError, match="--out"):
        outputs.targets({"json": out}, out)
    asked = ["eval", "split-fashion", "--methods", "ncm", "--out", str(out)]
    found = CliRunner().invoke(app, [*asked, "--html", str(tmp_path / "none" / "x.html")])
    assert found.exit_code == 2
    assert "no folder" in found.output
    assert not list(tmp_path.iterdir())


def test_balanced_accuracy_is_scikit_learns() -> None:
    draw = np.random.default_rng(0)
    labels = draw.choice(4, 200, p=[0.7, 0.2, 0.07, 0.03])
    said = np.where(draw.random(200) < 0.3, draw.integers(4, size=200), labels)
    counted = exam.by_class([str(x) for x in labels], torch.tensor(said == labels).float())
    right, count = zip(*counted.values(), strict=True)
    expected = balanced_accuracy_score(labels, said)
    assert metrics.balanced_accuracy(right, count) == pytest.approx(expected, abs=1e-12)
    assert metrics.balanced_accuracy([*right, 0], [*count, 0]) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="as many"):
        metrics.balanced_accuracy([3], [2])


def test_balanced_accuracy_is_shown_where_classes_are_uneven() -> None:
    plain = runs()[0]
    assert "balanced_accuracy" not in table.scores(plain)  # 10 and 20 samples: chance may draw that
    uneven = plain | {"by_class": [{"bag": [90, 100]}, {"bag": [10, 20], "coat": [3, 30]}]}
    assert table.scores(uneven)["balanced_accuracy"] == pytest.approx((100 / 120 + 3 / 30) / 2)
    said = plain | {"stream": "split-fashion?imbalance=10"}
    assert table.scores(said)["balanced_accuracy"] == pytest.approx((8 / 10 + 12 / 20) / 2)
    outdated = uneven | {"stream": "split-fashion?imbalance=10", "outdated": [0]}
    assert table.scores(outdated)["balanced_accuracy"] == pytest.approx((10 / 20 + 3 / 30) / 2)


def test_a_preset_leaves_out_what_has_no_place_and_says_so() -> None:
    core = presets.preset("core")
    kept, left = presets.with_a_place(Grid("scene-qa", n_train=12, n_test=12), core.methods)
    assert set(core.methods) - set(kept) == {"rail", "f-oal"}
    assert len(left) == 2
    assert all("scene-qa" in line and "dual" in line for line in left)
    assert presets.with_a_place(Grid("split-fashion"), ["plugin", "oracle"])[0] == ["plugin"]
    assert presets.at_most("emoji-vendors", 3000, 10**9) == (3000, None)
    with pytest.raises(ValueError, match="nearest is 'core'"):
        presets.preset("cor")


def test_options_hold_before_a_preset(tmp_path: Path) -> None:
    out, csv = tmp_path / "runs.jsonl", tmp_path / "x.csv"
    asked = ["eval", "split-fashion", "--preset", "core", "--methods", "ncm", "--seeds", "3", "--held", "0"]
    asked += ["--n-train", "20", "--n-test", "20", "--out", str(out), "--csv", str(csv)]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    (record,) = [json.loads(line) for line in out.read_text().splitlines()]
    assert (record["seed"], record["n_train"], record["batch"], record["n_held"]) == (3, 20, 10, 0)
    assert pandas.read_csv(csv).method.tolist() == ["ncm"]
