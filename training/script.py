"""What the scripts `learn_*` share: arguments from the command line, a YAML or a JSON file; how they end.

python -m arr_coc.training.learn_dual_encoder --stream split-fashion --output_dir runs/fashion
python -m arr_coc.training.learn_dual_encoder config.yaml --seed 1      # what is said last holds
arr-coc train config.yaml --seed 1                                      # its key `script` says which
"""

import difflib
import dis
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from arr_coc.adapters import pretrained
from arr_coc.adapters.attach import ArrCocModel, attach
from arr_coc.adapters.structure import kind_of
from arr_coc.config import ArrCocConfig

SCRIPTS = {
    "learn_dual_encoder": "a dual encoder learns a built-in stream",
    "learn_answers": "a generative model learns to answer questions",
    "learn_from_rewards": "a dual encoder is told right or wrong, never the label",
    "learn_streaming": "a data set that is streamed and never held",
    "learn_image_folder": "a folder with a folder of images per class",
    "cifar100_ten_steps": "CIFAR-100, ten classes after another, beside published figures",
}


@dataclass
class ModelArguments:
    """Which model, and the adapter on it."""

    model: str = field(default="dual", metadata={"help": "dual, generative, a folder or a name on the Hub"})
    hub: bool = field(default=False, metadata={"help": "allow downloads by name"})
    dtype: str = field(default="auto", metadata={"help": "of the weights: auto, float32, bfloat16, float16"})
    device_map: str | None = field(default=None, metadata={"help": "see from_pretrained"})
    revision: str | None = field(default=None, metadata={"help": "of the model"})
    adapter: str = field(default="{}", metadata={"help": "fields of ArrCocConfig, as JSON"})

    def load(self, kind: str) -> tuple[ArrCocModel, Any]:
        """The attached model and its processor.

        Args:
            kind: "dual" or "generative".

        Raises:
            TypeError: for a model of the other kind.
        """
        config = adapter_config(self.adapter)
        model, processor = pretrained.load(self.model, self.hub, self.dtype, self.device_map, self.revision)
        if kind_of(model) != kind:
            fit = {"dual": "scores texts: learn_answers is for models that write", "generative": "writes"}
            raise TypeError(
                f"{self.model!r} is {type(model).__name__}; this script needs one that {fit[kind]}"
            )
        return attach(model, config, processor), processor


@dataclass
class OnlineArguments(TrainingArguments):
    """transformers' TrainingArguments with the defaults of a stream: one pass, in its own order."""

    num_train_epochs: float = field(default=1, metadata={"help": "passes over the data"})
    per_device_train_batch_size: int = field(default=10, metadata={"help": "samples per step"})
    per_device_eval_batch_size: int = field(default=50, metadata={"help": "samples at a time"})
    train_sampling_strategy: str = field(default="sequential", metadata={"help": "sequential or random"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "before rows are collated"})
    logging_steps: float = field(default=50, metadata={"help": "steps between two lines"})
    dataloader_pin_memory: bool = field(
        default_factory=torch.accelerator.is_available, metadata={"help": "for faster copies to a GPU"}
    )
    report_to: str = field(default="none", metadata={"help": "tensorboard, trackio, wandb, all or none"})


def adapter_config(text: str) -> ArrCocConfig:
    """An `ArrCocConfig` from some of its fields as JSON.

    Raises:
        ValueError: for text that is no JSON object, or a field that does not exist; the nearest is named.
    """
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--adapter {text!r} is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"--adapter {text!r} is a {type(given).__name__}; a JSON object is needed")
    version = json.loads(ArrCocConfig().to_json())["config_version"]
    return ArrCocConfig.from_json(json.dumps({"config_version": version, **given}))


