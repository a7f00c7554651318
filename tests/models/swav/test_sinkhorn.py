"""Sinkhorn-Knopp against Python Optimal Transport in float64, on any number of workers, and where it could break."""

from __future__ import annotations

import warnings

import ot
import pytest
import torch
from torch import Tensor
from worlds import run_workers

from models.swav.sinkhorn import sinkhorn
from pipeline.train.world import Alone

ROWS, PROTOTYPES = 96, 30


def unit(*shape: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def cosines(rows: int = ROWS, prototypes: int = PROTOTYPES, dim: int = 16, seed: int = 0) -> Tensor:
    return unit(rows, dim, seed=seed) @ unit(prototypes, dim, seed=seed + 1).T


def with_cosine_one() -> Tensor:
    """Every fourth row is a prototype itself; rows 0 to 4 are all the same one."""
    row_BD, prototype_KD = unit(ROWS, 16, seed=2), unit(PROTOTYPES, 16, seed=3)
    row_BD[::4] = prototype_KD[torch.arange(ROWS // 4) % PROTOTYPES]
    row_BD[:5] = prototype_KD[7]
    return (row_BD @ prototype_KD.T).clamp(-1, 1)


def with_empty_prototype() -> Tensor:
    """No row is anywhere near prototypes 3 and 4; all are as near to 5 as can be."""
    score_BK = cosines(seed=4)
    score_BK[:, 3], score_BK[:, 4], score_BK[:, 5] = -1.0, torch.linspace(-1, -0.9, ROWS), 1.0
    return score_BK


def with_far_rows() -> Tensor:
    """Half of the rows are far from every prototype."""
    score_BK = cosines(seed=6)
    score_BK[::2] = 0.1 * score_BK[::2] - 0.9
    score_BK[1::2, 0] = 1.0
    return score_BK


HARD = {
    "random": cosines(),
    "more prototypes than rows": cosines(20, 64, seed=8),
    "cosine 1": with_cosine_one(),
    "empty prototype": with_empty_prototype(),
    "far rows": with_far_rows(),
    "half precision": cosines(seed=10).half(),
    "half precision, cosine 1": with_cosine_one().half(),
    "one row": cosines(1, 8),
    "one prototype": cosines(9, 1),
    "all alike": torch.full((12, 6), 0.7),
}
hard = pytest.mark.parametrize("score_BK", HARD.values(), ids=HARD.keys())


def by_pot(score_BK: Tensor, epsilon: float, iterations: int = 3) -> Tensor:
    """Rows of its plan add up to 1 / B; ours to 1. Its iterations end with its source, the rows."""
    rows, prototypes = score_BK.shape
    a, b = (torch.full((size,), 1 / size, dtype=torch.float64) for size in (rows, prototypes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three iterations have not converged
        plan = ot.sinkhorn(a, b, -score_BK.double(), reg=epsilon, numItermax=iterations, stopThr=0)
    plan_BK = rows * torch.as_tensor(plan)
    assert plan_BK.isfinite().all()
    return plan_BK


def split(score_BK: Tensor, workers: int, epsilon: float) -> Tensor:
    """Parts of unequal size."""
    rows = len(score_BK)
    bounds = [0, *(max(1, rows * each // workers - 1) for each in range(1, workers)), rows]
    parts = run_workers(
        workers, lambda rank, reduce: sinkhorn(score_BK[None, bounds[rank] : bounds[rank + 1]], epsilon, 3, reduce)
    )
    return torch.cat(parts, dim=1)[0]


@hard
@pytest.mark.parametrize("epsilon", [0.05, 0.03, 0.01])
def test_codes_are_those_of_python_optimal_transport(score_BK: Tensor, epsilon: float) -> None:
    (code_BK,) = sinkhorn(score_BK[None], epsilon, 3, Alone())
    assert code_BK.dtype == torch.float32
    assert (code_BK - by_pot(score_BK, epsilon)).abs().max() <= 1e-5


@pytest.mark.parametrize("iterations", [1, 2, 3, 300])
def test_any_number_of_iterations_is_as_many_of_python_optimal_transport(iterations: int) -> None:
    (code_BK,) = sinkhorn(with_cosine_one()[None].double(), 0.05, iterations, Alone())
    assert code_BK.dtype == torch.float64
    assert (code_BK - by_pot(with_cosine_one(), 0.05, iterations)).abs().max() <= 1e-12


@pytest.mark.parametrize("score_BK", [each for each in HARD.values() if len(each) > 1])
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_agree_with_one_worker(score_BK: Tensor, workers: int) -> None:
    for epsilon in (0.05, 0.01):
        (alone_BK,) = sinkhorn(score_BK[None], epsilon, 3, Alone())
        assert (split(score_BK, workers, epsilon) - alone_BK).abs().max() <= 1e-6


def test_sets_that_travel_together_are_balanced_apart() -> None:
    both_ABK = torch.stack([cosines(seed=1), with_empty_prototype()])
    together_ABK = sinkhorn(both_ABK, 0.05, 3, Alone())
    apart_ABK = torch.stack([sinkhorn(score_BK[None], 0.05, 3, Alone())[0] for score_BK in both_ABK])
    assert (together_ABK - apart_ABK).abs().max() <= 1e-6


def test_a_batch_of_two_by_hand() -> None:
    """Columns of exp(score / epsilon) = (4 1; 1 1) sum to 5 and 2; rows then to 13/10 and 7/10."""
    score_BK = torch.tensor([[4.0, 1.0], [1.0, 1.0]]).log() * 0.05
    (code_BK,) = sinkhorn(score_BK[None], 0.05, 1, Alone())
    torch.testing.assert_close(code_BK, torch.tensor([[8 / 13, 5 / 13], [2 / 7, 5 / 7]]))


def test_prototypes_weigh_alike_in_the_end() -> None:
    (code_BK,) = sinkhorn(cosines()[None], 0.3, 100, Alone())
    torch.testing.assert_close(code_BK.sum(dim=0), torch.full((PROTOTYPES,), ROWS / PROTOTYPES), rtol=1e-3, atol=0)
    torch.testing.assert_close(code_BK.sum(dim=1), torch.ones(ROWS))


@pytest.mark.parametrize("value", [-torch.inf, -1e30, -500.0])
def test_what_no_number_can_express_is_no_nan(value: float) -> None:
    score_BK = cosines()
    score_BK[:, 2] = value
    score_BK[4] = value
    (code_BK,) = sinkhorn(score_BK[None], 0.01, 3, Alone())
    assert code_BK.isfinite().all()
    rest_B = torch.arange(ROWS) != 4
    torch.testing.assert_close(code_BK.sum(dim=1)[rest_B], torch.ones(ROWS - 1))
    if value == -torch.inf:
        assert code_BK[:, 2].abs().max() == 0  # no row can go there
        assert code_BK[4].abs().max() == 0


def test_where_nothing_can_go_anywhere_codes_are_zero() -> None:
    assert not sinkhorn(torch.full((1, 4, 3), -torch.inf), 0.05, 3, Alone()).any()


def test_large_scores_do_not_overflow() -> None:
    (code_BK,) = sinkhorn(1e4 * cosines()[None], 0.05, 3, Alone())
    assert code_BK.isfinite().all()
    torch.testing.assert_close(code_BK.sum(dim=1), torch.ones(ROWS))


def test_autocast_does_not_reach_it() -> None:
    score_ABK = cosines()[None]
    expected_ABK = sinkhorn(score_ABK, 0.05, 3, Alone())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(score_ABK, 0.05, 3, Alone()), expected_ABK)


def test_scores_are_left_as_they_are() -> None:
    score_BK = cosines()
    sinkhorn(score_BK[None], 0.05, 3, Alone())
    assert torch.equal(score_BK, cosines())
