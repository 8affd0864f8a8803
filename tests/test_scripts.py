"""The training scripts run as printed: from arguments, YAML or JSON, to an adapter that has learned."""

import importlib
import json
import os
import re
import shlex
import signal
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import PartialState
from typer.testing import CliRunner

from arr_coc import ArrCocConfig, ArrCocModel, state
from arr_coc.adapters import embedded
from arr_coc.eval.cli import app
from arr_coc.training import garments, learn_from_rewards, script
from arr_coc.training.items import FASHION_CLASSES
from training_data import Crash

SMALL = ["--adapter", '{"width": 32, "expansion": 64}', "--disable_tqdm", "true"]


def module(name: str):
    return importlib.import_module(f"arr_coc.training.{name}")


def before_and_after(said: str) -> tuple[float, float]:
    before, after = re.findall(r"(0\.\d{3}|1\.000) (?:before|after)", said.replace(",\n", ", "))
    return float(before), float(after)


# -- they run and learn --------------------------------------------------------------------------------------


def test_a_dual_encoder_learns_from_a_config_and_its_adapter_is_saved(tmp_path, capsys) -> None:
    config = tmp_path / "garments.yaml"
    config.write_text(
        "script: learn_dual_encoder\nn_train: 150\nn_test: 60\nadapter: {width: 32, expansion: 64}\n"
        f"output_dir: {tmp_path / 'out'}\ndisable_tqdm: true\nlearning_rate: 1e-3\nmax_grad_norm: null\n"
    )
    script.launch(config)
    before, after = before_and_after(capsys.readouterr().out)
    assert after > before + 0.15
    again = ArrCocModel.from_pretrained(embedded.load("dual")[0], tmp_path / "out")
    assert int(again.learner.step) == 150
    assert again.learner.config.width == 32


@pytest.mark.parametrize(
    "name", ["learn_dual_encoder", "learn_streaming", "learn_answers", "cifar100_ten_steps"]
)
def test_of_several_processes_the_first_alone_says_what_is_read(
    name: str, tmp_path, monkeypatch, capsys
) -> None:
    """Every one of them printed it."""

    def enough(*_, **__) -> None:
        raise InterruptedError

    monkeypatch.setattr(module(name), "ArrCocTrainer", enough)
    if name == "cifar100_ten_steps":
        said = [*cifar(tmp_path / "data"), "--output_dir", str(tmp_path)]
    else:
        said = ["--n_test", "5", "--output_dir", str(tmp_path), *SMALL]
        said += ["--samples" if name == "learn_streaming" else "--n_train", "20"]
    for rank in (0, 1):
        monkeypatch.setattr(script.OnlineArguments, "process_index", rank)
        with pytest.raises(InterruptedError):
            module(name).run(said)
        assert ("sites" in capsys.readouterr().out) == (rank == 0)


