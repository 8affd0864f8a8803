"""Somebody's own class as a row: told by observe and predict alone, tuned, narrowed and refused in time."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import fakes
from arr_coc.eval import exam, methods, own, percepts, run, table
from arr_coc.eval import methods_features as features
from arr_coc.eval.spec import Setup
from fakes import CLASSES, CONFIG, every, fake_store, feed

README = Path(__file__).parents[1] / "README.md"


def example() -> dict[str, Any]:
    """The names that the README's example defines; its last statement, a grid, is left to the test."""
    found = re.search(r"<!-- own -->\n```python\n(.*?)```\n<!-- /own -->", README.read_text(), re.DOTALL)
    assert found is not None
    code, last = found[1].rsplit("\n\n", 1)
    assert "runs = run.run(" in last
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return fakes.tiny_clip(), fakes.FakeProcessor()


def test_the_readmes_example_is_the_nearest_class_mean(tiny: tuple[Any, Any], tmp_path: Path) -> None:
    """Word for word the same matrices as the row that computes it in another way."""
    learner = example()["NearestMean"]
    grid = run.Grid("split-fashion", 4, n_train=60, n_test=60, config=CONFIG)
    out = tmp_path / "runs.jsonl"
    asked: dict[str, Any] = {"seeds": [0], "orders": [0], "model": tiny, "held": 0, "out": out}
    mine, ncm = run.run(grid, {"mine": learner, "ncm": None}, **asked)
    assert (mine["method"], ncm["method"]) == ("mine", "ncm")
    assert mine["C"] == ncm["C"]  # asked again among fewer texts
    assert mine["R"] == ncm["R"]
    assert mine["stored_samples"] == 0
    assert mine["told_boundaries"] is False
    assert mine["state_bytes"] > 0
    written = out.read_bytes()
    assert run.run(grid, {"mine": learner}, **asked) == [mine]
    assert out.read_bytes() == written
    assert "| mine |" in table.markdown(table.summary([mine, ncm]))


class Scored:
    """The row of the label's first letter.

    It has a memory, wants to know when an experience ends, and a setting.
    """

    grid = ({"shift": 0.0}, {"shift": 1.0})
    stored_samples = 3

    def __init__(self, setup: Setup) -> None:
        self.shift, self.ended, self.done = setup.settings.get("shift", 0.0), 0, False
        self.held = [torch.zeros(5), {"a": torch.zeros(2, dtype=torch.float64)}]

    def observe(self, batch: Any) -> None:
        """Learns nothing."""

    def predict(self, batch: Any, texts: list[str]) -> Any:
        return torch.arange(len(texts)).repeat(len(batch.labels), 1) + self.shift

    def experience_over(self) -> None:
        self.ended += 1

    def finish(self) -> None:
        self.done = True


def test_scores_hooks_and_settings_of_a_class_are_used() -> None:
    store = fake_store()
    spec = own.own_spec(Scored)
    assert spec.about == "The row of the label's first letter."
    assert spec.grid == Scored.grid
    method = spec.make(Setup(store, CONFIG, settings={"shift": 1.0}))
    assert isinstance(method, own.Own)
    assert torch.equal(method.answer(every(store), CLASSES).scores[0], torch.tensor([1.0, 2.0, 3.0]))
    assert not method.asked_again
    method.experience_over()
    method.finish()
    assert (method.inner.ended, method.inner.done) == (1, True)
    assert method.told_boundaries
    assert method.stored_samples == 3
    assert method.state_bytes() == 5 * 4 + 2 * 8


