"""What the table of learning rules is made of: its rows, its columns, and how long is learned.

A new row is an `Entry` here; a new task is a function in `rules_tasks`.
"""

import difflib
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from arr_coc.eval import rules_tasks
from arr_coc.eval.rules_train import Entry
from arr_coc.rules import RULES, make_rule

FROZEN, BASELINE = "hidden layers left random", "backprop"
COLUMNS = (("fashion", 4), ("digits", 2), ("digits", 4), ("fashion", 2), ("tower", 4))
QUICK = (("digits", 2),)
ONLINE_COLUMNS = (("same-different-given", 2), ("same-different", 2))


@dataclass(frozen=True)
class Regime:
    """How an entry learns a task.

    Args:
        epochs: passes over each task, times an entry's own factor; a task that is not named gets one.
        batch: samples a step.
        readout: "delta" (taught by Adam, like the rungs) or "precision" (recursive least squares).
        said: for the title of a table.
    """

    epochs: dict[str, int] = field(default_factory=dict)
    batch: int = 64
    readout: str = "delta"
    said: str = ""

    def passes(self, entry: Entry, task: str) -> int:
        """Passes of this entry over that task."""
        return round(self.epochs[task] * entry.epochs) if task in self.epochs else 1


PASSES = Regime({"digits": 30, "fashion": 10, "tower": 15})
FEW = Regime({"digits": 8})


def online(readout: str = "delta") -> Regime:
    """One pass, a sample at a time: every entry sees every sample once."""
    with_ = "recursive least squares" if readout == "precision" else "a delta readout"
    return Regime({}, 1, readout, f"one pass, one sample at a time, {with_}")


_FA = "FA 99 % of backprop on MNIST, 62 to 74 % on CIFAR-10, 21 % on ImageNet"
_PC = "fine-tuning VGG5 under domain shift 87.7 against 88.2"
ENTRIES = (
    Entry(BASELINE, "backprop"),
    Entry(FROZEN, ""),
    Entry("attention_gated, labels", "attention_gated"),
    Entry(
        "attention_gated, reward alone",
        "attention_gated",
        reward=True,
        epochs=3.5,
        published="BrainProp: as accurate in 1 to 3.5 times the epochs; CIFAR-10 88.9",
    ),
    Entry(
        "attention_gated, reward alone, learned feedback",
        "attention_gated",
        {"feedback": "learned"},
        reward=True,
        epochs=3.5,
    ),
    Entry("feedback_alignment, FA", "feedback_alignment", {"mode": "fa"}, published=_FA),
    Entry("feedback_alignment, DFA", "feedback_alignment", {"mode": "dfa"}),
    Entry(
        "feedback_alignment, uSF",
        "feedback_alignment",
        {"mode": "usf"},
        published="sign-symmetric 93 % of backprop on ImageNet",
    ),
    Entry("feedback_alignment, brSF", "feedback_alignment", {"mode": "brsf"}),
    Entry("feedback_alignment, frSF", "feedback_alignment", {"mode": "frsf"}),
    Entry(
        "feedback_alignment, Kolen-Pollack",
        "feedback_alignment",
        {"mode": "kp", "feedback_start": 0.0},
    ),
    Entry("predictive_coding, strict", "predictive_coding", {"mode": "strict"}, published=_PC),
    Entry("predictive_coding, Z-IL", "predictive_coding", {"mode": "zil"}, published="equal to backprop"),
    Entry("predictive_coding, iPC", "predictive_coding", {"mode": "ipc"}),
    Entry(
        "target_propagation, L-DRL",
        "target_propagation",
        published="within 1 % on CIFAR-10 at up to 30x the time",
    ),
    Entry("dendritic, microcircuit", "dendritic", {"feedback": "tied", "nudge": 0.1, "steps": 10}),
    Entry("dendritic, burst", "dendritic", {"mode": "burst", "feedback": "tied"}),
    Entry(
        "dendritic, burst, learned feedback",
        "dendritic",
        {"mode": "burst", "feedback_start": 0.0, "decay": 3e-3},
    ),
    Entry("hebbian, SoftHebb", "hebbian", {"mode": "softhebb"}, published="SoftHebb CIFAR-10 80.3"),
    Entry("hebbian, Oja", "hebbian", {"mode": "oja"}),
    Entry("stdp", "stdp", {"time_steps": 10}, published="STDP MNIST 95"),
    Entry("stdp, winner-take-all", "stdp", {"mode": "wta", "time_steps": 5, "peak": 1.0}),
    Entry("mezo", "mezo", published="LLaVA-OneVision 91.8 / 25.8 / 28.5 against AdamW 94.8 / 28.8 / 36.7"),
    Entry(
        "equilibrium_propagation",
        "equilibrium_propagation",
        {"nudged_steps": 8},
        published="CIFAR-10 88.1 to 88.7 against 88.2 to 88.5, at 29x the time",
    ),
)


