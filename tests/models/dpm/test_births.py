"""Births: a cluster hidden in a cloud is found, and nothing is taken out that does not raise the log joint."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.dpm.births import Births, births, concentrate, judged
from models.dpm.config import DPMConfig
from models.dpm.moves import log_joint
from models.dpm.population import Population, newborn
from models.dpm.prior import NIW
from models.moments import moments_of_sets

DIM = 4


def _normal(rows: int, dim: int = DIM, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def _hidden(inside: int = 150, rows: int = 1500) -> Tensor:
    """A narrow cluster in the middle of a cloud, its rows first; no cut through the cloud separates it."""
    return torch.cat([0.15 * _normal(inside, seed=1) + 0.4, _normal(rows - inside)])


def _population(x_ND: Tensor) -> Population:
    mean_D = x_ND.double().mean(dim=0)
    prior = NIW(mean_D, 1.0, DIM + 3.0, 0.5 * torch.eye(DIM).double())
    return newborn(DPMConfig(), prior, moments_of_sets(x_ND, torch.zeros(len(x_ND)).long(), 1, mean_D))


def _joint(population: Population, x_ND: Tensor, set_N: Tensor) -> float:
    moments = moments_of_sets(x_ND, set_N, int(set_N.max()) + 1, population.prior.mean_D)
    return log_joint(population.prior, population.concentration, moments)


def _gain(population: Population, x_ND: Tensor, sets: list[Tensor]) -> float:
    """What the log joint gains when these rows are taken out, counted from scratch."""
    set_N = torch.zeros(len(x_ND)).long()
    for number, index_n in enumerate(sets):
        set_N[index_n] = number + 1
    return _joint(population, x_ND, set_N) - _joint(population, x_ND, torch.zeros_like(set_N))


def _born(population: Population, x_ND: Tensor, attempts: int = 6, seed: int = 0) -> Births:
    return births(population, 0, x_ND, attempts, torch.Generator().manual_seed(seed))


def test_concentration_on_a_row_of_a_hidden_cluster_returns_the_cluster() -> None:
    x_ND = _hidden()
    whitened_ND = (x_ND - x_ND.mean(dim=0)) / x_ND.std(dim=0)
    for seed in (0, 70, 149):
        inside_N = concentrate(whitened_ND, seed, 150)
        assert int(inside_N.sum()) == 150
        assert int(inside_N[:150].sum()) >= 140  # a few rows of the cloud lie among them
    lost_N = concentrate(whitened_ND, int(whitened_ND.norm(dim=1).argmax()), 150)
    assert int(lost_N.sum()) == 150  # whatever it finds from the rim, it keeps its size


def test_a_hidden_cluster_is_born() -> None:
    x_ND = _hidden()
    population = _population(x_ND)
    found = _born(population, x_ND)
    assert found.proposals > 0
    best_n = found.sets[0]
    assert len(best_n) == pytest.approx(150, abs=15)
    assert (best_n < 150).float().mean() > 0.95
    assert found.log_ratios[0] == pytest.approx(_gain(population, x_ND, [best_n]), rel=1e-9)


def test_births_are_judged_one_after_the_other_by_the_exact_log_joint() -> None:
    """Three narrow clusters in one cloud: disjoint, best first, each worth what is promised beside those before it."""
    narrow = [0.15 * _normal(120, seed=k + 1) + 2.5 * torch.eye(3, DIM)[k] for k in range(3)]
    x_ND = torch.cat([*narrow, _normal(1500)])
    population = _population(x_ND)
    found = _born(population, x_ND)
    assert len(found.sets) >= 3
    assert len(torch.cat(found.sets).unique()) == sum(len(index_n) for index_n in found.sets)
    before = 0.0
    for number, ratio in enumerate(found.log_ratios):
        after = _gain(population, x_ND, found.sets[: number + 1])
        assert ratio > 0
        assert after - before == pytest.approx(ratio, rel=1e-6, abs=1e-6)
        before = after
    assert found.best >= max(found.log_ratios) - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_born_in_one_gaussian(seed: int) -> None:
    x_ND = _normal(800, seed=seed)
    found = _born(_population(x_ND), x_ND, seed=seed)
    assert found.sets == []
    assert found.proposals > 0
    assert found.best < 0
    (move,) = found.moves(3, [], 800)
    assert (move.kind, move.clusters, move.accepted, move.log_ratio) == ("birth", (3,), False, found.best)
    assert move.why == f"the best of {found.proposals} groups among its 800 rows is likelier inside"


def test_too_few_rows_for_any_size_are_no_proposal_and_no_move() -> None:
    x_ND = _normal(2 * 6 * DIM - 1)
    found = _born(_population(x_ND), x_ND)
    assert (found.sets, found.proposals, found.best) == ([], 0, -math.inf)
    assert found.moves(0, [], len(x_ND)) == []
    assert _born(_population(_normal(2 * 6 * DIM)), _normal(2 * 6 * DIM)).proposals > 0


def test_births_depend_on_their_generator_alone() -> None:
    x_ND = _normal(600)
    population = _population(x_ND)
    first = _born(population, x_ND)
    torch.manual_seed(77)
    assert _born(population, x_ND) == first  # nothing is born, so there are no tensors in it
    assert _born(population, x_ND, seed=1).best != first.best


@settings(max_examples=25)
@given(seed=st.integers(0, 999), sets=st.integers(2, 5), apart=st.floats(0, 6))
def test_a_cut_into_sets_is_judged_by_the_exact_log_joint(seed: int, sets: int, apart: float) -> None:
    set_N = torch.randint(0, sets, (90,), generator=torch.Generator().manual_seed(seed))
    set_N[:sets] = torch.arange(sets)
    x_ND = _normal(90, seed=seed) + apart * torch.eye(5, DIM)[set_N]
    population = _population(x_ND)
    found = judged(population, x_ND, set_N)
    gain = _joint(population, x_ND, set_N) - _joint(population, x_ND, torch.zeros(90).long())
    assert found.best == pytest.approx(gain, rel=1e-9, abs=1e-8)
    assert found.proposals == 1
    if gain <= 0:
        assert found.sets == []
    else:
        assert len(found.sets) == sets - 1
        assert gain == pytest.approx(_gain(population, x_ND, found.sets), rel=1e-9, abs=1e-8)
        assert found.log_ratios == [found.best] * (sets - 1)
        largest = int(set_N.bincount().argmax())  # it stays the cluster
        assert not any((set_N[index_n] == largest).any() for index_n in found.sets)


def test_both_verdicts_occur() -> None:
    """So that the law above is not tested on one side only."""
    set_N = torch.arange(90) % 2
    for apart, born in ((0.0, 0), (6.0, 1)):
        x_ND = _normal(90) + apart * set_N[:, None]
        assert len(judged(_population(x_ND), x_ND, set_N).sets) == born


def test_one_set_is_no_proposal() -> None:
    x_ND = _normal(20)
    found = judged(_population(x_ND), x_ND, torch.zeros(20).long())
    assert (found.sets, found.proposals) == ([], 0)


def test_moves_name_parent_and_child_and_say_why() -> None:
    found = Births([torch.arange(7), torch.arange(7, 10)], [5.0, 2.0], 8, 5.0)
    first, second = found.moves(4, [11, 12], 100)
    assert (first.kind, first.clusters, first.log_ratio, first.accepted) == ("birth", (4, 11), 5.0, True)
    assert first.why == "7 of its 100 rows are likelier apart"
    assert (second.clusters, second.log_ratio) == ((4, 12), 2.0)
