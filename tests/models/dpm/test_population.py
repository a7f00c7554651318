"""A population between two sweeps: halves of a cut, what is kept of a roster, and the way through safetensors."""

from __future__ import annotations

import math

import pytest
import safetensors.torch
import torch
from torch import Tensor

from models.clusterer import DataSummary
from models.dpm.config import DPMConfig
from models.dpm.population import Entry, Population, Progress, Roster, cut_in_two, newborn
from models.dpm.prior import Covariance, Prior, prior_of
from models.moments import Moments, moments_of_sets

KINDS: list[Covariance] = ["full", "diagonal", "spherical", "tied"]
each_family = pytest.mark.parametrize("kind", KINDS)


def _rows(rows: int = 400, seed: int = 0) -> Tensor:
    noise_ND = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return noise_ND * torch.tensor([3.0, 1.0, 0.3]) + 2


def _prior(kind: Covariance, x_ND: Tensor) -> Prior:
    mean_D, covariance_DD = x_ND.double().mean(dim=0), torch.cov(x_ND.double().T, correction=0)
    return prior_of(kind, DataSummary(len(x_ND), mean_D, covariance_DD, x_ND, 0), 1.0, 1.0, None)


def _moments(prior: Prior, x_ND: Tensor, set_N: Tensor) -> Moments:
    return moments_of_sets(x_ND, set_N, int(set_N.max()) + 1, prior.mean_D, diagonal=prior.diagonal)


def _on_trial(kind: Covariance, assignment: str = "predictive") -> Population:
    """Three clusters; the second on trial along its second axis, the third with halves that have settled."""
    x_ND, config = _rows(), DPMConfig.model_validate({"covariance": kind, "assignment": assignment})
    prior = _prior(kind, x_ND)
    whole, halves = (
        _moments(prior, x_ND, torch.arange(400) % 3),
        _moments(prior, x_ND, (torch.arange(400) % 5).clamp_max(1)),
    )
    roster = Roster(config, prior, 10.0)
    roster.enter(4, whole[torch.tensor([0])])
    roster.entries.append(Entry(0, whole[torch.tensor([1])], axis=1, tried=99.0, trial=True))
    roster.entries.append(Entry(7, whole[torch.tensor([2])], axis=0, tried=130.0, trial=True, age=2, halves=halves))
    return roster.population(9, Progress(-5.0, -4.0, 3, 2))


def test_the_halves_of_a_normal_have_the_moments_of_its_halves() -> None:
    """Rows of a Gaussian cut by a plane through its mean: what `cut_in_two` says without rows."""
    x_ND = _rows(200_000)
    prior = _prior("full", x_ND)
    whole = _moments(prior, x_ND, torch.zeros(len(x_ND)).long())
    for axis in range(3):
        log_weight_K2, halves = cut_in_two(prior, whole, torch.tensor([axis]))
        assert log_weight_K2.tolist() == [[math.log(0.5)] * 2]
        set_N = (x_ND[:, axis] > x_ND[:, axis].mean()).long()  # the axes of these rows are their coordinates
        for half in range(2):
            part_nD = x_ND[set_N == half].double() - prior.mean_D
            index = int((halves.mean_KD @ part_nD.mean(dim=0)).argmax())
            torch.testing.assert_close(halves.mean_KD[index], part_nD.mean(dim=0), atol=0.03, rtol=0)
            torch.testing.assert_close(halves.covariance_KDD[index], torch.cov(part_nD.T), atol=0.06, rtol=0.02)


@each_family
def test_halves_lie_on_both_sides_of_their_cluster(kind: Covariance) -> None:
    population = _on_trial(kind)
    assert population.trial_J.tolist() == [1, 2]
    assert population.age_J.tolist() == [0, 2]
    first, second = population.halves.mean_KD[:2]
    torch.testing.assert_close((first + second) / 2, population.clusters.mean_KD[1])
    assert (first - second).norm() > 0.1
    torch.testing.assert_close(population.halves.covariance_KDD[0], population.halves.covariance_KDD[1])
    assert population.log_weight_half_H[:2].tolist() == [math.log(0.5)] * 2


@each_family
def test_halves_that_have_rows_are_what_the_rows_say(kind: Covariance) -> None:
    """80 and 320 rows, and one more on each side for the weights."""
    population, x_ND = _on_trial(kind), _rows()
    halves = _moments(population.prior, x_ND, (torch.arange(400) % 5).clamp_max(1))
    mode = population.prior.mode(halves)
    torch.testing.assert_close(population.halves.mean_KD[2:], mode.mean_KD)
    torch.testing.assert_close(population.halves.covariance_KDD[2:], mode.covariance_KDD)
    assert population.log_weight_half_H[2:].exp().tolist() == pytest.approx([81 / 402, 321 / 402])


def test_an_empty_half_keeps_a_weight() -> None:
    x_ND = _rows()
    prior = _prior("full", x_ND)
    halves = moments_of_sets(x_ND, torch.zeros(400).long(), 2, prior.mean_D)
    roster = Roster(DPMConfig(), prior, 10.0)
    roster.entries.append(Entry(0, halves.total(), trial=True, age=1, halves=halves))
    population = roster.population(1, Progress())
    assert population.log_weight_half_H.exp().tolist() == pytest.approx([401 / 402, 1 / 402])
    assert population.halves.log_density(x_ND).isfinite().all()