def explain(name: str) -> str:
    """What the docstring of a rule's file says, and what its ledger says with its default options.

    Raises:
        ValueError: for a rule that there is not; the nearest is named.
    """
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"rule {name!r}: possible are {', '.join(RULES)}{hint}")
    rule = make_rule(name, {})
    text = inspect.getdoc(inspect.getmodule(type(rule))) or ""
    needs = [entry for entry, used in asdict(rule.ledger).items() if used]
    return f"{text}\n\nIts ledger: {', '.join(needs) or 'nothing'}."


def chosen(names: Sequence[str]) -> tuple[Entry, ...]:
    """The entries of these rules, with what they are compared with; all without names.

    Raises:
        ValueError: for a rule that there is not.
    """
    for name in names:
        if name not in RULES:
            raise ValueError(f"rule {name!r}: possible are {', '.join(RULES)}")
    return tuple(e for e in ENTRIES if not names or e.rule in names or e.name in (BASELINE, FROZEN))


def changed(entries: Sequence[Entry], options: str) -> tuple[Entry, ...]:
    """The entries with further options of their rules, but for what they are compared with.

    Args:
        options: a JSON object, such as '{"precision": 0.1}'; empty for none.

    Raises:
        ValueError: for text that is no object, or an option that one of the rules does not have.
    """
    if not options:
        return tuple(entries)
    try:
        more = json.loads(options)
    except json.JSONDecodeError as error:
        raise ValueError(f"options {options!r} are no JSON: {error}") from error
    if not isinstance(more, dict):
        raise ValueError(f"options {options!r}: a JSON object of names and values is needed")
    said = ", ".join(f"{name} {value}" for name, value in more.items())
    made = []
    for entry in entries:
        if entry.name not in (BASELINE, FROZEN):
            make_rule(entry.rule, {**entry.options, **more})
            entry = replace(
                entry, name=f"{entry.name}, {said}", options={**entry.options, **more}, published=""
            )
        made.append(entry)
    return tuple(made)


def places(text: str) -> tuple[tuple[str, int], ...]:
    """ "digits:2,fashion:4" as (task, depth) pairs; all without text.

    Raises:
        ValueError: for a task that there is not, or no depth.
    """
    if not text:
        return COLUMNS
    out = []
    for part in text.split(","):
        name, _, depth = part.partition(":")
        if name not in rules_tasks.TASKS or not depth.isdigit() or not 1 <= int(depth) <= 8:
            raise ValueError(
                f"{part!r} is no task with a depth; such as fashion:4, with "
                f"{', '.join(rules_tasks.TASKS)} and 1 to 8"
            )
        out.append((name, int(depth)))
    return tuple(out)


def setting(
    tasks: str, quick: bool, online_: bool, readout: str
) -> tuple[tuple[tuple[str, int], ...], Regime]:
    """What is learned, and how: the columns and the regime of a table.

    Raises:
        ValueError: for options that do not go together, or a task or readout that there is not.
    """
    if readout not in ("delta", "precision"):
        raise ValueError(f"readout {readout!r}: possible are delta, precision")
    if quick and (online_ or tasks):
        raise ValueError("--quick has its own task and passes: leave --tasks and --online out")
    if readout == "precision" and not online_:
        raise ValueError("a precision readout is for one pass: add --online")
    if quick:
        return QUICK, FEW
    if online_:
        return places(tasks) if tasks else ONLINE_COLUMNS, online(readout)
    return places(tasks), PASSES
