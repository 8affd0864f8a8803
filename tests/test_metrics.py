"""Measures against hand-computed matrices, intervals against closed forms, records against broken files."""

import json
import math
import os

import numpy as np
import pytest
from scipy import stats

from arr_coc.eval import intervals, metrics, records
from arr_coc.eval.records import Record

# rows after experience 1..3, without row 0
ONE = [[1, 0, 0], [0.5, 0.8, 1], [0.2, 1, 0.5]]
TWO = [[0.8, 0.7, 0.6], [0.7, 0.85, 0.55], [0.6, 0.75, 0.9]]
THREE = [[0.6, 0.1, 0.1], [0.7, 0.6, 0.1], [0.8, 0.7, 0.6]]
FOUR = [[0.5, 0.9, 0.1], [0.6, 0.7, 0.2], [0.4, 0.6, 0.8]]

COLUMNS = (
    "forgetting_first",
    "bwt_gem",
    "bwt_coin",
    "forgetting_max",
    "forgetting_max_from_taught",
    "forgetting_max_incl_last",
    "average_incremental_accuracy",
    "transfer_zscl",
    "mtil_average",
    "final_accuracy",
)


def with_row_zero(rows: list[list[float]], before: float = math.nan) -> np.ndarray:
    return np.array([[before] * len(rows), *rows])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (ONE, (0.30, -0.30, -0.20, 0.30, 0.30, 0.40, 0.738889, 0.25, 0.555556, 0.566667)),
        (TWO, (0.15, -0.15, -0.10, 0.15, 0.15, 0.15, 0.775, 0.6375, 0.716667, 0.75)),
        (THREE, (-0.15, 0.15, 0.10, -0.10, -0.10, 0.0, 0.65, 0.10, 0.477778, 0.70)),
    ],
)
def test_three_matrices_of_known_value(rows: list[list[float]], expected: tuple[float, ...]) -> None:
    matrix = with_row_zero(rows)
    got = [getattr(metrics, name)(matrix) for name in COLUMNS]
    assert got == pytest.approx(expected, abs=1e-6)


def test_a_fourth_tells_the_maxima_apart() -> None:
    matrix = with_row_zero(FOUR)
    assert metrics.forgetting_max(matrix) == pytest.approx(0.25)
    assert metrics.forgetting_max_from_taught(matrix) == pytest.approx(0.15)
    assert metrics.forgetting_first(matrix) == pytest.approx(0.10)
    assert metrics.forgetting_max_incl_last(matrix) == pytest.approx(0.25)


def test_forgetting_by_step_is_avalanches() -> None:
    expected = [[0, 0, 0], [0.5, 0, 0], [0.8, -0.2, 0]]
    assert metrics.forgetting_by_step(with_row_zero(ONE)) == pytest.approx(np.array(expected))


def test_transfer_by_row_is_another_number() -> None:
    assert metrics.transfer_rowmean(with_row_zero(TWO)) == pytest.approx(0.600)


def test_forgetting_at_an_earlier_step_reads_that_step() -> None:
    matrix = with_row_zero(ONE)
    assert metrics.forgetting_first(matrix, step=2) == pytest.approx(0.5)
    assert metrics.forgetting_max(matrix, step=2) == pytest.approx(0.5)
    for step in (1, 4):
        with pytest.raises(ValueError, match="2 to 3"):
            metrics.forgetting_max(matrix, step=step)


def test_forward_transfer_never_leaves_out_the_baseline() -> None:
    matrix = with_row_zero(TWO, before=0.5)
    assert metrics.fwt_gem(matrix) == pytest.approx((0.7 - 0.5 + 0.55 - 0.5) / 2)
    with pytest.raises(ValueError, match="never scored"):
        metrics.fwt_gem(with_row_zero(TWO))


def test_learning_accuracy_is_the_diagonal() -> None:
    assert metrics.learning_accuracy(with_row_zero(ONE)) == pytest.approx((1 + 0.8 + 0.5) / 3)


def test_what_a_model_knew_before_being_taught_does_not_count_from_row_zero() -> None:
    matrix = with_row_zero(ONE, before=1.0)
    for name in COLUMNS:
        assert getattr(metrics, name)(matrix) == pytest.approx(getattr(metrics, name)(with_row_zero(ONE)))


