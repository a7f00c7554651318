"""A Dirichlet-process mixture of Gaussians as a Clusterer: K is found by splits, merges, births and deaths.

A sweep gives each row to its most probable cluster, and to one of two subclusters where a split is on trial, sums
moments, and from those alone re-estimates, splits, merges and removes. No state is kept per row.

Shapes: N rows, D dimensions, K clusters, C of them evaluated per row, J with a split on trial. Source: Chang and Fisher
(2013) for subcluster splits; hard assignments (maximisation-expectation, Kurihara and Welling 2009) in place of sampled
labels, so that a sweep is deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from models.clusterer import Assignment, DataSummary, Move, Stats, Update, check_dim
from models.dpm.config import DPMConfig
from models.dpm.counting import counted_sets
from models.dpm.grouping import GroupingConfig, grouped
from models.dpm.population import Population, newborn
from models.dpm.prior import fitted_prior, prior_from
from models.dpm.sweep import Sums, next_population, wholes
from models.gaussians import Gaussians
from models.increment import Held, Refinement
from models.moments import Moments, moments_of_sets
from models.neighbors import cells, nearest
from models.posterior import best_two, posterior_assignment

GROUP_ROWS = 16_384  # of the sample, in which components are grouped
JOINED = {
    "continuity": "components of one cluster: they overlap, and the valley between them is {:.2f} nats deep",
    "shade": "components of one cluster: at this resolution the smaller is part of the larger ({:.2f} nats)",
}


@dataclass(frozen=True, eq=False)
class DPMStats:
    """Moments of clusters and halves, and the summed log joint densities of second best clusters. Adds over rows."""

    sets: Moments
    runner_up_K: Tensor

    def __add__(self, other: DPMStats) -> DPMStats:
        return DPMStats(self.sets + other.sets, self.runner_up_K + other.runner_up_K)

    def __iadd__(self, other: DPMStats) -> DPMStats:
        self.sets.__iadd__(other.sets)
        self.runner_up_K.add_(other.runner_up_K)
        return self

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return self.sets.tensors() | {"runner_up_K": self.runner_up_K}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> DPMStats:
        """The inverse of `tensors`."""
        return DPMStats(Moments.from_tensors(tensors), tensors["runner_up_K"])


@dataclass(frozen=True, eq=False)
class DPM:
    """The mixture after some sweeps.

    `expect` costs O(N (K D + C D^2)) time, on the device of its rows; `maximize` O(K D^3), independent of N and always
    on the CPU, where the parameters live: they are small, and a sweep decides cluster by cluster. Where K is at most C
    every row sees every cluster; beyond, the C whose means are nearest, and log densities are then float32. Of 40,000
    rows in 32-d, 100 components, that gives another cluster than exact evaluation to 0.05, 0.01 and 0 % at C = 8, 16
    and 32 where they are clear (sigma 1.2), to 17, 8 and 3 % where they overlap (.55), so C should then be near K.
    """

    config: DPMConfig
    population: Population
    sample_MD: Tensor  # float32, the rows in which components are grouped
    cluster_K: Tensor | None = None  # id of each component's cluster, once the search has settled
    opening: tuple[Move, ...] = ()  # moves made before the first pass, on the sample; a fit tells them first

    @property
    def id_K(self) -> Tensor:
        """Stable ids of clusters, that of the largest component; a split's larger child keeps its parent's."""
        return self.population.id_K if self.cluster_K is None else self.cluster_K

    @property
    def component_K(self) -> Tensor:
        """Stable ids of components."""
        return self.population.id_K

    @property
    def next_id(self) -> int:
        """Above every id of a component or a cluster; they share one counter."""
        return max(self.population.next_id, 1 + int(self.id_K.max()))

    @property
    def hard(self) -> bool:
        """True: a row counts in its most probable component alone."""
        return True

    @property
    def retained(self) -> tuple[str, ...]:
        """The sample, in which components are grouped when the mixture has changed."""
        return ("sample_MD",)

    @property
    def dim(self) -> int:
        """D."""
        return self.population.prior.dim

    def expect(self, x_ND: Tensor, row_N: Tensor) -> DPMStats:
        """What the rows leave behind. Deterministic: `row_N` is not needed."""
        check_dim(x_ND, self.dim)
        set_N, runner_up_N = self.sets_of(x_ND)
        prior, count = self.population.prior, len(self.population)
        runner_up_K = torch.zeros(count, dtype=torch.float64, device=x_ND.device)
        runner_up_K.index_add_(0, self._cluster_of_set(x_ND.device)[set_N], runner_up_N)
        sets = count + len(self.population.trial_J)
        origin_D = prior.mean_D.to(x_ND.device)
        return DPMStats(moments_of_sets(x_ND, set_N, sets, origin_D, diagonal=prior.diagonal), runner_up_K)

    def counted(self, x_ND: Tensor, component_N: Tensor, weight_N: Tensor | None = None) -> DPMStats:
        """Moments of rows in given components, as `expect` takes them of a mixture without trials. O(N D^2) time.

        Second best components are left unknown (nan): they would cost an E-step, and only the search of a fit asks.
        """
        check_dim(x_ND, self.dim)
        count = len(self.population)
        sets = counted_sets(self.population.prior, x_ND, component_N, weight_N, count)
        return DPMStats(sets, torch.full((count,), torch.nan, dtype=torch.float64, device=x_ND.device))

    def renamed(self, cluster_K: Tensor, next_id: int) -> DPM:
        """The same mixture; component k belongs to cluster `cluster_K[k]`."""
        return replace(self, cluster_K=cluster_K, population=replace(self.population, next_id=next_id))

    def plain(self, stats: DPMStats) -> tuple[DPM, DPMStats]:
        """The same mixture and its statistics without trials: what their halves hold is one component again."""
        old, none = self.population, torch.empty(0, dtype=torch.int64)
        if len(old.trial_J) == 0:
            return self, stats
        halves, weight_H = old.halves[none], old.log_weight_half_H[none]
        population = replace(old, trial_J=none, age_J=none, halves=halves, log_weight_half_H=weight_H)
        sets = wholes(stats.sets, old.trial_J, len(old))
        return replace(self, population=population), DPMStats(sets, stats.runner_up_K)

    def refined(self, held: Held, stats: Stats, sample_MD: Tensor, rng: torch.Generator) -> Refinement:
        """The mixture after births, splits, merges and deaths among what the rows at hand have touched.

        Costs O(N (K D + C D^2)) time for N rows, what a search among the improbable ones of them costs, and one M-step.
        """
        from models.dpm.increment import refined  # noqa: PLC0415  it refines the model that is defined here

        return refined(self, held, cast(DPMStats, stats), sample_MD, rng)

    def mstep(self, stats: Stats) -> DPM:
        """The same components with parameters from `stats`; those without rows end. Raises ShoalError without any."""
        from models.dpm.increment import remade  # noqa: PLC0415

        return remade(self, cast(DPMStats, stats))

    def maximize(self, stats: Stats, rng: torch.Generator) -> Update:
        """One sweep of the search, then the parameters of what is left."""
        return self.swept(cast(DPMStats, stats), rng, trials=True)

    def swept(self, stats: DPMStats, rng: torch.Generator, *, trials: bool) -> Update:
        """`maximize`, without new subclusters where `trials` is false."""
        sums = Sums(stats.sets.to("cpu"), stats.runner_up_K.cpu())
        population, made, objective = next_population(self.config, self.population, sums, rng, trials=trials)
        change = abs(objective - self.population.progress.objective)
        idle = len(population.trial_J) == 0 and not any(move.accepted for move in made)
        settled = idle and change <= self.config.tolerance * abs(objective)
        model = replace(self, population=population, cluster_K=None, opening=())
        if settled and self.config.grouping is not None:
            model, joins = model.grouped(self.config.grouping)
            made += joins
        return Update(model, tuple(made), objective, settled)

    def grouped(self, config: GroupingConfig) -> tuple[DPM, list[Move]]:
        """The same mixture with its components grouped into clusters, and what was joined why."""
        population, id_K = self.population, self.population.id_K
        component_M = component_sample(self)
        found = grouped(population.log_weight_K.exp(), population.clusters, self.sample_MD, component_M, config)
        cluster_K = id_K.clone()
        for group in range(int(found.cluster_K.max()) + 1):
            members = torch.nonzero(found.cluster_K == group).flatten()
            cluster_K[members] = id_K[members[population.log_weight_K[members].argmax()]]
        moves = []
        for join in found.joins:
            if join.applied:
                ids = (int(id_K[join.left]), int(id_K[join.right]))
                moves.append(Move("merge", ids, math.nan, True, JOINED[join.kind].format(join.height)))
        return replace(self, cluster_K=cluster_K), moves

    def assign(self, x_ND: Tensor) -> Assignment:
        """Maximum a posteriori cluster of each row; `score` is the log density of the row in its cluster."""
        check_dim(x_ND, self.dim)
        joint_NC, component_NC = self.log_joint(x_ND)
        log_weight_K, id_K = (each.to(x_ND.device) for each in (self.population.log_weight_K, self.id_K))
        return posterior_assignment(joint_NC, component_NC, log_weight_K, id_K)

    def sets_of(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Set of each row as `Sums` numbers them, and the log joint density of its second best cluster."""
        joint_NC, component_NC = self.log_joint(x_ND)
        cluster_N, runner_up_N = best_two(joint_NC)
        if component_NC is not None:
            cluster_N = component_NC.gather(1, cluster_N[:, None])[:, 0]
        trial_J, count = self.population.trial_J.to(x_ND.device), len(self.population)
        if len(trial_J) == 0:
            return cluster_N, runner_up_N
        trial_K = torch.full((count,), -1, device=x_ND.device)
        trial_K[trial_J] = torch.arange(len(trial_J), device=x_ND.device)
        rows_n = torch.nonzero(trial_K[cluster_N] >= 0).flatten()
        trial_n = trial_K[cluster_N[rows_n]]
        second_n = self._in_second_half(x_ND[rows_n], trial_n)
        set_N = cluster_N.clone()
        set_N[rows_n[second_n]] = count + trial_n[second_n]
        return set_N, runner_up_N

    def tensors(self) -> dict[str, Tensor]:
        """Prior, population and sample; `load` restores the same model from them."""
        tensors = self.population.tensors() | {"sample_MD": self.sample_MD}
        return tensors if self.cluster_K is None else tensors | {"cluster_K": self.cluster_K}

    def _cluster_of_set(self, device: torch.device) -> Tensor:
        return torch.cat([torch.arange(len(self.population)), self.population.trial_J]).to(device)

    def log_joint(self, x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log of weight times density of every row in its candidates, (N, C), and which those are (None: all)."""
        population = self.population
        clusters, count = population.clusters.to(x_ND.device), len(population)
        log_weight_K = population.log_weight_K.to(x_ND.device)
        if count <= self.config.evaluated(self.dim):
            return clusters.log_density(x_ND, single=population.single).add_(log_weight_K), None
        component_NC = self.candidates(x_ND, clusters)
        return clusters.log_density_at(x_ND, component_NC).add_(log_weight_K[component_NC]), component_NC

    def candidates(self, x_ND: Tensor, clusters: Gaussians) -> Tensor:
        """The C clusters whose means are nearest to each row, (N, C)."""
        mean_KD = clusters.origin_D + clusters.mean_KD
        return nearest(x_ND, mean_KD, self.config.evaluated(self.dim))[1]

    def _in_second_half(self, x_nD: Tensor, trial_n: Tensor) -> Tensor:
        """Whether each row is more probable in the second subcluster of its trial; ties go to the first."""
        half_n2 = torch.stack([2 * trial_n, 2 * trial_n + 1], dim=1)
        joint_n2 = self.population.halves.to(x_nD.device).log_density_at(x_nD, half_n2)
        joint_n2 += self.population.log_weight_half_H.to(x_nD.device)[half_n2]
        return joint_n2[:, 1] > joint_n2[:, 0]


def component_sample(model: DPM) -> Tensor:
    """Component of each sampled row of a mixture without trials, (M,) int64."""
    return torch.cat([model.sets_of(x_mD)[0] for x_mD in model.sample_MD.split(GROUP_ROWS)])


def start(config: DPMConfig, data: DataSummary) -> DPM:
    """The model before the first pass: k-means cells of the sample, and the search on the sample alone.

    Raises ShoalError when the prior is impossible in this dimension.
    """
    from models.dpm.opening import opened  # noqa: PLC0415  it fits the model that is defined here

    data = data.to("cpu")
    prior = prior_from(config, data)
    cell_M = cells(data.sample_MD, config.starts(len(data.sample_MD), data.dim), data.seed)
    sets = moments_of_sets(data.sample_MD, cell_M, int(cell_M.max()) + 1, prior.mean_D, diagonal=prior.diagonal)
    sets = sets[sets.count_K > 0]
    if config.fits_prior:
        prior = fitted_prior(config, sets, sets.total(), prior)
    return opened(DPM(config, newborn(config, prior, sets), data.sample_MD[:GROUP_ROWS].clone()), data)


def load(config: DPMConfig, tensors: dict[str, Tensor]) -> DPM:
    """The model that `tensors()` described; without the sample it can do all but be grouped."""
    population = Population.from_tensors(config, tensors)
    none_MD = torch.empty(0, population.prior.dim)
    return DPM(config, population, tensors.get("sample_MD", none_MD), tensors.get("cluster_K"))
