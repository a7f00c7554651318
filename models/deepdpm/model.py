"""DeepDPM fitted: a mixture that labels rows, and the networks that it came from.

Shapes: N rows, D dimensions, K clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from models.clusterer import Assignment, Stats, Update, check_dim
from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.mixture import Mixture
from models.deepdpm.search import part, prefixed
from models.deepdpm.statistics import largest
from models.dpm.prior import NIW
from models.errors import ShoalError
from models.increment import Held, Refinement
from models.moments import Moments, sparse_moments
from models.posterior import posterior_assignment
from models.single import shared_rows


@dataclass(frozen=True)
class MixtureStats:
    """Moments of the clusters under the mixture's own responsibilities, and the log likelihood. Adds over rows."""

    clusters: Moments
    log_likelihood: Tensor

    def __add__(self, other: MixtureStats) -> MixtureStats:
        return MixtureStats(self.clusters + other.clusters, self.log_likelihood + other.log_likelihood)

    def tensors(self) -> dict[str, Tensor]:
        """The summands by name."""
        return {**self.clusters.tensors(), "log_likelihood": self.log_likelihood}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> MixtureStats:
        """Statistics with these summands."""
        return MixtureStats(Moments.from_tensors(tensors), tensors["log_likelihood"])


@dataclass(frozen=True)
class DeepDPM:
    """A mixture with maximum a posteriori updates; `net` holds the networks' tensors by name.

    The mixture labels rows: its labels and the networks' score the same to .001 on MNIST and Fashion-MNIST, and it has
    a density for every row, also for those far from all others, where a softmax is sure of itself.
    `expect` and `maximize` are EM on the mixture with K as it is: more rows can be folded in without training. Moves
    need the networks, so they are the objective's. `expect` costs O(N K D^2), `maximize` O(K D^3).
    """

    config: DeepDPMConfig
    prior: NIW
    mixture: Mixture
    net: Mapping[str, Tensor]
    objective: float = -math.inf
    floor: int = 0  # ids below were given before

    @property
    def id_K(self) -> Tensor:
        """Stable ids; the larger child of a split keeps its parent's."""
        return self.mixture.id_K

    @property
    def component_K(self) -> Tensor:
        """A cluster is one component of the same id."""
        return self.mixture.id_K

    @property
    def next_id(self) -> int:
        """Above the ids of clusters that are and that were."""
        return max(self.floor, 1 + int(self.mixture.id_K.max()))

    @property
    def hard(self) -> bool:
        """Rows are shared by responsibility."""
        return False

    @property
    def retained(self) -> tuple[str, ...]:
        """Nothing: the networks go on learning."""
        return ()

    @property
    def dim(self) -> int:
        """D."""
        return self.prior.dim

    def expect(self, x_ND: Tensor, row_N: Tensor) -> MixtureStats:
        """Moments by responsibility, as many per row as in training. Deterministic: `row_N` is not needed."""
        check_dim(x_ND, self.dim)
        joint_NK = self.mixture.log_joint(x_ND)
        row_E, cluster_E, weight_E = largest(joint_NK, self.config.candidates)
        origin_D = self.prior.mean_D.to(x_ND.device)
        clusters = sparse_moments(x_ND, row_E, cluster_E, weight_E, len(self.id_K), origin_D)
        return MixtureStats(clusters, joint_NK.logsumexp(dim=1).sum())

    def counted(self, x_ND: Tensor, component_N: Tensor, weight_N: Tensor | None = None) -> MixtureStats:
        """Raises ShoalError: rows are shared."""
        raise shared_rows("DeepDPM's clusters")

    def renamed(self, cluster_K: Tensor, next_id: int) -> DeepDPM:
        """The same clusters under other ids, all different."""
        mixture = replace(self.mixture, id_K=cluster_K.cpu())
        return replace(self, mixture=mixture, floor=max(next_id, self.next_id))

    def refined(self, held: Held, stats: Stats, sample_MD: Tensor, rng: torch.Generator) -> Refinement:
        """Raises ShoalError: moves need the networks, which a trainer tunes."""
        raise ShoalError("DeepDPM's clusters are refined by tuning its networks, not from statistics; tune them.")

    def maximize(self, stats: Stats, rng: torch.Generator) -> Update:
        """The posterior mode given the responsibilities; the objective is the log likelihood before."""
        given = cast(MixtureStats, stats)
        objective, clusters = float(given.log_likelihood), given.clusters.to("cpu")
        log_weight_K = (clusters.count_K / clusters.count_K.sum()).log()
        mixture = Mixture(self.id_K, log_weight_K, self.prior.mode(clusters))
        settled = abs(objective - self.objective) <= self.config.tolerance * float(clusters.count_K.sum())
        return Update(replace(self, mixture=mixture, objective=objective), (), objective, settled)

    def assign(self, x_ND: Tensor) -> Assignment:
        """Maximum a posteriori cluster of each row; `score` is the row's log density in that cluster's Gaussian."""
        check_dim(x_ND, self.dim)
        log_weight_K, id_K = self.mixture.log_weight_K.to(x_ND.device), self.id_K.to(x_ND.device)
        return posterior_assignment(self.mixture.log_joint(x_ND), None, log_weight_K, id_K)

    def tensors(self) -> dict[str, Tensor]:
        """Prior, mixture and networks."""
        return {
            **prefixed("prior.", self.prior.tensors()),
            **prefixed("mixture.", self.mixture.tensors()),
            **prefixed("net.", self.net),
            "objective": torch.tensor(self.objective, dtype=torch.float64),
            "next_id": torch.tensor(self.next_id),
        }


def load(config: DeepDPMConfig, tensors: dict[str, Tensor]) -> DeepDPM:
    """The model that `tensors()` described; earlier versions kept no `next_id`."""
    prior = NIW.from_tensors(part("prior.", tensors))
    mixture = Mixture.from_tensors(prior.mean_D, part("mixture.", tensors))
    floor = int(tensors["next_id"]) if "next_id" in tensors else 0
    return DeepDPM(config, prior, mixture, part("net.", tensors), float(tensors["objective"]), floor)