def test_a_generative_model_learns_answers_of_a_folder_of_rows(tmp_path, capsys) -> None:
    """Columns under names of their own, in a saved DatasetDict."""
    kinds = datasets.Features(pic=datasets.Image(), q=datasets.Value("string"), a=datasets.Value("string"))

    def made(split: str, count: int) -> datasets.Dataset:
        rows = [garments.rows(split, 400)[i] for i in range(400)]
        rows = [r for r in rows if r["name"] in ("trousers", "ankle boot")][:count]
        asked = ["what is it?"] * len(rows)
        answers = ["Triangle" if r["name"] == "trousers" else "red star" for r in rows]
        return datasets.Dataset.from_dict(
            {"pic": [r["image"] for r in rows], "q": asked, "a": answers}, kinds
        )

    datasets.DatasetDict(train=made("train", 60), test=made("test", 30)).save_to_disk(tmp_path / "data")
    columns = ["--image", "pic", "--question", "q", "--answer", "a", "--max_new_tokens", "6"]
    said = ["--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), *columns, *SMALL]
    module("learn_answers").run(said)
    before, after = before_and_after(capsys.readouterr().out)
    assert before < 0.1
    assert after > 0.9


def test_a_streamed_set_is_learned_once(tmp_path, capsys) -> None:
    said = ["--samples", "130", "--n_test", "60", "--shuffle_buffer", "50", "--output_dir", str(tmp_path)]
    module("learn_streaming").run([*said, *SMALL])
    told = capsys.readouterr().out
    before, after = before_and_after(told.replace("streamed ones", ""))
    assert after > before + 0.15
    assert "after 130 streamed" in told


def test_texts_as_labels_of_a_streamed_set_need_the_names_of_the_classes(tmp_path, capsys) -> None:
    rows = [garments.rows("train", 40)[i] for i in range(40)]
    given = {"image": [r["image"] for r in rows], "label": [r["name"] for r in rows]}
    kinds = datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    made = datasets.Dataset.from_dict(given, kinds)
    datasets.DatasetDict(train=made, test=made.select(range(10))).save_to_disk(tmp_path / "data")
    said = ["--dataset", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out"), *SMALL]
    with pytest.raises(ValueError, match="--classes"):
        module("learn_streaming").run(said)
    (tmp_path / "names.txt").write_text("\n".join(FASHION_CLASSES) + "\n")
    module("learn_streaming").run([*said, "--classes", str(tmp_path / "names.txt")])
    assert "after 40 streamed" in capsys.readouterr().out


def test_a_folder_of_images_is_learned_and_what_cannot_be_read_is_said(tmp_path, capsys) -> None:
    photos = tmp_path / "photos"
    assert garments.export(photos, count=200) == 200
    assert len(list(photos.glob("*/*.png"))) == 200
    for name in ("a", "b", "c", "d", "e", "f"):
        (photos / "bag" / f"{name}.png").write_text("no picture")
    module("learn_image_folder").run(["--folder", str(photos), "--output_dir", str(tmp_path / "out"), *SMALL])
    told = capsys.readouterr().out
    before, after = before_and_after(told)
    assert after > before + 0.1
    assert re.search(r"passed over: \d x unreadable image", told)


def test_told_right_or_wrong_it_learns_and_goes_on_after_a_ctrl_c(tmp_path, capsys, monkeypatch) -> None:
    def said(name: str) -> list[str]:
        sizes = ["--n_train", "600", "--n_test", "100", "--batch", "20", "--late", "2"]
        return [*sizes, "--output_dir", str(tmp_path / name)]

    learn_from_rewards.run(said("whole"))
    before, after = before_and_after(capsys.readouterr().out)
    assert after > before + 0.1
    judged = []

    def stop(choice, labels):
        judged.append(len(choice))
        if len(judged) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return (choice == labels).float()

    monkeypatch.setattr(learn_from_rewards, "judge", stop)
    with pytest.raises(KeyboardInterrupt, match="after step 7"):
        learn_from_rewards.run(said("stopped"))
    saved = ArrCocModel.from_pretrained(embedded.load("dual")[0], tmp_path / "stopped")
    assert int(saved.learner.step) == 140
    learn_from_rewards.run([*said("stopped"), "--resume_from_checkpoint", "true"])
    assert len(judged) == 30
    saved = ArrCocModel.from_pretrained(embedded.load("dual")[0], tmp_path / "stopped")
    assert int(saved.learner.step) == 600


def test_of_several_that_are_rewarded_the_first_alone_speaks_and_saves(tmp_path, monkeypatch, capsys) -> None:
    """Every one of them printed all of it, and they saved into one folder at once."""
    sizes = ["--n_train", "40", "--n_test", "10", "--adapter", '{"width": 32, "expansion": 64}']
    for first in (False, True):
        monkeypatch.setattr(PartialState, "is_main_process", first)
        folder = tmp_path / str(first)
        learn_from_rewards.run([*sizes, "--output_dir", str(folder)])
        said = capsys.readouterr()
        assert ("sites" in said.out, "mean reward" in said.out, "acting" in said.err) == (first,) * 3
        assert bool(said.out) == folder.exists() == first


def cifar(folder: Path) -> list[str]:
    """A set with the columns of CIFAR-100, and the arguments to learn it in five steps."""
    kinds = datasets.Features(
        img=datasets.Image(),
        fine_label=datasets.ClassLabel(names=[n.replace(" ", "_") for n in FASHION_CLASSES]),
    )

    def made(split: str, count: int) -> datasets.Dataset:
        rows = garments.rows(split, count, side=32)
        rows = [rows[i] for i in range(count)]
        given = {"img": [r["image"] for r in rows], "fine_label": [r["label"] for r in rows]}
        return datasets.Dataset.from_dict(given, kinds)

    datasets.DatasetDict(train=made("train", 200), test=made("test", 80)).save_to_disk(folder)
    return ["--model", "dual", "--dataset", str(folder), "--steps", "5", *SMALL]


def test_classes_in_steps_are_all_asked_for_and_a_killed_run_goes_on(tmp_path, capsys, monkeypatch) -> None:
    steps = module("cifar100_ten_steps")
    given = [*cifar(tmp_path / "data"), "--save_steps", "1"]
    steps.run([*given, "--output_dir", str(tmp_path / "whole")])
    told = capsys.readouterr().out
    assert "step 1:" in told
    shares = [float(s) for s in re.findall(r"step \d: ([\d.]+) %", told)]
    assert len(shares) == 5
    assert shares[0] > 80  # two classes, seen just now
    assert shares[-1] > 40  # ten, chance 10; forgetting all but the last two would give 20
    mean = re.search(r"mean over the steps *([\d.]+)", told)
    assert mean is not None
    assert float(mean[1]) == pytest.approx(sum(shares) / 5, abs=0.11)  # each is told to a tenth
    assert "published" not in told  # those are of a hundred classes

    class Dying(steps.ArrCocTrainer):
        def __init__(self, *args, **named) -> None:
            dies = Path(args[1].output_dir).name == "step-03"
            super().__init__(*args, callbacks=[Crash(2)] if dies else None, **named)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "ArrCocTrainer", Dying)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            steps.run([*given, "--output_dir", str(tmp_path / "killed")])
    steps.run([*given, "--output_dir", str(tmp_path / "killed")])
    ends = []
    for name in ("whole", "killed"):
        model = embedded.load("dual")[0]
        ends.append(state.tensors(ArrCocModel.from_pretrained(model, tmp_path / name / "step-05").learner))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(ends[0][k], ends[1][k]) for k in ends[0])