def test_cumulative_forgetting_by_hand_and_blind_to_cells_before_the_union_existed() -> None:
    nan = math.nan
    matrix = [[nan] * 3, [0.9, nan, nan], [0.95, 0.7, nan], [0.85, 0.72, 0.6]]
    # k = 1: max(.9, .95) - .85; k = 2: .7 - .72
    assert metrics.cumulative_forgetting(matrix) == pytest.approx((0.10 - 0.02) / 2)


def test_cumulative_row_restricts_the_answers_to_those_met() -> None:
    values = [[0.9, 0.1, 0.5, 2.0], [0.3, 0.2, 9.0, 0.1], [0.0, 0.0, 0.4, 0.3], [0.0, 0.0, 0.3, 0.4]]
    labels, turn = [0, 1, 2, 2], [0, 0, 1, 1]
    # up to 1: answers 0, 0 of 0, 1; up to 2: answers 3, 2, 2, 3 of 0, 1, 2, 2
    row = metrics.cumulative_row(values, labels, turn, met=[[1, 0], [0, 1, 2, 3]])
    assert row == pytest.approx([0.5, 0.25])
    with pytest.raises(ValueError, match="not among the answers"):
        metrics.cumulative_row(values, labels, turn, met=[[0], [0, 1, 2, 3]])
    with pytest.raises(ValueError, match="probe 3 of 3 has no samples"):
        metrics.cumulative_row(values, labels, turn, met=[[0, 1], [0, 1, 2], [0, 1, 2]])
    with pytest.raises(ValueError, match="are needed"):
        metrics.cumulative_row(values, labels[:3], turn, met=[[0, 1], [0, 1, 2]])


def test_a_learner_that_only_gains_a_growing_label_set_has_no_cumulative_forgetting() -> None:
    """Fixed scores: standard forgetting appears because answers are added, the cumulative kind does not."""
    draw = np.random.default_rng(0)
    labels, turn = np.arange(60) % 6, (np.arange(60) % 6) // 2
    values = np.eye(6)[labels] + draw.normal(0, 0.7, (60, 6))
    met = [[0, 1], [0, 1, 2, 3], list(range(6))]
    row = metrics.cumulative_row(values, labels, turn, met)
    assert metrics.cumulative_forgetting([row] * 4) == 0
    seen = [
        [(values[turn == e][:, m].argmax(1) == labels[turn == e]).mean() for e in range(3)]
        for m in met  # the columns of each begin at 0
    ]
    assert metrics.forgetting_first(with_row_zero(seen)) > 0


def test_residual_is_relative_and_the_largest() -> None:
    weights = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert metrics.order_residual(weights, weights) == 0
    assert metrics.merge_residual(weights, weights + np.array([[0, 0.5], [0, 0]]), weights) == pytest.approx(
        0.1
    )
    with pytest.raises(ValueError, match="all zero"):
        metrics.order_residual(0 * weights, weights)
    with pytest.raises(ValueError, match="alike"):
        metrics.order_residual(weights, weights[:1])


def test_joint_gap_retention_and_harmonic_mean() -> None:
    assert metrics.joint_gap(0.86, 0.80) == pytest.approx(0.06)
    assert metrics.zero_shot_retention(0.5, 0.45) == pytest.approx(0.9)
    assert metrics.harmonic_mean(0.9, 0.45) == pytest.approx(0.6)
    assert metrics.harmonic_mean(0.9, 0.0) == 0
    with pytest.raises(ValueError, match="nothing to retain"):
        metrics.zero_shot_retention(0, 0.3)
    with pytest.raises(ValueError, match="not negative"):
        metrics.harmonic_mean(0.9, -0.1)


