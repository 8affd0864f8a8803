"""The forgetting factor of the readout: recursive equals weighted least squares, and P stays bounded."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from arr_coc import ArrCocConfig, Learner, Percept, state
from arr_coc import merge as merging
from arr_coc.familiarity import absorb
from arr_coc.readout import PrecisionReadout
from arr_coc.training.distributed import Merging

EXACT = {"rtol": 0.0, "atol": 1e-9}
WIDTH, RIDGE = 7, 0.5


def data(n: int = 160) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    phi = torch.randn(n, WIDTH, generator=draw, dtype=torch.float64)
    return phi, torch.randint(4, (n,), generator=draw), torch.rand(n, generator=draw).double() + 0.1


def weighted(phi: Tensor, target: Tensor, w: Tensor, ridge: float) -> Tensor:
    """argmin sum w (y - R phi)^2 + ridge |R|^2, (C, D), as an ordinary least squares problem."""
    root = w.sqrt().unsqueeze(1)
    rows = torch.cat([root * phi, ridge**0.5 * torch.eye(WIDTH, dtype=torch.float64)])
    right = torch.cat([root * target, torch.zeros(WIDTH, target.shape[1], dtype=torch.float64)])
    return torch.linalg.lstsq(rows, right).solution.T


@pytest.mark.parametrize("evidence", [False, True])
@pytest.mark.parametrize("batch", [1, 10, 160])
@pytest.mark.parametrize("forgetting", [0.5, 0.9, 0.99, 0.9999])
def test_recursion_is_batch_least_squares_weighted_by_age(
    forgetting: float, batch: int, evidence: bool
) -> None:
    """At every step; classes one after another, so that rows appear late."""
    phi, label, weight = data()
    label = label.sort().values
    readout = PrecisionReadout(WIDTH, RIDGE, forgetting)
    for start in range(0, 160, batch):
        some = slice(start, start + batch)
        rows = readout.rows([str(int(k)) for k in label[some]], grow=True)
        readout.learn(phi[some], rows, weight[some] if evidence else None)
        end = start + batch
        w = forgetting ** torch.arange(end).double().flip(0) * (weight[:end] if evidence else 1.0)
        left = float(readout.familiarity.left)
        assert 0.5 <= left <= 1
        target = torch.nn.functional.one_hot(label[:end], len(readout.classes)).double()
        torch.testing.assert_close(readout.weight, weighted(phi[:end], target, w, RIDGE * left), **EXACT)
        gram = (phi[:end] * w.unsqueeze(1)).T @ phi[:end]
        eye = torch.eye(WIDTH, dtype=torch.float64)
        torch.testing.assert_close(readout.familiarity.gram, gram, **EXACT)
        torch.testing.assert_close(readout.cross, (target * w.unsqueeze(1)).T @ phi[:end], **EXACT)
        inverse = torch.linalg.inv(gram + RIDGE * left * eye)
        torch.testing.assert_close(readout.familiarity.precision, inverse, **EXACT)


def test_without_forgetting_it_is_what_it_was_bit_for_bit() -> None:
    """The recursion written out; and the saved form has no further name."""
    phi, label, _ = data()
    readout = PrecisionReadout(WIDTH, RIDGE, 1.0)
    readout.rows(list("0123"), grow=True)
    precision = torch.eye(WIDTH, dtype=torch.float64) / RIDGE
    weight = torch.zeros(4, WIDTH, dtype=torch.float64)
    for p, k in zip(phi.split(8), label.split(8), strict=True):
        readout.learn(p, k)
        gain = absorb(precision, p, torch.ones(8, dtype=torch.float64))
        weight.addmm_((torch.nn.functional.one_hot(k, 4) - p @ weight.T).T, gain)
    assert torch.equal(readout.weight, weight)
    assert torch.equal(readout.familiarity.precision, precision)
    assert "left" not in readout.familiarity.state_names


@pytest.mark.parametrize("forgetting", [0.9, 0.999])
def test_p_stays_positive_and_bounded_where_nothing_excites_it(forgetting: float) -> None:
    """One direction alone for a long time: plain recursion would multiply the others by lambda^-n."""
    readout = PrecisionReadout(WIDTH, RIDGE, forgetting)
    rows = readout.rows(["a"], grow=True)
    same = torch.zeros(1, WIDTH, dtype=torch.float64)
    same[0, 0] = 1.0
    for _ in range(8000):
        readout.learn(same, rows)
    spectrum = torch.linalg.eigvalsh(readout.familiarity.precision)
    assert spectrum[0] > 0
    assert spectrum[-1] <= 2 / RIDGE + 1e-9
    assert readout.familiarity.precision.trace() <= 2 * WIDTH / RIDGE
    memory = 1 / (1 - forgetting)  # what 8,000 samples of it weigh in the end
    left = RIDGE * float(readout.familiarity.left)
    assert float(readout.weight[0, 0]) == pytest.approx(memory / (memory + left), abs=1e-3)
    assert torch.isfinite(readout.weight).all()


def test_what_drifted_is_followed_and_without_forgetting_is_not() -> None:
    """The two classes trade places half way."""
    phi, _, _ = data(2000)
    label = (phi[:, 0] > 0).long()
    label[1000:] = 1 - label[1000:]
    right = {}
    for forgetting in (1.0, 0.99):
        readout = PrecisionReadout(WIDTH, RIDGE, forgetting)
        readout.rows(["0", "1"], grow=True)
        for k in range(1300):
            readout.learn(phi[k : k + 1], label[k : k + 1])
        right[forgetting] = float((readout.values(phi[1300:]).argmax(1) == label[1300:]).double().mean())
    assert right[1.0] < 0.1
    assert right[0.99] > 0.9


def test_rows_that_were_rewarded_alone_age_with_the_others() -> None:
    phi, _, _ = data(60)
    readout = PrecisionReadout(WIDTH, RIDGE, 0.97)
    a, b = readout.rows(["a", "b"], grow=True).tolist()
    rows = torch.tensor([b, a, b] * 20)
    worth = torch.tensor([1.0, 0.25, 0.0] * 20, dtype=torch.float64)
    for start in range(0, 60, 7):
        some = slice(start, start + 7)
        readout.learn_outcomes(phi[some], rows[some], worth[some])
    age = 0.97 ** torch.arange(60).double().flip(0)
    left = RIDGE * float(readout.familiarity.left)
    for row in (a, b):
        mine = (rows == row) | (worth == 1)
        target = torch.where(rows[mine] == row, worth[mine], 0.0).unsqueeze(1)
        expected = weighted(phi[mine], target, age[mine], left)[0]
        torch.testing.assert_close(readout.weight[row], expected, **EXACT)


# -- in the learner ------------------------------------------------------------------------------------------


CONFIG = ArrCocConfig(width=6, spread=0, expansion=4, forgetting=0.9)


def percept(seed: int) -> tuple[Percept, list[str]]:
    draw = torch.Generator().manual_seed(seed)
    tokens = tuple(torch.randn(1, 4, 6, generator=draw) for _ in range(2))
    return Percept(tokens, torch.ones(1, 4) / 4, torch.randn(1, 5, generator=draw)), [str(seed % 3)]


def test_a_learner_that_forgets_goes_on_from_a_file_the_same() -> None:
    whole, first, second = (Learner(CONFIG, [6, 6], 5) for _ in range(3))
    for k in range(30):
        for one in (whole, first) if k < 10 else (whole,):
            one.learn(*percept(k))
    saved = {n: t.clone() for n, t in state.tensors(first).items()}
    assert "readout.familiarity.left" in saved
    state.load(second, saved, state.meta(first))
    for k in range(10, 30):
        second.learn(*percept(k))
    assert all(torch.equal(t, state.tensors(second)[n]) for n, t in state.tensors(whole).items())
    assert torch.isfinite(whole.answer(percept(0)[0]).trust).all()


def test_a_familiar_input_keeps_its_trust_while_the_old_ones_fade() -> None:
    draw = torch.Generator().manual_seed(3)
    readout = PrecisionReadout(WIDTH, RIDGE, 0.98)
    rows = readout.rows(["a"], grow=True)
    for phi in torch.randn(600, 1, WIDTH, generator=draw):
        readout.learn(phi, rows)
    usual = readout.familiarity.novelty(torch.randn(200, WIDTH, generator=draw))
    far = readout.familiarity.novelty(20 * torch.randn(200, WIDTH, generator=draw))
    assert usual.median() < 1.5
    assert far.median() > 3


def test_what_forgets_is_not_merged() -> None:
    parts = {n: Learner(CONFIG, [6, 6], 5) for n in ("a", "b")}
    with pytest.raises(ValueError, match="forgetting=0"):
        merging.check(parts)
    with pytest.raises(ValueError, match="forgetting=1 is needed"):
        parts["a"].readout.merge(parts["b"].readout)
    ranks = Merging(torch.device("cpu"))
    ranks.group = object()
    with pytest.raises(ValueError, match="forgetting"):
        ranks.begin(list(parts.values()))


@pytest.mark.parametrize("wrong", [0.0, -0.5, 1.01, float("nan")])
def test_a_factor_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="forgetting"):
        replace(CONFIG, forgetting=wrong)