# -- arguments -----------------------------------------------------------------------------------------------


def printed() -> list[tuple[str, list[str]]]:
    """Every command in the scripts' own docstrings."""
    found = []
    for name in script.SCRIPTS:
        for line in (module(name).__doc__ or "").splitlines():
            if "-m arr_coc.training." in line:
                command = shlex.split(line.split("-m arr_coc.training.")[1], comments=True)
                found.append((command[0], command[1:]))
    return found


def test_every_script_prints_commands_that_its_arguments_allow(tmp_path) -> None:
    commands = printed()
    assert {name for name, _ in commands} >= set(script.SCRIPTS)
    for name, said in commands:
        if name == "garments":
            continue
        kinds = [module(name).Arguments]
        if name != "learn_from_rewards":
            kinds.append(script.OnlineArguments)
            said = [str(tmp_path) if s.startswith("runs/") else s for s in said]
        assert script.parse(kinds, said)


def test_yaml_json_and_typed_arguments_say_the_same(tmp_path) -> None:
    given = {"stream": "cued-clutter", "adapter": {"eta": 0.001}, "n_train": 12, "learning_rate": 1e-3}
    (tmp_path / "a.json").write_text(json.dumps({**given, "output_dir": str(tmp_path)}))
    (tmp_path / "a.yaml").write_text(
        "stream: cued-clutter\nadapter:\n  eta: 1e-3\nn_train: 12\nlearning_rate: 1e-3\n"
        f"output_dir: {tmp_path}\nmax_grad_norm: null\nuse_cpu: true\nlabel_names: [labels]\n"
    )
    kinds = (module("learn_dual_encoder").Arguments, script.OnlineArguments)
    typed = [
        "--stream",
        "cued-clutter",
        "--adapter",
        '{"eta": 1e-3}',
        "--n-train=12",
        "--learning_rate",
        "1e-3",
    ]
    for said in (
        [str(tmp_path / "a.json")],
        [str(tmp_path / "a.yaml")],
        [*typed, "--output_dir", str(tmp_path)],
    ):
        chosen, args = script.parse(kinds, said)
        assert (chosen.stream, chosen.n_train, args.learning_rate) == ("cued-clutter", 12, 1e-3)
        assert script.adapter_config(chosen.adapter) == ArrCocConfig(eta=1e-3)
        assert args.max_grad_norm == 1.0
    assert script.parse(kinds, [str(tmp_path / "a.yaml"), "--n_train", "7"])[0].n_train == 7
    assert script.parse(kinds, [str(tmp_path / "a.yaml")])[1].label_names == ["labels"]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (["--stram", "x"], "nearest is 'stream'"),
        (["--n_train", "many"], "many"),
        (["--adapter", "{width: 3}"], "not JSON"),
        (["--adapter", '{"widht": 3}'], "'width'"),
        (["--adapter", "[1]"], "a JSON object is needed"),
        (["--stream", "cued-cluter"], "cued-clutter"),
        (["--model", "generative"], "scores texts"),
        (["--model", "dula"], "did you mean 'dual'"),
        (["--dtype", "int8"], "bfloat16"),
        (["settings.toml"], "yaml"),
        (["nothing.yaml"], "no file"),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_runs(tmp_path, capsys, said, words: str) -> None:
    with pytest.raises(SystemExit) as end:
        script.ended(module("learn_dual_encoder").run, [*said, "--output_dir", str(tmp_path / "out")])
    assert end.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.yaml", "script: learn_dual_encodr", "did you mean 'learn_dual_encoder'"),
        ("a.yaml", "n_train: 3", "learn_image_folder: a folder"),
        ("a.yaml", "- 1\n- 2", "holds a list"),
        ("a.yaml", "a: [1", "cannot be read"),
        ("a.json", "{", "cannot be read"),
    ],
)
def test_a_config_that_names_no_script_says_which_there_are(
    tmp_path, name: str, text: str, words: str
) -> None:
    (tmp_path / name).write_text(text)
    done = CliRunner().invoke(app, ["train", str(tmp_path / name)])
    assert done.exit_code == 2
    assert words in done.output