# -- arguments -----------------------------------------------------------------------------------------------


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 takes 1e-3 for a text; everybody who writes it means a number."""


_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_Yaml.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
for _first in "-+.0123456789":
    _Yaml.yaml_implicit_resolvers.setdefault(_first, []).insert(0, ("tag:yaml.org,2002:float", _NUMBER))


def read(path: str | Path) -> dict[str, Any]:
    """A config file, .yaml, .yml or .json, as a dict.

    Raises:
        FileNotFoundError: no such file. ValueError: for another kind of file, or one that cannot be read as
            names with values.
    """
    path = Path(path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(f"{path} is no config: a file .yaml, .yml or .json is needed")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    text = path.read_text(encoding="utf-8")
    try:
        given = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_Yaml)
    except (json.JSONDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise ValueError(f"{path} holds a {type(given).__name__}; names with values are needed")
    return given


def parse(kinds: Sequence[Any], argv: Sequence[str]) -> tuple[Any, ...]:
    """One instance of each dataclass, from a config file, if one comes first, and arguments.

    Raises:
        ValueError: for an argument that does not exist (the nearest is named) or a value that does not fit.
    """
    parser = _Parser(kinds, allow_abbrev=False)
    flags = {option.lstrip("-").replace("-", "_") for a in parser._actions for option in a.option_strings}
    argv = list(argv)
    from_file = argv[:1] if argv and not argv[0].startswith("-") else []
    said = argv[len(from_file) :]
    given = [f for path in from_file for f in _flags(read(path))] + said
    for name in (a[2:].split("=")[0].replace("-", "_") for a in given if a.startswith("--")):
        if name not in flags:
            near = difflib.get_close_matches(name, sorted(flags), n=1, cutoff=0.0)[0]
            raise ValueError(f"there is no argument {name!r}; the nearest is {near!r}")
    return tuple(parser.parse_args_into_dataclasses(given, look_for_args_file=False))


def _flags(given: Mapping[str, Any]) -> list[str]:
    """A config's names and values as they would be typed; null says nothing."""
    typed: list[str] = []
    for name, value in given.items():
        if name == "script" or value is None:
            continue
        if isinstance(value, list):
            typed += [f"--{name}", *map(str, value)]
        else:
            typed.append(f"--{name}={json.dumps(value) if isinstance(value, dict | bool) else value}")
    return typed


# -- running -------------------------------------------------------------------------------------------------


def ended(run: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run a script to its end: what was given wrongly is one line, and a Ctrl-C is no traceback.

    Raises:
        SystemExit: 2 where something was given wrongly, 130 after a Ctrl-C.
        Exception: any other, as it was raised; it is a bug, and its traceback says where.
    """
    try:
        run(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt as stop:
        print(f"{stop or 'stopped'}; go on with --resume_from_checkpoint true", file=sys.stderr)
        raise SystemExit(130) from None
    except (ValueError, TypeError, KeyError, OSError, ImportError) as error:
        if not told(error):
            raise
        said = error.args[0] if isinstance(error, KeyError) else error
        print(f"error: {said}", file=sys.stderr)
        raise SystemExit(2) from None


def told(error: Exception) -> bool:
    """Whether an error is somebody's word on what was given, and no bug.

    A ValueError is where a `raise` made it; a TypeError or a KeyError where that stands in arr-coc, for
    libraries raise those at their callers' bugs. What the interpreter raises at an operation (a key that a
    dict lacks, a list that cannot be unpacked) never is. The system's and import's errors always are.
    """
    if isinstance(error, OSError | ImportError):
        return True
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    if at is None:
        return False
    code = at.tb_frame.f_code.co_code[at.tb_lasti : at.tb_lasti + 1]  # a compiled extension's is empty
    raised = bool(code) and dis.opname[code[0]] == "RAISE_VARARGS"
    own = str(at.tb_frame.f_globals.get("__name__", "")).startswith("arr_coc.")
    return raised and (own or isinstance(error, ValueError))


def launch(config: str | Path, argv: Sequence[str] = ()) -> None:
    """Run the script that a config names, with further arguments behind the file's.

    Raises:
        ValueError: for a config without a script, or with one that does not exist; the nearest is named.
    """
    name = read(config).get("script")
    if name not in SCRIPTS:
        about = "; ".join(f"{script}: {what}" for script, what in SCRIPTS.items())
        near = difflib.get_close_matches(str(name), SCRIPTS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{config} has script: {name!r}{hint} There are {about}")
    importlib.import_module(f"arr_coc.training.{name}").run([str(config), *argv])


def resumed(args: Any) -> str | bool | None:
    """`resume_from_checkpoint` as a Trainer takes it: "true" is the last checkpoint of the output folder."""
    given = args.resume_from_checkpoint
    return {"true": True, "false": None}.get(str(given).lower(), given)