def test_evaluations_every_few_steps() -> None:
    scores = [[0.4, 0.0], [0.8, 0.1], [0.5, 0.6], [0.7, 0.9]]
    ended = [1, 3]
    assert metrics.average_anytime_accuracy(scores, ended) == pytest.approx((0.4 + 0.8 + 0.55 + 0.8) / 4)
    assert metrics.min_acc(scores, ended) == pytest.approx(0.5)
    assert metrics.wc_acc(scores, ended) == pytest.approx(0.9 / 2 + 0.5 / 2)
    for wrong in ([3, 1], [1, 2], [1, 1]):
        with pytest.raises(ValueError, match="rising rows"):
            metrics.min_acc(scores, wrong)


def test_summary_has_what_was_scored_and_says_the_same() -> None:
    full = metrics.summary(with_row_zero(TWO, before=0.5))
    assert full == {name: getattr(metrics, name)(with_row_zero(TWO, before=0.5)) for name in full}
    assert {*COLUMNS, "fwt_gem", "transfer_rowmean", "learning_accuracy"} == set(full)
    lower = np.where(np.tril(np.ones((3, 3))), TWO, math.nan)
    assert set(metrics.summary(with_row_zero(lower.tolist()))) == {
        "final_accuracy",
        "average_incremental_accuracy",
        "learning_accuracy",
        "bwt_gem",
        "bwt_coin",
        "forgetting_first",
        "forgetting_max_from_taught",
    }
    assert set(metrics.summary([[0.1], [0.9]])) == {
        "final_accuracy",
        "average_incremental_accuracy",
        "learning_accuracy",
        "mtil_average",
    }


def test_a_learner_that_was_examined_at_the_end_only_has_a_final_accuracy_only() -> None:
    assert metrics.summary([[0.1, None], None, [0.6, 0.8]]) == {"final_accuracy": pytest.approx(0.7)}
    with pytest.raises(metrics.Unscored):
        metrics.bwt_gem([[0.1, None], None, [0.6, 0.8]])


@pytest.mark.parametrize("name", [*COLUMNS, "learning_accuracy", "cumulative_forgetting"])
def test_a_matrix_without_row_zero_or_with_a_hole_is_refused(name: str) -> None:
    measure = getattr(metrics, name)
    with pytest.raises(ValueError, match=r"\(T \+ 1, T\)"):
        measure(ONE)
    with pytest.raises(ValueError, match="never scored"):
        measure(np.full((4, 3), math.nan))


def test_forgetting_needs_two_experiences() -> None:
    for measure in (metrics.bwt_gem, metrics.forgetting_max, metrics.cumulative_forgetting):
        with pytest.raises(ValueError, match="at least 2"):
            measure([[0.1], [0.9]])


# Intervals


def test_five_seeds_give_one_point_two_four_standard_deviations() -> None:
    got = intervals.student_t([0.61, 0.64, 0.62, 0.66, 0.60])
    assert got.half / got.sd == pytest.approx(1.2417, abs=1e-4)
    assert got.sd == pytest.approx(np.std([0.61, 0.64, 0.62, 0.66, 0.60], ddof=1))
    assert (got.low + got.high) / 2 == pytest.approx(got.mean) == pytest.approx(0.626)
    assert str(got) == "0.6260 +- 0.0299 (n = 5)"  # 2.7764 * sqrt(.00232 / 4) / sqrt(5)


def test_orders_are_averaged_and_are_not_repetitions() -> None:
    seeds = np.array([0.5, 0.6, 0.7])
    spread = seeds[:, None] + [[-0.1, 0.0, 0.1]]
    assert intervals.student_t(spread).half == pytest.approx(intervals.student_t(seeds).half)
    assert intervals.student_t(spread).n == 3


def test_an_interval_covers_as_often_as_it_says() -> None:
    draw = np.random.default_rng(0).normal(1.0, 2.0, (2_000, 4))
    covered = sum(abs(i.mean - 1.0) <= i.half for i in map(intervals.student_t, draw)) / 2_000
    assert covered == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 2_000) ** 0.5)


def test_paired_is_scipys_test_on_seed_means() -> None:
    draw = np.random.default_rng(1)
    a, b = draw.normal(0.6, 0.05, (5, 3)), draw.normal(0.55, 0.05, (5, 3))
    got = intervals.paired(a, b)
    assert got.p == pytest.approx(stats.ttest_rel(a.mean(1), b.mean(1)).pvalue, rel=1e-12)
    assert got.interval.mean == pytest.approx((a - b).mean())
    assert intervals.paired(a, a).p == 1
    assert intervals.paired(np.ones(3), np.zeros(3)).p == 0


