"""A Dirichlet-process mixture of Gaussians as a Clusterer: K is found by splits and merges.

Every cluster carries two subclusters. A sweep gives each row to its most probable cluster and subcluster, sums the
moments of the 2K subclusters, and from those alone re-estimates, splits, merges and removes. No state is kept per row.

Shapes: N rows, D dimensions, K clusters, 2 subclusters each. Source: Chang and Fisher (2013) for subcluster splits;
hard assignments (maximisation-expectation, Kurihara and Welling 2009) in place of sampled labels, so that a sweep is
deterministic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from models.clusterer import Assignment, DataSummary, Stats, Update, check_dim
from models.dpm.config import DPMConfig
from models.dpm.population import Population, newborn
from models.dpm.prior import NIW, niw_from
from models.dpm.sweep import next_population
from models.moments import Moments, moments_of_sets
from models.neighbors import kmeans_seeds, nearest
from models.posterior import most_probable, posterior_assignment


@dataclass(frozen=True)
class DPMStats:
    """Moments of the 2K subclusters (first and second of cluster 0, of cluster 1, ...). Adds over rows."""

    halves: Moments

    def __add__(self, other: DPMStats) -> DPMStats:
        return DPMStats(self.halves + other.halves)

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {f"halves.{name}": value for name, value in self.halves.tensors().items()}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> DPMStats:
        """The inverse of `tensors`."""
        return DPMStats(Moments.from_tensors(tensors, "halves."))


@dataclass(frozen=True)
class DPM:
    """The mixture after some sweeps: Gaussians and log weights of clusters and subclusters, and the search's progress.

    `expect` costs O(N (K + 2) D^2) time, on the device of its rows; `maximize` O(K D^3), independent of N and always on
    the CPU, where the parameters live: they are small, and a sweep decides cluster by cluster.
    """

    config: DPMConfig
    prior: NIW
    population: Population

    @property
    def id_K(self) -> Tensor:
        """Stable ids; the larger child of a split keeps its parent's."""
        return self.population.id_K

    @property
    def dim(self) -> int:
        """D."""
        return self.prior.dim

    def expect(self, x_ND: Tensor, row_N: Tensor) -> DPMStats:
        """Moments of the subclusters that the rows fall into. Deterministic: `row_N` is not needed."""
        check_dim(x_ND, self.dim)
        cluster_N = most_probable(self._log_joint(x_ND))
        half_N = 2 * cluster_N + self._in_second_half(x_ND, cluster_N).long()
        return DPMStats(moments_of_sets(x_ND, half_N, 2 * len(self.id_K), self.prior.mean_D.to(x_ND.device)))

    def maximize(self, stats: Stats, rng: torch.Generator) -> Update:
        """One sweep of the search: deaths, splits, merges, then the posterior mode of what is left."""
        halves = cast(DPMStats, stats).halves.to("cpu")
        population, moves, objective = next_population(self.config, self.prior, self.population, halves, rng)
        change = abs(objective - self.population.objective)
        tried = bool((population.axis_K >= min(self.config.axes, self.dim)).all())
        over = tried or population.stalled >= self.config.stall(self.dim)
        settled = over and not any(move.accepted for move in moves) and change <= self.config.tolerance * abs(objective)
        return Update(replace(self, population=population), tuple(moves), objective, settled)

    def assign(self, x_ND: Tensor) -> Assignment:
        """Maximum a posteriori cluster of each row; `score` is the log density of the row in its cluster's Gaussian."""
        check_dim(x_ND, self.dim)
        id_K, log_weight_K = (each.to(x_ND.device) for each in (self.id_K, self.population.log_weight_K))
        return posterior_assignment(self._log_joint(x_ND), log_weight_K, id_K)

    def tensors(self) -> dict[str, Tensor]:
        """Prior and population; `load` restores the same model from them."""
        prior = {
            "prior.mean_D": self.prior.mean_D,
            "prior.psi_DD": self.prior.psi_DD,
            "prior.kappa_nu": torch.tensor([self.prior.kappa, self.prior.nu], dtype=torch.float64),
        }
        return prior | self.population.tensors()

    def _log_joint(self, x_ND: Tensor) -> Tensor:
        log_weight_K = self.population.log_weight_K.to(x_ND.device)
        return self.population.clusters.to(x_ND.device).log_density(x_ND).add_(log_weight_K)

    def _in_second_half(self, x_ND: Tensor, cluster_N: Tensor) -> Tensor:
        """Whether each row is more probable in its cluster's second subcluster; ties go to the first."""
        second_N = torch.zeros_like(cluster_N, dtype=torch.bool)
        order_N = torch.argsort(cluster_N, stable=True)
        start = 0
        for k, count in enumerate(torch.bincount(cluster_N, minlength=len(self.id_K)).tolist()):
            rows_n = order_N[start : start + count]
            if count:
                pair = torch.tensor([2 * k, 2 * k + 1])
                joint_n2 = self.population.halves[pair].to(x_ND.device).log_density(x_ND[rows_n])
                joint_n2 += self.population.log_weight_half_H[pair].to(x_ND.device)
                second_N[rows_n] = joint_n2[:, 1] > joint_n2[:, 0]
            start += count
        return second_N


def start(config: DPMConfig, data: DataSummary) -> DPM:
    """The first model: k-means cells of the sample, or the whole data when only one is asked for.

    Raises ShoalError when the prior is impossible in this dimension.
    """
    data = data.to("cpu")
    prior = niw_from(config, data)
    starts = config.starts(data.rows)
    if starts == 1:
        second_DD = data.covariance_DD * data.rows
        whole = Moments(
            torch.tensor([float(data.rows)], dtype=torch.float64), torch.zeros(1, data.dim).double(), second_DD[None]
        )
        return DPM(config, prior, newborn(prior, whole))
    num_seeds = min(starts, len(data.sample_MD))
    seed_KD = kmeans_seeds(data.sample_MD, num_seeds, data.seed, restarts=1)
    cell_M = nearest(data.sample_MD, seed_KD, 1)[1][:, 0]
    cells = moments_of_sets(data.sample_MD, cell_M, len(seed_KD), prior.mean_D)
    return DPM(config, prior, newborn(prior, cells[cells.count_K > 0]))


def load(config: DPMConfig, tensors: dict[str, Tensor]) -> DPM:
    """The model that `tensors()` described."""
    kappa, nu = tensors["prior.kappa_nu"].tolist()
    prior = NIW(tensors["prior.mean_D"], kappa, nu, tensors["prior.psi_DD"])
    return DPM(config, prior, Population.from_tensors(prior.mean_D, tensors))
