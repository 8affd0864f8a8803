"""Learned and held-out samples asked among one union of texts, and their harmonic mean in the table."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from arr_coc.eval import exam, table
from arr_coc.eval.methods_features import Answered, Method
from fakes import CLASSES, fake_store


class Knows(Method):
    """Right about all that is asked, but for every third row: that one it takes for a text held out."""

    def answer(self, batch, texts: list[str]) -> Answered:
        scores = torch.zeros(len(batch.labels), len(texts))
        for i, (row, label) in enumerate(zip(batch.rows.tolist(), batch.labels, strict=True)):
            scores[i, texts.index(label)] = 1
            if row % 3 == 0 and "held out" in texts:
                scores[i, texts.index("held out")] = 2
        return Answered(scores)

    def observe(self, batch) -> None:
        raise AssertionError("an examination teaches nothing")


@pytest.mark.parametrize("size", [2, 7, 512])
def test_what_is_learned_loses_the_samples_that_a_text_held_out_takes(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exam, "EXAM_BATCH", size)
    store = fake_store()
    held = replace(store, classes=["held out", *CLASSES[1:]])
    plan = SimpleNamespace(
        probes=[torch.arange(0, 10), torch.arange(10, 15)], places=[[*range(10)], [*range(5)]]
    )
    assert exam.among_all(Knows(), plan, store, held) == pytest.approx(10 / 15)  # 0, 3, 6, 9 and 12 are taken
    none = replace(store, classes=list(CLASSES))
    assert exam.among_all(Knows(), plan, store, none) == 1


def test_the_table_has_it_where_all_records_have() -> None:
    found = {"R": [[0.0], [0.9]], "C": [[None], [0.9]], "P": None, "CP": None}
    found |= {"zero_shot_before": 0.5, "zero_shot_after": 0.4}
    told = table.scores(found | {"learned_after": 0.8})
    assert told["learned_after"] == 0.8
    assert told["harmonic_mean"] == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert "harmonic_mean" not in table.scores(found)
    rows = [
        {"stream": "s", "zero_shot_after": 0.4, "learned_after": 0.8, "harmonic_mean": 0.5},
        {"stream": "s"},
    ]
    assert table.columns(rows)["harmonic %"] == "harmonic_mean"
    early = {"stream": "s", "zero_shot_after": 0.4, "zero_shot_retention": 0.8}
    assert list(table.columns([*rows, early])) == ["zero-shot kept %"]


def test_what_only_some_runs_of_a_method_have_measured_is_left_out_of_its_row() -> None:
    run = {"stream": "s", "label": "s", "method": "plugin", "role": "method", "order": 0, "n_learned": 9}
    run |= {"chance": 0.5, "pointing_chance": None, "n_probe": [10], "step_cost": 1.0, "step_seconds": 1.0}
    run |= {"forward_seconds": 1.0, "state_bytes": 8, "settings": {}, "notes": []}
    run |= {"R": [[0.0], [0.9]], "C": [[None], [0.9]], "P": None, "CP": None}
    run |= {"zero_shot_before": 0.5, "zero_shot_after": 0.4}
    runs = [run | {"seed": seed, "learned_after": 0.8} for seed in (0, 1)]
    assert table.summary(runs)[0]["learned_after"].mean == pytest.approx(0.8)
    del runs[1]["learned_after"]
    row = table.summary(runs)[0]
    assert "learned_after" not in row
    assert row["zero_shot_retention"].mean == pytest.approx(0.8)