def test_holm_by_hand() -> None:
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, then the running max
    assert intervals.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert intervals.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert intervals.holm([]).size == 0


def test_binomial_error_of_fifteen_hundred_scenes() -> None:
    assert intervals.binomial_error(0.6, 1_500) == pytest.approx(0.0126491, abs=1e-7)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: intervals.student_t([0.5]), "at least 2"),
        (lambda: intervals.student_t([]), "seeds"),
        (lambda: intervals.student_t([0.5, math.nan]), "NaN"),
        (lambda: intervals.student_t([0.5, 0.6], level=95), "between 0 and 1"),
        (lambda: intervals.paired([0.5, 0.6], [0.5, 0.6, 0.7]), "same runs"),
        (lambda: intervals.holm([0.5, 1.2]), "probabilities"),
        (lambda: intervals.binomial_error(60, 100), "share"),
        (lambda: intervals.binomial_error(0.6, 0), "at least one"),
    ],
)
def test_what_has_no_interval_is_refused(call, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


# Records


def some_records() -> list[Record]:
    return [
        Record("arr-coc", "split-fashion", 0, 1, step, probe, 40, 10 * step + probe)
        for step in range(4)
        for probe in range(3)
    ]


def test_records_come_back_as_they_were(tmp_path) -> None:
    path = tmp_path / "deep" / "records.jsonl"
    kept = [*some_records(), Record("é", "cued-clutter", 2, 0, 1, 0, 3, 1 / 3, score="pointing")]
    records.write(path, kept)
    assert records.read(path) == kept
    assert [p.name for p in path.parent.iterdir()] == ["records.jsonl"]
    assert len(path.read_text().splitlines()) == len(kept)


def test_a_run_becomes_the_matrix_that_the_measures_take() -> None:
    matrix = records.matrix(some_records())
    assert matrix.shape == (4, 3)
    assert matrix[2, 1] == 21 / 40
    assert metrics.final_accuracy(matrix) == pytest.approx(31 / 40)
    hole = [r for r in some_records() if (r.step, r.probe) != (3, 1)]
    with pytest.raises(ValueError, match="never scored"):
        metrics.final_accuracy(records.matrix(hole))


def test_scores_and_runs_are_not_mixed() -> None:
    other = Record("lora", "split-fashion", 0, 1, 1, 0, 40, 5)
    with pytest.raises(ValueError, match="records of 2 runs"):
        records.matrix([*some_records(), other])
    with pytest.raises(ValueError, match=r"no record of 'pointing'; there are \['accuracy'\]"):
        records.matrix(some_records(), "pointing")
    assert [len(r) for r in records.by_run([*some_records(), other]).values()] == [12, 1]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    path = tmp_path / "records.jsonl"
    records.write(path, some_records()[:2])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="scored once per step"):
        records.write(path, some_records()[:1] * 2)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        records.write(path, some_records())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


GOOD = json.loads(
    '{"method":"m","stream":"s","seed":0,"order":0,"step":0,"probe":0,"n":4,"correct":2,"score":"a"}'
)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (json.dumps(GOOD)[:-9], "line 2 is no record"),
        ("[]", "its fields"),
        ("", "line 2"),
        (json.dumps(GOOD | {"sneed": 1}), "its fields"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "score"}), "its fields"),
        (json.dumps(GOOD | {"seed": -1}), "seed=-1"),
        (json.dumps(GOOD | {"seed": 1.5}), "seed=1.5"),
        (json.dumps(GOOD | {"n": True}), "n=True"),
        (json.dumps(GOOD | {"correct": 5}), "0 to n=4"),
        (json.dumps(GOOD | {"correct": math.nan}), "correct=nan"),
        (json.dumps(GOOD | {"method": ""}), "a word"),
        (json.dumps(GOOD), "scored once per step"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, line: str, words: str) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line + "\n")
    with pytest.raises(ValueError, match=words):
        records.read(path)
