"""One-line faults, planted one at a time in a copy of the package: each is caught by a named test."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# (file of arr_coc/, what stands there, what is put in its place, the test that must fail)
FAULTS = {
    "the slope is dropped": (
        "rules/protocol.py",
        "g = (at_z[level] + from_above) * ladder.activation.slope_at(climb.states[level])",
        "g = at_z[level] + from_above",
        "test_rules.py::test_feedback_from_every_answer_is_the_gradient",
    ),
    "the wrong transpose on the way down": (
        "rules/protocol.py",
        "from_above = g @ (ladder.weight(level) if back is None else back(level))",
        "from_above = g @ (ladder.weight(level).T if back is None else back(level))",
        "test_rules.py::test_feedback_from_every_answer_is_the_gradient",
    ),
    "a sum where a mean is meant": (
        "rules/protocol.py",
        'updates[f"weight_{level}"] = share.T @ z',
        'updates[f"weight_{level}"] = p.T @ z',
        "test_rules.py::test_feedback_from_every_answer_is_the_gradient",
    ),
    "the state of the rung itself for that of the one below": (
        "rules/attention_gated.py",
        "moves = outer(ladder, gated, [climb.below, *climb.states[:-1]], climb.lateral)",
        "moves = outer(ladder, gated, [climb.below, *climb.states[1:]], climb.lateral)",
        "test_rules.py::test_feedback_from_every_answer_is_the_gradient",
    ),
    "the reward moves away from the chosen answer": (
        "pending.py",
        "torch.outer(delta * gate, z)",
        "torch.outer(-delta * gate, z)",
        "test_rules.py::test_a_late_reward_moves_the_ladder_as_the_gradient_asked_when_the_choice_was_made",
    ),
    "a late reward teaches the best answer, not the chosen one": (
        "acting.py",
        "one_hot(chosen, len(learner.classes)).to(answer.climb.phi)",
        "one_hot((chosen + 1) % len(learner.classes), len(learner.classes)).to(answer.climb.phi)",
        "test_rules.py::test_a_late_reward_moves_the_ladder_as_the_gradient_asked_when_the_choice_was_made",
    ),
    "a target's difference is not taken": (
        "rules/target_propagation.py",
        "(f(a + moves[0]) - f(a)) @",
        "f(a + moves[0]) @",
        "test_target_propagation.py::test_a_target_that_is_the_state_cancels_whatever_the_feedback",
    ),
    "feedback weights transposed": (
        "rules/target_propagation.py",
        'self.state[f"feedback_{level}"].to(a).T',
        'self.state[f"feedback_{level}"].to(a)',
        "test_target_propagation.py::test_where_the_net_is_linear_the_update_is_backpropagation_at_any_beta",
    ),
    "no slope on a feedback of its own": (
        "rules/feedback_alignment.py",
        'error @ self.state[f"direct_{level}"].to(error) * ladder.activation.slope(a)',
        'error @ self.state[f"direct_{level}"].to(error)',
        "test_feedback_alignment.py::test_direct_feedback_reaches_every_rung_by_its_own_matrix",
    ),
    "prediction errors without the slope": (
        "rules/predictive_coding.py",
        "post = weighted * bent",
        "post = weighted",
        "test_predictive_coding.py::test_states_descend_the_energy_and_weights_what_is_left_of_it",
    ),
    "a share in the loss without the way gone": (
        "consolidation.py",
        "_shared(name, g * moved)",
        "_shared(name, g * g)",
        "test_consolidation.py::test_what_weights_had_a_part_in_adds_up_to_the_drop_of_the_loss",
    ),
    "a pull that overshoots": (
        "consolidation.py",
        "pull / (1 + pull) * (anchor - weight)",
        "pull * (anchor - weight)",
        "test_consolidation.py::test_the_penaltys_step_is_the_minimum_that_it_is_defined_by",
    ),
    "what is irrelevant now moves": (
        "protection.py",
        "moves[name] = moves[name] * rungs[level - 1].to(moves[name])",
        "moves[name] = moves[name] * rungs[level].to(moves[name])",
        "test_protection.py::test_a_synapse_moves_by_how_relevant_its_input_is",
    ),
    "a prior that fades away": (
        "readout.py",
        "if float(self.familiarity.left) < 0.5:",
        "if float(self.familiarity.left) < 0.0:",
        "test_forgetting.py::test_p_stays_positive_and_bounded_where_nothing_excites_it",
    ),
    "the second half of the way is not gone": (
        "transport.py",
        "t = eye + (1 + older) * delta",
        "t = eye + older * delta",
        "test_transport.py::test_a_phi_that_moves_linearly_is_followed_to_the_joint_solution",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A checkout whose files may be spoilt."""
    there = tmp_path_factory.mktemp("planted")
    for folder in ("arr_coc", "adapters", "training", "eval"):
        ignore = shutil.ignore_patterns("__pycache__", "data", "*.safetensors")
        shutil.copytree(ROOT / folder, there / folder, ignore=ignore)
    for file in (ROOT / "tests").glob("*.py"):
        (there / "tests").mkdir(exist_ok=True)
        shutil.copy(file, there / "tests")
    shutil.copy(ROOT / "pyproject.toml", there)
    return there


def _run(there: Path, test: str) -> "subprocess.CompletedProcess[str]":
    path = os.pathsep.join([str(there), str(there / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/{test}"]
    return subprocess.run(command, cwd=there, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_caught_by_the_test_that_is_named(name: str, copy: Path) -> None:
    file, old, new, test = FAULTS[name]
    whole = (copy / "arr_coc" / file).read_text()
    assert whole.count(old) == 1, f"{old!r} stands {whole.count(old)} times in {file}"
    (copy / "arr_coc" / file).write_text(whole.replace(old, new))
    try:
        said = _run(copy, test)
    finally:
        (copy / "arr_coc" / file).write_text(whole)
    assert said.returncode == 1, said.stdout[-2000:] + said.stderr[-2000:]
    assert "failed" in said.stdout.splitlines()[-1]


def test_without_a_fault_the_same_tests_pass(copy: Path) -> None:
    said = _run(copy, "test_rules.py")
    assert said.returncode == 0, said.stdout[-2000:] + said.stderr[-2000:]
    where = subprocess.run(
        [sys.executable, "-c", "import arr_coc; print(arr_coc.__file__)"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.strip().startswith(str(copy))
