"""Deaths: what they promise to gain, whom they spare."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.clusterer import Move
from models.dpm.config import DPMConfig
from models.dpm.deaths import deaths
from models.dpm.moves import cluster_weight, log_joint
from models.dpm.population import Population, newborn
from models.dpm.prior import NIW
from models.moments import Moments, moments_of_sets

PRIOR = NIW(torch.zeros(2).double(), 1.0, 5.0, torch.eye(2).double())
CONFIG = DPMConfig(prior_scale=1.0)


def _normal(rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _sets(
    sizes: list[int], centre_KD: list[list[float]], config: DPMConfig = CONFIG
) -> tuple[Population, Moments, Tensor]:
    """Unit clouds of these sizes at these centres, and which one each row is of."""
    set_N = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x_ND = _normal(len(set_N)) + torch.tensor(centre_KD).double()[set_N]
    moments = moments_of_sets(x_ND, set_N, len(sizes), PRIOR.mean_D)
    return newborn(config, PRIOR, moments), moments, x_ND


def _deaths(
    population: Population, moments: Moments, runner_up: list[float], config: DPMConfig = CONFIG, *, over: bool = False
) -> tuple[list[bool], list[Move]]:
    weight_K = cluster_weight(PRIOR, population.concentration, moments)
    living_K, moves = deaths(config, population, moments, weight_K, torch.tensor(runner_up).double(), over=over)
    return living_K.tolist(), moves


@pytest.mark.parametrize("assignment", ["predictive", "mode"])
def test_the_gain_is_about_the_change_of_the_log_joint_for_a_tiny_cluster(assignment: str) -> None:
    """Six rows at the edge of a cloud of 20,000, whose parameters they hardly change: within 0.1 nat a row."""
    config = DPMConfig.model_validate({"prior_scale": 1.0, "assignment": assignment})
    population, moments, x_ND = _sets([20_000, 6, 20_000], [[0.0, 0.0], [1.2, 0.0], [40.0, 0.0]], config)
    tiny_nD = x_ND[20_000:20_006]
    joint_nK = population.clusters.log_density(tiny_nD) + population.log_weight_K
    runner_up = joint_nK[:, [0, 2]].amax(dim=1).sum().item()
    living, (move,) = _deaths(population, moments, [-math.inf, runner_up, -math.inf], config)
    after = moments[torch.tensor([0, 2])]
    joined = Moments(after.count_K.clone(), after.sum_KD.clone(), after.second_KDD.clone())
    for total, part in zip(joined.tensors().values(), moments.tensors().values(), strict=True):
        total[0] += part[1]
    exact = log_joint(PRIOR, 10.0, joined) - log_joint(PRIOR, 10.0, moments)
    assert living == [True, False, True]
    assert exact > 5
    assert move.log_ratio == pytest.approx(exact, abs=0.6)
    assert (move.kind, move.clusters, move.accepted) == ("death", (1,), True)
    assert "each of its 6 rows in its second best cluster is likelier" in move.why


def test_the_gain_by_hand() -> None:
    """sum of second best log joints, plus a row's log N each, minus the cluster's own weight."""
    population, moments, _ = _sets([30, 8], [[0.0, 0.0], [4.0, 0.0]])
    weight = cluster_weight(PRIOR, 10.0, moments)[1].item()
    for over_even, survives in ((0.01, False), (-0.01, True)):
        runner_up = weight - 8 * math.log(38) + over_even
        living, moves = _deaths(population, moments, [-math.inf, runner_up])
        assert living == [True, survives]
        assert [move.log_ratio for move in moves] == pytest.approx([] if survives else [0.01], abs=1e-6)


def test_the_nearest_of_a_dying_cluster_stay_and_farther_ones_may_die_with_it() -> None:
    """A row of eight: 0 wants to die most, so its three nearest, 1 to 3, stay; of the others 7 wants most, and 4 to 6
    stay. All of them want to.
    """
    centre_KD = [[10.0 * k + 0.3 * k * k, 0.0] for k in range(8)]
    population, moments, _ = _sets([10] * 8, centre_KD)
    living, moves = _deaths(population, moments, [800.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 700.0])
    assert living == [False, True, True, True, True, True, True, False]
    assert [move.clusters for move in moves] == [(0,), (7,)]


def test_the_one_that_gains_most_dies_first() -> None:
    population, moments, _ = _sets([10] * 2, [[0.0, 0.0], [1.0, 0.0]])
    assert _deaths(population, moments, [10.0, 500.0])[0] == [True, False]
    assert _deaths(population, moments, [500.0, 10.0])[0] == [False, True]


@pytest.mark.parametrize("tiny", [3, 40])
def test_never_does_every_cluster_die(tiny: int) -> None:
    """Not even where whoever is nearest is too small to live: two clusters far apart, specks around each."""
    centre_KD = [[0.0, 0.0], [100.0, 0.0], *[[100.0 * (k % 2), 5.0] for k in range(2 * tiny)]]
    population, moments, _ = _sets([10, 10, *[1] * (2 * tiny)], centre_KD)
    living, moves = _deaths(population, moments, [1e6] * len(population))
    assert sum(living) == 1
    assert living[0] != living[1]
    assert len(moves) == 2 * tiny + 1


def test_too_few_rows_are_a_death_whatever_the_gain() -> None:
    population, moments, _ = _sets([30, 4, 5], [[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]])
    living, (move,) = _deaths(population, moments, [-math.inf] * 3)
    assert living == [True, False, True]
    assert math.isnan(move.log_ratio)
    assert move.why == "4 rows, fewer than min_size"


def test_the_largest_stays_even_if_it_is_too_small() -> None:
    population, moments, _ = _sets([3, 2], [[0.0, 0.0], [9.0, 0.0]])
    assert _deaths(population, moments, [-math.inf] * 2)[0] == [True, False]


def test_equal_clusters_that_are_all_too_small_stay() -> None:
    population, moments, _ = _sets([2, 2], [[0.0, 0.0], [9.0, 0.0]])
    assert _deaths(population, moments, [-math.inf] * 2)[0] == [True, True]


def test_metropolis_and_a_search_that_is_over_know_the_least_size_alone() -> None:
    population, moments, _ = _sets([30, 4, 9], [[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    assert _deaths(population, moments, [-math.inf, 0.0, 500.0])[0] == [True, False, False]
    metropolis = CONFIG.model_copy(update={"metropolis": True})
    assert _deaths(population, moments, [-math.inf, 0.0, 500.0], metropolis)[0] == [True, False, True]
    assert _deaths(population, moments, [-math.inf, 0.0, 500.0], over=True)[0] == [True, False, True]


def test_no_second_best_is_no_gain() -> None:
    """An empty cluster's sum is 0 and its share of the data 0 log N: nan must not count as a gain."""
    population, moments, _ = _sets([30, 10], [[0.0, 0.0], [1.0, 0.0]])
    assert _deaths(population, moments, [math.nan, -math.inf]) == ([True, True], [])
