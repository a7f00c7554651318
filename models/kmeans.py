"""Lloyd's k-means as a Clusterer: centroids, and the additive statistics that move them.

Shapes: N rows, M sampled rows, D dimensions, K clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor

from models.clusterer import NOISE, Assignment, DataSummary, Stats, Update, check_dim
from models.config import Config
from models.errors import ShoalError
from models.increment import Held, Refinement
from models.neighbors import kmeans_seeds, squared_distances
from models.single import AS_NUMBERED, Names

_NO_ROW = 1e-6  # rows below which a cluster ends: what is left of it is rounding, or decay
_TIE = 1e-12  # relative; two squared distances that agree so far are equal
_EMPTY = 1e-9  # rows: what is left by rounding where all weighted rows of a cluster were taken out
_TINY = 1e-300  # in place of 0 below a fraction: rows that have faded count less than 1


class KMeansConfig(Config):
    """k-means with K given."""

    kind: Literal["kmeans"] = "kmeans"
    clusters: int = Field(ge=1, description="K")
    restarts: int = Field(
        10, ge=1, description="seedings of the sample, of which the one with the least inertia is kept"
    )
    tolerance: float = Field(1e-6, ge=0, description="relative fall of the inertia that counts as none")


@dataclass(frozen=True, eq=False)
class KMeansStats:
    """What a pass over rows leaves behind. Adding two equals one pass over both sets of rows."""

    count_K: Tensor  # float64: a float32 sum stops growing near 2**24 rows
    sum_KD: Tensor  # float64
    inertia: Tensor  # float64, (): sum of squared distances to the nearest centroid

    def __add__(self, other: KMeansStats) -> KMeansStats:
        return KMeansStats(self.count_K + other.count_K, self.sum_KD + other.sum_KD, self.inertia + other.inertia)

    def tensors(self) -> dict[str, Tensor]:
        """The summands by name."""
        return {"count_K": self.count_K, "sum_KD": self.sum_KD, "inertia": self.inertia}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> KMeansStats:
        """The inverse of `tensors`."""
        return KMeansStats(tensors["count_K"], tensors["sum_KD"], tensors["inertia"])


@dataclass(frozen=True, eq=False)
class KMeans:
    """Centroids minimising the summed squared distance (Lloyd 1982).

    A pass costs O(N K D) time and O(N K) memory per block of N rows. Labels do not depend on how rows are cut into
    blocks (`neighbors.squared_distances`); a row as near to two centroids belongs to the first.
    """

    config: KMeansConfig
    centroid_KD: Tensor  # float64
    variance: float  # mean squared distance of a row to its centroid, per dimension
    inertia: float  # of the pass before; inf before the first
    names: Names = AS_NUMBERED

    @property
    def id_K(self) -> Tensor:
        """0 to K - 1, until renamed."""
        return self.names.ids(len(self.centroid_KD), self.centroid_KD.device)

    @property
    def component_K(self) -> Tensor:
        """A cluster is one component of the same id."""
        return self.id_K

    @property
    def next_id(self) -> int:
        """K, until renamed."""
        return self.names.next_id(len(self.centroid_KD))

    @property
    def hard(self) -> bool:
        """Each row counts in the nearest cluster."""
        return True

    @property
    def retained(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def dim(self) -> int:
        """D of the rows that it takes."""
        return self.centroid_KD.shape[1]

    def expect(self, x_ND: Tensor, row_N: Tensor) -> KMeansStats:
        """Counts, sums and inertia of the cells that the rows fall into. Deterministic: `row_N` is not needed."""
        check_dim(x_ND, self.dim)
        return self.counted(x_ND, squared_distances(x_ND, self.centroid_KD).argmin(dim=1))

    def counted(self, x_ND: Tensor, component_N: Tensor, weight_N: Tensor | None = None) -> KMeansStats:
        """Counts, sums and inertia of the rows in these clusters, nearest or not."""
        check_dim(x_ND, self.dim)
        weight_N = torch.ones_like(component_N, dtype=torch.float64) if weight_N is None else weight_N.double()
        count_K = torch.zeros_like(self.centroid_KD[:, 0]).index_add_(0, component_N, weight_N)
        sum_KD = torch.zeros_like(self.centroid_KD).index_add_(0, component_N, x_ND.double() * weight_N[:, None])
        return KMeansStats(count_K, sum_KD, (self._squared_distance_to(x_ND, component_N) * weight_N).sum())

    def renamed(self, cluster_K: Tensor, next_id: int) -> KMeans:
        """The same centroids under other ids, all different."""
        return replace(self, names=Names(cluster_K.cpu(), max(next_id, self.next_id)))

    def maximize(self, stats: Stats, rng: torch.Generator) -> Update:
        """Each centroid moves to the mean of its rows; an empty cluster keeps its centroid, so K never changes."""
        stats = cast(KMeansStats, stats)
        count_K1, inertia = stats.count_K[:, None], float(stats.inertia)
        centroid_KD = torch.where(count_K1 > 0, stats.sum_KD / count_K1.clamp_min(_TINY), self.centroid_KD)
        # sum |x - old|^2 = sum |x - mean|^2 + n |old - mean|^2: the inertia after the move, without another pass.
        left = inertia - float((count_K1 * (centroid_KD - self.centroid_KD).square()).sum())
        variance = max(left, 0.0) / max(float(count_K1.sum()) * self.dim, _TINY)
        settled = not self.inertia - inertia > self.config.tolerance * inertia  # also stops on NaN
        model = replace(self, centroid_KD=centroid_KD, variance=variance, inertia=inertia)
        return Update(model, moves=(), objective=-inertia, settled=settled)

    def refined(self, held: Held, stats: Stats, sample_MD: Tensor, rng: torch.Generator) -> Refinement:
        """Centroids of all rows, with the rows at hand where they are nearest; all others stay where they were.

        A cluster that has no row left ends, with an heir; otherwise K stays what it is. Each round moves centroids and
        then rows, and the summed squared distance falls, so it ends.
        The inertia of `stats` is about the centroids of this model, and what comes back about those of the new one. A
        round costs O(N K D). Raises ShoalError where no cluster has rows left.
        """
        model, counts, component_N = self, cast(KMeansStats, stats), held.component_N
        while True:
            model, counts = model._moved(counts, rng)
            nearest_N = squared_distances(held.x_ND, model.centroid_KD).argmin(dim=1)
            own_N, least_N = (model._squared_distance_to(held.x_ND, each_N) for each_N in (component_N, nearest_N))
            moves_N = least_N < own_N * (1 - _TIE)
            if not bool(moves_N.any()):
                return model._living(counts, component_N, self.centroid_KD, rng)
            x_nD, weight_n = held.x_ND[moves_N], held.weight_N[moves_N]
            counts += model.counted(x_nD, nearest_N[moves_N], weight_n)
            counts += model.counted(x_nD, component_N[moves_N], -weight_n)
            component_N = torch.where(moves_N, nearest_N, component_N)

    def assign(self, x_ND: Tensor) -> Assignment:
        """Nearest and second nearest centroid; `score` is the negative squared distance to the nearest.

        k-means is the classification EM of Gaussians with equal weights and one spherical variance (Celeux and Govaert
        1992), so `probability` is that mixture's posterior, softmax(-d^2 / 2 variance), with the variance that
        maximises its likelihood: the inertia per row and dimension.
        """
        check_dim(x_ND, self.dim)
        squared_NK = squared_distances(x_ND, self.centroid_KD)
        least_N1, nearest_N1 = squared_NK.min(dim=1, keepdim=True)
        odds_NK = (
            (least_N1 - squared_NK) / max(2 * self.variance, _TINY)
        ).exp()  # no variance: ties share, others get 0
        component_N = nearest_N1[:, 0]
        second_N = squared_NK.scatter(1, nearest_N1, torch.inf).argmin(dim=1)
        return Assignment(
            cluster_N=self.id_K[component_N],
            component_N=component_N,
            probability_N=odds_NK.sum(dim=1).reciprocal().float(),
            runner_up_N=self.id_K[second_N] if len(self.centroid_KD) > 1 else torch.full_like(component_N, NOISE),
            score_N=-self._squared_distance_to(x_ND, component_N).float(),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Centroids and their ids, and the two numbers that a fit continues from."""
        numbers = torch.tensor([self.variance, self.inertia], dtype=torch.float64)
        names = self.names.tensors(len(self.centroid_KD))
        return {"centroid_KD": self.centroid_KD, "variance_inertia": numbers, **names}

    def kept(self, index_L: Tensor) -> KMeans:
        """The model of these clusters alone. Raises ShoalError where there are none."""
        if len(index_L) == 0:
            raise ShoalError(
                f"0 of {len(self.centroid_KD)} clusters have rows left, and at least 1 is needed to go on from; "
                "fit again with `shoal cluster`."
            )
        names = Names(self.id_K[index_L].cpu(), self.next_id)
        return replace(self, centroid_KD=self.centroid_KD[index_L], names=names)

    def _living(self, counts: KMeansStats, component_N: Tensor, before_KD: Tensor, rng: torch.Generator) -> Refinement:
        """Without clusters that nothing counts in: a centroid may be all that is left of a row that was taken out.

        Fading may have left rows that count for nothing and are not at hand, so each has an heir, which counts them
        from now on: of the centroids left the nearest to `before_KD`, where the rows were given to the cluster.
        """
        ends_K = counts.count_K <= _NO_ROW
        if not bool(ends_K.any()):
            return Refinement(self, counts, component_N)
        model = self.kept(torch.nonzero(~ends_K).flatten())
        place_K = torch.zeros_like(ends_K, dtype=torch.int64)
        place_K[~ends_K] = torch.arange(len(model.centroid_KD), device=place_K.device)
        place_K[ends_K] = squared_distances(before_KD[ends_K], model.centroid_KD).argmin(dim=1)
        count_L = torch.zeros_like(model.centroid_KD[:, 0]).index_add_(0, place_K, counts.count_K)
        sum_LD = torch.zeros_like(model.centroid_KD).index_add_(0, place_K, counts.sum_KD)
        way_K = (self.centroid_KD - model.centroid_KD[place_K]).square().sum(dim=1)  # 0 for those that live
        inertia = counts.inertia + (counts.count_K * way_K).sum()
        model, living = model._moved(KMeansStats(count_L, sum_LD, inertia), rng)
        gone, to = self.id_K[ends_K].tolist(), model.id_K[place_K[ends_K]].tolist()
        return Refinement(model, living, place_K[component_N], heir=dict(zip(gone, to, strict=True)))

    def _moved(self, stats: KMeansStats, rng: torch.Generator) -> tuple[KMeans, KMeansStats]:
        """Centroids at the means of their rows, and the same rows' statistics about them."""
        empty_K = stats.count_K < _EMPTY
        count_K, sum_KD = stats.count_K.masked_fill(empty_K, 0), stats.sum_KD.masked_fill(empty_K[:, None], 0)
        model = cast(KMeans, self.maximize(replace(stats, count_K=count_K, sum_KD=sum_KD), rng).model)
        inertia = model.variance * float(count_K.sum()) * self.dim
        return replace(model, inertia=inertia), KMeansStats(count_K, sum_KD, stats.inertia.new_tensor(inertia))

    def _squared_distance_to(self, x_ND: Tensor, cluster_N: Tensor) -> Tensor:
        return (x_ND.double() - self.centroid_KD[cluster_N]).square().sum(dim=1)


def start(config: KMeansConfig, data: DataSummary) -> KMeans:
    """The best of several k-means runs on the sample; passes over all rows continue from it.

    Raises ShoalError when the sample has fewer rows than clusters are asked for.
    """
    centroid_KD = kmeans_seeds(data.sample_MD, config.clusters, data.seed, config.restarts)
    model = KMeans(config, centroid_KD, variance=0.0, inertia=torch.inf)
    stats = model.expect(data.sample_MD, torch.arange(len(data.sample_MD)))
    return replace(model, variance=float(stats.inertia) / data.sample_MD.numel())


def load(config: KMeansConfig, tensors: dict[str, Tensor]) -> KMeans:
    """The model that `tensors()` described."""
    variance, inertia = tensors["variance_inertia"].tolist()
    return KMeans(config, tensors["centroid_KD"], variance, inertia, Names.from_tensors(tensors))
