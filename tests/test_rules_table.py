"""The table of learning rules: what its columns mean, that it goes on where it stopped, and its command."""

import json

import pytest
import torch
from typer.testing import CliRunner

from arr_coc.adapters import embedded
from arr_coc.eval import rules_entries, rules_report, rules_table, rules_tasks
from arr_coc.eval.cli import app
from arr_coc.eval.rules_entries import BASELINE, FROZEN, Regime
from arr_coc.eval.rules_table import Run
from arr_coc.eval.rules_train import Course, Entry, Network, train
from arr_coc.eval.shown import markdown
from arr_coc.ladder import Ladder
from arr_coc.rules import RULES
from arr_coc.training import streams


@pytest.fixture(scope="module")
def digits() -> rules_tasks.Task:
    pytest.importorskip("sklearn")
    return rules_tasks.load("digits", 2, 64, 0)


def made(entry: str, seed: int, accuracy: list[float], alignment: float = 1.0) -> Run:
    course = Course(accuracy, [alignment] * len(accuracy), 1e-3, {})
    return Run(f"{entry}{seed}", entry, "digits", 2, seed, 1e-3, [(1e-3, 0.5)], course)


def test_the_share_of_the_gap_is_paired_by_seed_and_passes_are_counted_to_backprops_own_aim() -> None:
    runs = [
        made(BASELINE, 0, [0.1, 0.7, 0.9, 0.9]),
        made(BASELINE, 1, [0.1, 0.8, 0.8, 0.8]),
        made(FROZEN, 0, [0.1, 0.5, 0.5, 0.5]),
        made(FROZEN, 1, [0.1, 0.6, 0.6, 0.6]),
        made("x", 0, [0.1, 0.2, 0.3, 0.86], 0.5),
        made("x", 1, [0.1, 0.2, 0.77, 0.7], 0.5),
    ]
    cells = rules_table.summary(runs)["digits", 2]
    assert cells["x"].closed is not None
    assert cells["x"].closed.mean == pytest.approx(((0.86 - 0.5) / 0.4 + (0.7 - 0.6) / 0.2) / 2)
    assert cells["x"].ratio.mean == pytest.approx((0.86 / 0.9 + 0.7 / 0.8) / 2)
    assert cells["x"].epochs == 2.5  # .855 after three passes, .76 after two
    assert cells[BASELINE].epochs == 1.5
    assert cells["x"].slower == pytest.approx(2.5 / 1.5)
    assert cells["x"].angles == pytest.approx((60.0, 60.0, 60.0))
    assert cells[FROZEN].epochs == float("inf")
    text = markdown(rules_report.tables(runs, []))
    assert "| x | 78.0 ± " in text
    assert "never" in text


def test_rates_are_chosen_without_the_test_split(digits: rules_tasks.Task) -> None:
    few = rules_table.held_back(digits)
    assert len(few.label) + len(few.test_label) == len(digits.label)
    assert torch.equal(torch.cat([few.below, few.test_below]), digits.below)
    assert not any(torch.equal(few.test_below[0], row) for row in digits.test_below)


def test_runs_go_on_where_they_stopped_and_the_page_shows_them(digits, tmp_path, monkeypatch) -> None:
    entries = [Entry(BASELINE, "backprop"), Entry(FROZEN, "")]
    asked = {"columns": [("digits", 2)], "regime": Regime({"digits": 2}), "out": tmp_path / "r.jsonl"}
    monkeypatch.setattr(rules_table, "RATES", (1e-3, 3e-3))
    first = rules_table.run(entries, seeds=[0], **asked)
    count = []
    true = rules_table.train
    monkeypatch.setattr(rules_table, "train", lambda *a, **k: count.append(a) or true(*a, **k))
    both = rules_table.run(entries, seeds=[0, 1], **asked)
    assert len(count) == 2  # one per entry: neither the first seed again nor the rates
    assert [r for r in both if r.seed == 0] == first
    assert all(r.course.accuracy[-1] > r.course.accuracy[0] for r in both)
    page = rules_report.page(both, rules_report.tables(both, entries))
    assert page.count("<svg") == 2
    assert FROZEN in page


def test_random_hidden_layers_stay_random_and_the_readout_learns(digits: rules_tasks.Task) -> None:
    net = Network(Entry(FROZEN, ""), digits, 64, 0, 1e-3)
    before = {n: t.clone() for n, t in net.ladder.weights().items()}
    readout = net.readout.clone()
    net.learn(digits.below[:64], None, digits.label[:64])
    assert all(torch.equal(before[n], t) for n, t in net.ladder.weights().items())
    assert not torch.equal(readout, net.readout)


def test_under_reward_only_the_chosen_answer_is_told_anything(digits: rules_tasks.Task) -> None:
    net = Network(Entry("r", "attention_gated", reward=True), digits, 64, 0, 1e-3)
    climb = net.climb(digits.below[:64], None)
    taught = net.teaching(climb, digits.label[:64])
    told = taught.error != 0
    assert (told.sum(1) == 1).all()
    chosen = told.long().argmax(1)
    right = (chosen == digits.label[:64]).float()
    picked = taught.values.gather(1, chosen[:, None]).squeeze(1)
    torch.testing.assert_close(taught.error.gather(1, chosen[:, None]).squeeze(1), right - picked)


def test_the_same_seed_gives_the_same_run(digits: rules_tasks.Task) -> None:
    entry = Entry("r", "attention_gated", reward=True)
    one, two = (train(entry, digits, 16, 3, 1e-3, 2) for _ in range(2))
    assert (one.accuracy, one.alignment) == (two.accuracy, two.alignment)