@each_family
@pytest.mark.parametrize("assignment", ["predictive", "mode"])
def test_tensors_restore_the_population(kind: Covariance, assignment: str) -> None:
    population = _on_trial(kind, assignment)
    config = DPMConfig.model_validate({"covariance": kind, "assignment": assignment})
    again = Population.from_tensors(config, safetensors.torch.load(safetensors.torch.save(population.tensors())))
    assert again.tensors().keys() == population.tensors().keys()
    assert all(torch.equal(again.tensors()[name], value) for name, value in population.tensors().items())
    assert (again.next_id, again.progress, again.concentration) == (9, Progress(-5.0, -4.0, 3, 2), 10.0)
    x_ND = _rows(20, seed=1)
    assert type(again.clusters) is type(population.clusters)
    for mine, theirs in ((population.clusters, again.clusters), (population.halves, again.halves)):
        assert torch.equal(mine.log_density(x_ND), theirs.log_density(x_ND))


def _many(kind: Covariance, assignment: str) -> Population:
    """Forty clusters in 16-d, of which two have halves."""
    x_ND = torch.randn(2000, 16, generator=torch.Generator().manual_seed(4))
    config, prior = DPMConfig.model_validate({"covariance": kind, "assignment": assignment}), _prior(kind, x_ND)
    moments, roster = _moments(prior, x_ND, torch.arange(2000) % 40), Roster(config, prior, 10.0)
    for k in range(40):
        roster.entries.append(Entry(k, moments.one(k), trial=k in (3, 5)))
    return roster.population(40, Progress())


@each_family
@pytest.mark.parametrize("assignment", ["predictive", "mode"])
def test_many_large_clusters_are_stored_in_float32_and_lose_nothing(kind: Covariance, assignment: str) -> None:
    population = _many(kind, assignment)
    assert population.single
    assert not _on_trial(kind).single
    stored = safetensors.torch.load(safetensors.torch.save(population.tensors()))
    config = DPMConfig.model_validate({"covariance": kind, "assignment": assignment})
    again, x_ND = Population.from_tensors(config, stored), torch.randn(30, 16)
    every_N4 = torch.arange(4).expand(30, 4)
    for name, mine, theirs in (
        ("cluster", population.clusters, again.clusters),
        ("half", population.halves, again.halves),
    ):
        if mine.diagonal:
            assert stored[f"{name}.chol_KDD"].dtype == torch.float64
        else:
            assert stored[f"{name}.chol_KT"].dtype == torch.float32
            assert stored[f"{name}.chol_KT"].shape == (len(mine.mean_KD), 136)
        assert theirs.chol_KDD.dtype == torch.float64
        assert torch.equal(theirs.chol_KDD, mine.chol_KDD)
        assert torch.equal(theirs.log_density(x_ND), mine.log_density(x_ND))
        assert torch.equal(theirs.log_density_at(x_ND, every_N4), mine.log_density_at(x_ND, every_N4))


def test_few_small_clusters_keep_all_digits_and_are_stored_as_triangles() -> None:
    population = _on_trial("full")
    stored = population.tensors()
    assert (stored["cluster.chol_KT"].dtype, stored["cluster.chol_KT"].shape) == (torch.float64, (3, 6))
    assert not torch.equal(population.clusters.chol_KDD.float().double(), population.clusters.chol_KDD)


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_square_factors_of_earlier_versions_are_read(kind: Covariance) -> None:
    population, config = _on_trial(kind), DPMConfig.model_validate({"covariance": kind})
    earlier = {name: value for name, value in population.tensors().items() if not name.endswith("chol_KT")}
    earlier |= {"cluster.chol_KDD": population.clusters.chol_KDD, "half.chol_KDD": population.halves.chol_KDD}
    again = Population.from_tensors(config, earlier)
    assert torch.equal(again.clusters.chol_KDD, population.clusters.chol_KDD)
    assert torch.equal(again.halves.chol_KDD, population.halves.chol_KDD)


@pytest.mark.parametrize("values", [Progress(), Progress(-12.5, -math.inf, 7, 40)])
def test_progress_survives_its_tensor(values: Progress) -> None:
    assert Progress.from_tensor(values.tensor()) == values


@each_family
def test_newborn_clusters_have_the_shares_of_their_rows(kind: Covariance) -> None:
    x_ND = _rows()
    prior = _prior(kind, x_ND)
    moments = _moments(prior, x_ND, (torch.arange(400) >= 100).long())
    config = DPMConfig.model_validate({"covariance": kind, "assignment": "mode"})
    population = newborn(config, prior, moments)
    assert len(population) == 2
    assert (population.id_K.tolist(), population.next_id) == ([0, 1], 2)
    assert population.log_weight_K.exp().tolist() == pytest.approx([0.25, 0.75])
    assert population.tried_K.tolist() == [100.0, 300.0]
    assert len(population.trial_J) == 0
    torch.testing.assert_close(population.clusters.covariance_KDD, prior.mode(moments).covariance_KDD)
