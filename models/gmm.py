"""A Gaussian mixture with full covariances as a Clusterer: expectation-maximisation with K given.

Shapes: N rows, D dimensions, K components, each a cluster. Everything inside is float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from models.clusterer import Assignment, DataSummary, Stats, Update, check_dim
from models.config import Config
from models.errors import ShoalError
from models.gaussians import Gaussians, factorize
from models.increment import Held, Refinement, scaled
from models.moments import Moments, moments_of_sets, weighted_moments
from models.neighbors import kmeans_seeds, nearest
from models.posterior import posterior_assignment
from models.single import AS_NUMBERED, Names, shared_rows


class GMMConfig(Config):
    """A Gaussian mixture with K given."""

    kind: Literal["gmm"] = "gmm"
    clusters: int = Field(ge=1, description="K")
    covariance: Literal["full"] = "full"
    floor: float = Field(1e-6, gt=0, description="added to each variance, in units of the data's mean variance")
    restarts: int = Field(10, ge=1, description="k-means seedings of the sample that the first components come from")
    tolerance: float = Field(1e-5, ge=0, description="gain in log likelihood per row, in nats, that counts as none")


@dataclass(frozen=True, eq=False)
class GMMStats:
    """Moments of the rows weighted by responsibility, and the log likelihood of the rows. Adds over rows."""

    moments: Moments
    log_likelihood: Tensor  # float64, ()

    def __add__(self, other: GMMStats) -> GMMStats:
        return GMMStats(self.moments + other.moments, self.log_likelihood + other.log_likelihood)

    def tensors(self) -> dict[str, Tensor]:
        """The summands by name."""
        return self.moments.tensors() | {"log_likelihood": self.log_likelihood}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> GMMStats:
        """The inverse of `tensors`."""
        return GMMStats(Moments.from_tensors(tensors), tensors["log_likelihood"])


@dataclass(frozen=True, eq=False)
class GMM:
    """Weights and Gaussians fitted by EM (Dempster, Laird and Rubin 1977; Bishop 2006, section 9.2.2).

    A pass costs O(N K D^2) time and O(N K) memory per block of N rows; `maximize` O(K D^3).
    """

    config: GMMConfig
    log_weight_K: Tensor
    gaussians: Gaussians
    floor: float  # config.floor in the data's own unit of variance
    log_likelihood: float  # per row, of the pass before; -inf before the first
    names: Names = AS_NUMBERED

    @property
    def id_K(self) -> Tensor:
        """0 to K - 1, until renamed."""
        return self.names.ids(len(self.log_weight_K), self.log_weight_K.device)

    @property
    def component_K(self) -> Tensor:
        """A cluster is one component of the same id."""
        return self.id_K

    @property
    def next_id(self) -> int:
        """K, until renamed."""
        return self.names.next_id(len(self.log_weight_K))

    @property
    def hard(self) -> bool:
        """Rows are shared by responsibility."""
        return False

    @property
    def retained(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def dim(self) -> int:
        """D of the rows that it takes."""
        return self.gaussians.mean_KD.shape[1]

    def expect(self, x_ND: Tensor, row_N: Tensor) -> GMMStats:
        """Moments under the rows' responsibilities. Deterministic: `row_N` is not needed."""
        return self._expected(x_ND, torch.ones(len(x_ND), dtype=torch.float64, device=x_ND.device))

    def counted(self, x_ND: Tensor, component_N: Tensor, weight_N: Tensor | None = None) -> GMMStats:
        """Raises ShoalError: rows are shared."""
        raise shared_rows("Gaussian mixtures")

    def renamed(self, cluster_K: Tensor, next_id: int) -> GMM:
        """The same components under other ids, all different."""
        return replace(self, names=Names(cluster_K.cpu(), max(next_id, self.next_id)))

    def maximize(self, stats: Stats, rng: torch.Generator) -> Update:
        """The weights, means and covariances of greatest expected log likelihood, each variance raised by the floor."""
        stats = cast(GMMStats, stats)
        objective = float(stats.log_likelihood)
        per_row = objective / float(stats.moments.count_K.sum())
        settled = not per_row - self.log_likelihood > self.config.tolerance  # also stops on NaN
        return Update(replace(self._fitted_to(stats.moments), log_likelihood=per_row), (), objective, settled)

    def refined(self, held: Held, stats: Stats, sample_MD: Tensor, rng: torch.Generator) -> Refinement:
        """One M-step on all rows, after which the rows at hand have the new responsibilities and all others the old.

        K stays what it is. Source: Neal and Hinton (1998). Twice the cost of `expect` on the rows at hand.
        """
        counts = cast(GMMStats, stats)
        model = cast(GMM, self.maximize(counts, rng).model)
        before, after = (each._expected(held.x_ND, held.weight_N) for each in (self, model))
        changed = counts + cast(GMMStats, scaled(before, -1.0)) + after
        # Rows that were counted by an older model than this one may take more out than they had put in.
        if bool((changed.moments.count_K < 0).any()):
            changed = counts
        return Refinement(model, changed, model.assign(held.x_ND).component_N)

    def kept(self, index_L: Tensor) -> GMM:
        """The model of these components alone; their weights add up to 1 again. Raises ShoalError for none."""
        if len(index_L) == 0:
            raise ShoalError(
                f"0 of {len(self.log_weight_K)} components have rows left, and at least 1 is needed to go on from; "
                "fit again with `shoal cluster`."
            )
        log_weight_L = self.log_weight_K[index_L]
        names = Names(self.id_K[index_L].cpu(), self.next_id)
        gaussians = self.gaussians[index_L]
        return replace(self, log_weight_K=log_weight_L - log_weight_L.logsumexp(0), gaussians=gaussians, names=names)

    def assign(self, x_ND: Tensor) -> Assignment:
        """Component of greatest posterior probability; `score` is the row's log density in that component alone.

        Components whose posteriors agree to rounding are tied, and the first of them is taken in blocks of any size.
        """
        check_dim(x_ND, self.dim)
        return posterior_assignment(self._log_joint(x_ND), None, self.log_weight_K, self.id_K)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, Gaussians and ids, and the two numbers that a fit continues from."""
        return {
            "log_weight_K": self.log_weight_K,
            "origin_D": self.gaussians.origin_D,
            "mean_KD": self.gaussians.mean_KD,
            "chol_KDD": self.gaussians.chol_KDD.contiguous(),
            "floor_log_likelihood": torch.tensor([self.floor, self.log_likelihood], dtype=torch.float64),
            **self.names.tensors(len(self.log_weight_K)),
        }

    def _expected(self, x_ND: Tensor, weight_N: Tensor) -> GMMStats:
        check_dim(x_ND, self.dim)
        joint_NK = self._log_joint(x_ND)
        evidence_N = joint_NK.logsumexp(dim=1)
        share_NK = (joint_NK - evidence_N[:, None]).exp_().mul_(weight_N[:, None])
        return GMMStats(weighted_moments(x_ND, share_NK, self.gaussians.origin_D), (evidence_N * weight_N).sum())

    def _log_joint(self, x_ND: Tensor) -> Tensor:
        return self.gaussians.log_density(x_ND).add_(self.log_weight_K)

    def _fitted_to(self, moments: Moments) -> GMM:
        """A component without rows keeps its Gaussian and gets weight 0, for good."""
        empty_K = moments.count_K == 0
        covariance_KDD = moments.scatter_KDD / moments.count_K.clamp_min(1e-300)[:, None, None]
        covariance_KDD.diagonal(dim1=1, dim2=2).add_(self.floor)
        mean_KD = torch.where(empty_K[:, None], self.gaussians.mean_KD, moments.mean_KD)
        chol_KDD = torch.where(empty_K[:, None, None], self.gaussians.chol_KDD, factorize(covariance_KDD))
        log_weight_K = (moments.count_K / moments.count_K.sum()).log()
        return replace(self, log_weight_K=log_weight_K, gaussians=Gaussians(self.gaussians.origin_D, mean_KD, chol_KDD))


def start(config: GMMConfig, data: DataSummary) -> GMM:
    """One Gaussian per k-means cell of the sample.

    Raises ShoalError when the sample has fewer rows than clusters are asked for.
    """
    seed_KD = kmeans_seeds(data.sample_MD, config.clusters, data.seed, config.restarts)
    cell_M = nearest(data.sample_MD, seed_KD, 1)[1][:, 0]
    floor = config.floor * (data.variance or 1.0)  # rows that are all equal have no unit
    sphere_DD = floor**0.5 * torch.eye(data.dim, dtype=torch.float64, device=seed_KD.device)
    gaussians = Gaussians(data.mean_D, seed_KD - data.mean_D, sphere_DD.repeat(config.clusters, 1, 1))
    model = GMM(config, torch.zeros_like(seed_KD[:, 0]), gaussians, floor, log_likelihood=-torch.inf)
    return model._fitted_to(moments_of_sets(data.sample_MD, cell_M, config.clusters, data.mean_D))


def load(config: GMMConfig, tensors: dict[str, Tensor]) -> GMM:
    """The model that `tensors()` described."""
    floor, log_likelihood = tensors["floor_log_likelihood"].tolist()
    gaussians = Gaussians(tensors["origin_D"], tensors["mean_KD"], tensors["chol_KDD"])
    return GMM(config, tensors["log_weight_K"], gaussians, floor, log_likelihood, Names.from_tensors(tensors))