def test_the_command_explains_and_names_what_is_possible() -> None:
    runner = CliRunner()
    for name in RULES:
        said = runner.invoke(app, ["rules", "--explain", name])
        assert said.exit_code == 0
        lines = said.output.strip().splitlines()
        assert 6 <= len(lines) <= 20
        assert lines[-1].startswith("Its ledger: ")
    for wrong, hint in (
        (["--explain", "hebian"], "possible are"),
        (["--tasks", "fashion"], "fashion:4"),
        (["--only", "nothing"], "possible are"),
        (["--json", "/nowhere/x.json"], "no folder"),
        (["--quick", "--online"], "leave --tasks and --online out"),
        (["--readout", "precision"], "add --online"),
        (["--online", "--readout", "exact"], "delta, precision"),
        (["--options", "{}"], "--only"),
        (["--only", "stdp", "--options", "precision=1"], "no JSON"),
        (["--only", "stdp", "--options", "[1]"], "a JSON object"),
        (["--only", "stdp", "--options", '{"precise": 1}'], "precise"),
    ):
        said = runner.invoke(app, ["rules", *wrong])
        assert said.exit_code == 2
        assert hint in said.output


def test_further_options_are_those_of_the_chosen_rows_alone() -> None:
    plain = rules_entries.chosen(["predictive_coding"])
    rows = rules_entries.changed(plain, '{"precision": 0.1}')
    assert rules_entries.changed(plain, "") == plain
    for before, after in zip(plain, rows, strict=True):
        if before.rule == "predictive_coding":
            assert after.options == {**before.options, "precision": 0.1}
            assert after.name == f"{before.name}, precision 0.1"
        else:
            assert after == before


def test_quick_prints_tables_and_writes_json_and_a_page(tmp_path, monkeypatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.setattr(rules_entries, "ENTRIES", rules_entries.ENTRIES[:3])
    monkeypatch.setattr(rules_entries, "FEW", Regime({"digits": 1}))
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(app, ["rules", "--quick", "--markdown", "--json", "r.json", "--html", "r.html"])
    assert said.exit_code == 0, said.output
    assert "gap closed %" in said.output
    assert "audited needs" in said.output
    told = json.loads((tmp_path / "r.json").read_text())
    assert len(told["runs"]) == 6
    assert "<svg" in (tmp_path / "r.html").read_text()


def test_one_pass_of_single_samples_is_another_run_than_many_passes() -> None:
    entry = Entry("r", "attention_gated", reward=True, epochs=3.5)
    assert rules_entries.PASSES.passes(entry, "fashion") == 35
    for readout in ("delta", "precision"):
        columns, regime = rules_entries.setting("", False, True, readout)
        assert columns == rules_entries.ONLINE_COLUMNS
        assert (regime.passes(entry, "fashion"), regime.batch, regime.readout) == (1, 1, readout)
    keys = {
        rules_table._key(entry, "digits", 2, 0, r)
        for r in (Regime(), rules_entries.online(), rules_entries.online("precision"))
    }
    assert len(keys) == 3


def test_a_precise_readout_over_random_rungs_is_ridge_regression(digits: rules_tasks.Task) -> None:
    net = Network(Entry(FROZEN, ""), digits, 16, 0, 1e-3, precise=True)
    some = slice(0, 300)
    with torch.no_grad():
        for k in range(300):
            net.learn(digits.below[k : k + 1], None, digits.label[k : k + 1])
        phi = net.climb(digits.below[some], None).phi.double()
    target = torch.nn.functional.one_hot(digits.label[some], 10).double()
    joint = torch.linalg.solve(phi.T @ phi + torch.eye(phi.shape[1], dtype=torch.float64), phi.T @ target)
    torch.testing.assert_close(net.readout.double(), joint.T, atol=1e-6, rtol=1e-5)


def test_a_precise_readout_learns_from_reward_what_was_chosen_alone(digits: rules_tasks.Task) -> None:
    net = Network(Entry("r", "attention_gated", reward=True), digits, 16, 0, 1e-3, precise=True)
    assert net.precise is not None
    with torch.no_grad():
        for k in range(40):
            net.learn(digits.below[k : k + 1], None, digits.label[k : k + 1])
    assert net.precise.class_count.sum() < 40  # whole labels: from right answers alone
    assert len(net.precise.partial_rows) > 0


def test_same_different_drives_two_rungs_with_what_was_asked_for(monkeypatch) -> None:
    monkeypatch.setattr(rules_tasks, "SCENES", (60, 60))
    own = rules_tasks.load("same-different", 2, 16, 0)
    given = rules_tasks.load("same-different-given", 2, 16, 0)
    assert own.drive.shape == given.drive.shape == (60, 32)
    assert torch.equal(own.below, given.below)
    assert torch.equal(own.label, given.label)
    assert own.label.float().mean() == own.test_label.float().mean() == 0.5
    assert not torch.allclose(own.drive, given.drive, atol=0.05)
    sample = streams.load("same-different", 0, n_train=60, n_test=60).samples[3]
    model, processor = embedded.load("dual")
    pixels = processor(images=[sample["image"]], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        seen = model.vision_model(pixel_values=pixels, output_hidden_states=True)
    top = torch.nn.functional.layer_norm(seen.hidden_states[-1][0, -144:], (192,))  # after the last block
    matrix = Ladder([192, 192], given.below.shape[1], 0, 16, 0, 0).get_buffer("project_1")
    expected = (top[torch.from_numpy(sample["mask"]).flatten()] @ matrix.T).mean(0)
    torch.testing.assert_close(given.drive[3, 16:], expected, rtol=1e-3, atol=1e-4)
