"""`arr-coc eval` as it is typed: tables, records, the cache, and what is refused."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from arr_coc.eval.cli import app

SMALL = ["--n-train", "24", "--n-test", "12", "--seeds", "0-1", "--orders", "0", "--held", "1"]


def test_eval_prints_markdown_keeps_percepts_and_does_not_repeat_itself(tmp_path: Path) -> None:
    out, cache = tmp_path / "runs.jsonl", tmp_path / "cache"
    asked = ["eval", "cued-clutter", *SMALL, "--methods", "plugin,oracle", "--out", str(out)]
    asked += ["--cache", str(cache), "--markdown"]
    first = CliRunner().invoke(app, asked)
    assert first.exit_code == 0, first.output
    rows = [line for line in first.stdout.splitlines() if line.startswith("|")]
    assert rows[0].startswith("| method | final % | vs arr-coc |")
    assert rows[2].startswith("| arr-coc |")
    assert rows[3].startswith("| relevance uniform on the true cell, same readout |")
    assert rows[2].endswith("| 2 |")  # runs
    kept = sorted(p.name for p in cache.glob("*.safetensors"))
    assert len(kept) == 2  # one a seed
    written = out.read_bytes()
    again = CliRunner().invoke(app, asked)
    assert again.exit_code == 0
    assert out.read_bytes() == written
    assert [line for line in again.stdout.splitlines() if line.startswith("|")] == rows
    more = CliRunner().invoke(app, [*asked[:-1], "--methods", "plugin-fixed"])
    assert more.exit_code == 0
    assert (
        sorted(p.name for p in cache.glob("*.safetensors")) == kept
    )  # what was perceived is not perceived again


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--methods", "plugn"], "'plugin'"),
        (["--seeds", "one"], "possible are"),
        (["--cache", "FILE"], "is a file"),
        (["--n-train", "2"], "at least one scene"),
    ],
)
def test_a_wrong_argument_is_said_and_nothing_is_written(
    changed: list[str], said: str, tmp_path: Path
) -> None:
    file, out = tmp_path / "file", tmp_path / "runs.jsonl"
    file.write_text("x")
    changed = [str(file) if c == "FILE" else c for c in changed]
    found = CliRunner().invoke(app, ["eval", "cued-clutter", *SMALL, "--out", str(out), *changed])
    assert found.exit_code != 0
    assert said in found.output
    assert "Traceback" not in found.output
    assert not out.exists()
