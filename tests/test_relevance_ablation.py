"""The ablation of relevance: what a part is worth is the default minus the map without it."""

import numpy as np
import pytest

from arr_coc.adapters import embedded
from arr_coc.config import ArrCocConfig
from arr_coc.eval import relevance_ablation as ablation
from arr_coc.eval.relevance_exam import OWN, exam
from arr_coc.eval.relevance_questions import exam as asked_exam

ROOT = embedded.Path(embedded.__file__).parent


def test_differences_are_paired_over_the_images_that_count() -> None:
    nan = np.nan
    default = ablation.Row(np.array([1.0, 1.0, nan, 0.5]), np.array([0.5, nan, nan, 0.7]))
    without = ablation.Row(np.array([0.5, 0.5, nan, 0.0]), np.array([0.1, nan, nan, 0.3]))
    shown = ablation.table("a", {ablation.DEFAULT: default, "less": without}).splitlines()
    assert shown[-2] == "| as it is | 83.3 | 0.600 |  |  |"
    assert shown[-1] == "| less | 33.3 | 0.200 | +50.0 [50.0, 50.0] | +0.400 [0.400, 0.400] |"


def test_no_images_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["relevance_ablation", "--images", "0"])
    with pytest.raises(SystemExit):
        ablation.main()
    assert "--images 0: at least 1" in capsys.readouterr().err


def test_every_row_is_one_change_of_a_config() -> None:
    for rows in (ablation.DUAL, ablation.GENERATIVE):
        made = [ArrCocConfig(**changes).to_json() for changes in rows.values()]
        assert next(iter(rows.values())) == {}
        assert len(set(made)) == len(made)


@pytest.mark.skipif(not (ROOT / "dual" / "model.safetensors").is_file(), reason="weights are not there")
def test_the_default_is_what_the_exams_score() -> None:
    model, processor = embedded.load("dual")
    row = ablation.of_mosaics(model, processor, "emoji-3x3", [3], 9, {})
    scores = exam(model, processor, "emoji-3x3", [3], 1, [OWN]).scores[OWN]
    np.testing.assert_allclose(row.pointing, scores["pointing"])
    np.testing.assert_allclose(row.contrast, scores["contrast"], atol=1e-6)


@pytest.mark.skipif(not (ROOT / "generative" / "model.safetensors").is_file(), reason="weights are not there")
def test_the_default_is_what_the_questions_exam_scores() -> None:
    model, processor = embedded.load("generative")
    row = ablation.of_questions(model, processor, 2, [3], 6, {ablation.DEFAULT: {}})[ablation.DEFAULT]
    found = asked_exam(model, processor, 2, [3], 6, methods=[OWN])
    np.testing.assert_allclose(row.contrast, found.contrast[OWN], atol=1e-6)
    there = np.isfinite(row.pointing)
    assert there.any()
    assert set(row.pointing[there]) <= {0.0, 0.5, 1.0}