def test_the_command_line_runs_a_config_with_further_arguments(tmp_path) -> None:
    (tmp_path / "a.yaml").write_text(
        f"script: learn_dual_encoder\nn_train: 20\noutput_dir: {tmp_path / 'out'}\n"
    )
    said = ["train", str(tmp_path / "a.yaml"), "--n_train", "30", "--n_test", "20", *SMALL]
    done = CliRunner().invoke(app, said)
    assert done.exit_code == 0, done.output
    assert "after one pass over 30" in done.output


def test_a_column_that_is_not_there_is_named(tmp_path, capsys) -> None:
    given = cifar(tmp_path / "data")
    said = [*given, "--label", "fine_labels", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        script.ended(module("cifar100_ten_steps").run, said)
    assert "nearest of ['img', 'fine_label'] is 'fine_label'" in capsys.readouterr().err


def test_a_ctrl_c_is_no_traceback_and_says_how_to_go_on(capsys) -> None:
    def interrupted(argv) -> None:
        raise KeyboardInterrupt("stopped after step 3")

    with pytest.raises(SystemExit) as end:
        script.ended(interrupted, [])
    assert end.value.code == 130
    assert "stopped after step 3; go on with --resume_from_checkpoint true" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bug", "kind"),
    [
        (lambda: {}["column"], KeyError),
        (lambda: os.environ["NO_SUCH_VARIABLE"], KeyError),  # raised by a library, in words of its own
        (lambda: None + 1, TypeError),
        (lambda: dict([(1, 2, 3)]), ValueError),
        (lambda: int("many"), ValueError),
        (lambda: torch.nn.Linear(2, 2, wrong=1), TypeError),
        (lambda: datasets.Features.from_dict(3), TypeError),
    ],
)
def test_a_bug_in_a_script_keeps_its_traceback(bug, kind: type[Exception], capsys) -> None:
    """Each was one line without a place: `error: column`."""
    with pytest.raises(kind):
        script.ended(lambda argv: bug(), [])
    assert capsys.readouterr().err == ""


def test_garments_are_written_into_a_new_folder_only(tmp_path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(Exception, match="no empty folder"):
        garments.main(tmp_path)
    with pytest.raises(ValueError, match="1 to 10000"):
        garments.export(tmp_path / "new", "test", 10_001)
    assert not (tmp_path / "new").exists()