class Blurts:
    """Says the same, whatever is asked."""

    said: Any = None

    def observe(self, batch: Any) -> None:
        """Learns nothing."""

    def predict(self, batch: Any, texts: list[str]) -> Any:
        return self.said


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (["a photo of a bag"] * 59, "59 answers; 60 samples"),
        (["hat"] * 60, "'hat', which is none of the texts"),
        (torch.zeros(60, 2), r"shape \(60, 2\).*60 samples and 3 texts"),
    ],
)
def test_an_answer_that_was_not_asked_for_is_refused(said: Any, told: str) -> None:
    learner = Blurts()
    learner.said = said
    with pytest.raises(ValueError, match=told):
        own.Own(learner).answer(every(fake_store()), CLASSES)


def test_who_cannot_say_is_wrong() -> None:
    store, learner = fake_store(), Blurts()
    learner.said = [None, *[CLASSES[int(i)] for i in store.label[1:]]]
    scores = own.Own(learner).answer(every(store), CLASSES).scores
    assert store.right(scores, torch.arange(60)).tolist() == [0.0, *[1.0] * 59]


def test_what_is_no_method_is_refused_before_anything_runs(tmp_path: Path) -> None:
    class Half:
        def observe(self, batch: Any) -> None:
            """Learns nothing."""

    class Greedy(Blurts):
        grid = tuple({"a": float(i)} for i in range(6))

    out = tmp_path / "x.jsonl"
    for given, told in (
        ({"mine": Half}, "no predict"),
        ({"mine": Greedy}, "at most 5"),
        ({"ridge-state": Blurts}, "name of another method"),
        (["no_such_module_here:Blurts"], "no module 'no_such_module_here'"),
        (["json:Blurts"], "module json has no class 'Blurts'"),
        (["ncmm"], "nearest is 'ncm'"),
    ):
        with pytest.raises(ValueError, match=told):
            run.run(run.Grid("split-fashion"), given, out=out)
    assert not out.exists()


def test_a_class_is_found_by_its_module_in_the_folder_that_this_runs_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = "class Mine:\n    def observe(self, batch): ...\n    def predict(self, batch, texts): return {}\n"
    (tmp_path / "own_method_of_a_test.py").write_text(body.format("[texts[0]] * len(batch.labels)"))
    monkeypatch.chdir(tmp_path)
    rows = methods.specs(["own_method_of_a_test:Mine", "ncm"])
    assert list(rows) == ["own_method_of_a_test:Mine", "ncm"]
    method = rows["own_method_of_a_test:Mine"].make(Setup(fake_store(), CONFIG))
    assert method.predict(every(fake_store()), CLASSES) == [CLASSES[0]] * 60


def test_a_changed_class_is_another_run() -> None:
    """What stands in a file of runs was made by the source that it is known by."""
    grid = run.Grid("split-fashion", config=CONFIG)
    one, other = own.own_spec(Blurts), own.own_spec(Scored)
    assert grid.key("mine", 0, 0, "m", 0, one) != grid.key("mine", 0, 0, "m", 0, other)
    assert grid.key("mine", 0, 0, "m", 0, one) == grid.key("mine", 0, 0, "m", 0, own.own_spec(Blurts))


def test_whoever_is_asked_again_is_examined_as_one_whose_scores_are_narrowed() -> None:
    class Told(own.Own):
        """Only the best text, though the scores are there."""

        def answer(self, batch: Any, texts: list[str]) -> features.Answered:
            best = self.inner.predict(batch, texts)
            return features.Answered(self._chosen(best, len(best), texts))

    store, stream = fake_store(), fakes.small("split-fashion", n_train=20, n_test=20)
    plan = percepts.Plan(
        torch.arange(30),
        [15, 30],
        [torch.arange(30, 45), torch.arange(45, 60)],
        [CLASSES[:2], CLASSES[2:]],
        [CLASSES[:2], CLASSES],
        stream,
        [[0] * 15, [0] * 15],
        list(range(30)),
    )
    method = features.NearestMean(features.tower_output)
    feed(method, store, list(range(30)))
    scored, said = (exam.examine(m, plan, store, 2) for m in (method, Told(method)))
    assert said == scored
    assert scored.union[0] != scored.accuracy[0]
