"""The clusters of a mixture between two sweeps, and the roster that the next ones are entered in.

Shapes: K clusters, H = 2K subclusters, D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.dpm.prior import NIW
from models.gaussians import Gaussians, factorize
from models.moments import Moments


@dataclass(frozen=True)
class Population:
    """Clusters, their subclusters, and how far the search has come with each."""

    id_K: Tensor  # int64, never reused
    next_id: int
    log_weight_K: Tensor
    clusters: Gaussians
    log_weight_half_H: Tensor
    halves: Gaussians
    age_K: Tensor  # int64, sweeps since the subclusters were cut
    axis_K: Tensor  # int64, the principal axis they were cut along; the number of axes once all were tried
    tried_K: Tensor  # float64, rows in the cluster when they were cut
    objective: float  # log joint of the last partition seen
    best: float  # largest objective so far
    stalled: int  # sweeps since it was reached

    def __getitem__(self, living: Tensor) -> Population:
        """The same population without the clusters that are not in `living`."""
        half = torch.stack([2 * living, 2 * living + 1], dim=1).flatten()
        return Population(
            self.id_K[living], self.next_id, self.log_weight_K[living], self.clusters[living],
            self.log_weight_half_H[half], self.halves[half],
            self.age_K[living], self.axis_K[living], self.tried_K[living], self.objective, self.best, self.stalled,
        )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {
            "id_K": self.id_K,
            "next_id": torch.tensor([self.next_id]),
            "log_weight_K": self.log_weight_K,
            "mean_KD": self.clusters.mean_KD,
            "chol_KDD": self.clusters.chol_KDD.contiguous(),  # LAPACK leaves them column by column
            "log_weight_half_H": self.log_weight_half_H,
            "mean_HD": self.halves.mean_KD,
            "chol_HDD": self.halves.chol_KDD.contiguous(),
            "age_K": self.age_K,
            "axis_K": self.axis_K,
            "tried_K": self.tried_K,
            "objective_best_stalled": torch.tensor([self.objective, self.best, self.stalled], dtype=torch.float64),
        }

    @staticmethod
    def from_tensors(origin_D: Tensor, tensors: dict[str, Tensor]) -> Population:
        """The inverse of `tensors`."""
        objective, best, stalled = tensors["objective_best_stalled"].tolist()
        return Population(
            id_K=tensors["id_K"],
            next_id=int(tensors["next_id"]),
            log_weight_K=tensors["log_weight_K"],
            clusters=Gaussians(origin_D, tensors["mean_KD"], tensors["chol_KDD"]),
            log_weight_half_H=tensors["log_weight_half_H"],
            halves=Gaussians(origin_D, tensors["mean_HD"], tensors["chol_HDD"]),
            age_K=tensors["age_K"],
            axis_K=tensors["axis_K"],
            tried_K=tensors["tried_K"],
            objective=objective,
            best=best,
            stalled=int(stalled),
        )


@dataclass
class Roster:
    """The next population while it is being decided: one entry per cluster, parameters taken together at the end."""

    prior: NIW
    ids: list[int] = field(default_factory=list)
    whole: list[Moments] = field(default_factory=list)
    progress: list[tuple[int, int, float]] = field(default_factory=list)  # age, axis, tried
    halves: list[tuple[Moments, Moments] | None] = field(default_factory=list)  # None: cut along the axis

    def cut(self, identity: int, whole: Moments, axis: int) -> None:
        """Enter a cluster whose subclusters start as its two halves along principal axis `axis`."""
        self._enter(identity, whole, (0, axis, float(whole.count_K[0])), None)

    def join(self, identity: int, parents: Moments) -> None:
        """Enter the union of two clusters, which become its subclusters, or of more, which is cut anew."""
        if len(parents.count_K) > 2:
            self.cut(identity, parents.total(), axis=0)
        else:
            first, second = parents[torch.tensor([0])], parents[torch.tensor([1])]
            union = first + second
            self._enter(identity, union, (0, 0, float(union.count_K[0])), (first, second))

    def go_on(self, identity: int, first: Moments, second: Moments, *, age: int, axis: int, tried: float) -> None:
        """Enter a cluster that keeps its subclusters."""
        self._enter(identity, first + second, (age, axis, tried), (first, second))

    def _enter(
        self,
        identity: int,
        whole: Moments,
        progress: tuple[int, int, float],
        halves: tuple[Moments, Moments] | None,
    ) -> None:
        self.ids.append(identity)
        self.whole.append(whole)
        self.progress.append(progress)
        self.halves.append(halves)

    def population(self, next_id: int, objective: float, best: float, stalled: int) -> Population:
        """Posterior modes of all entries, in one batched factorisation."""
        whole = Moments.cat(self.whole)
        clusters = self.prior.mode(whole)
        age_K, axis_K = (torch.tensor([p[i] for p in self.progress], dtype=torch.int64) for i in (0, 1))
        log_weight_half_H, halves = self._halves(whole, axis_K)
        return Population(
            id_K=torch.tensor(self.ids, dtype=torch.int64),
            next_id=next_id,
            log_weight_K=(whole.count_K / whole.count_K.sum()).log(),
            clusters=clusters,
            log_weight_half_H=log_weight_half_H,
            halves=halves,
            age_K=age_K,
            axis_K=axis_K,
            tried_K=torch.tensor([p[2] for p in self.progress], dtype=torch.float64),
            objective=objective,
            best=best,
            stalled=stalled,
        )

    def _halves(self, whole: Moments, axis_K: Tensor) -> tuple[Tensor, Gaussians]:
        log_weight_K2, halves = _cut_in_two(self.prior, whole, axis_K)
        kept = [k for k, pair in enumerate(self.halves) if pair is not None]
        if kept:
            moments = Moments.cat([half for pair in self.halves if pair is not None for half in pair])
            index = torch.tensor([2 * k + half for k in kept for half in (0, 1)])
            mode = self.prior.mode(moments)
            halves.mean_KD[index], halves.chol_KDD[index] = mode.mean_KD, mode.chol_KDD
            # One row more on each side keeps an empty half's weight finite, so that rows may come back to it.
            count_k2 = moments.count_K.view(-1, 2) + 1
            log_weight_K2[torch.tensor(kept)] = (count_k2 / count_k2.sum(dim=1, keepdim=True)).log()
        return log_weight_K2.flatten(), halves


def newborn(prior: NIW, clusters: Moments) -> Population:
    """Clusters with ids 0, 1, ... and subclusters cut along their first principal axis."""
    roster = Roster(prior)
    for k in range(len(clusters.count_K)):
        roster.cut(k, clusters[torch.tensor([k])], axis=0)
    return roster.population(next_id=len(clusters.count_K), objective=-math.inf, best=-math.inf, stalled=0)


def _cut_in_two(prior: NIW, whole: Moments, axis_K: Tensor) -> tuple[Tensor, Gaussians]:
    """Each cluster's Gaussian cut at its mean across principal axis `axis_K`: the exact moments of the two halves.

    A normal of variance v cut at its mean has halves of mean +-sqrt(2 v / pi) and variance v (1 - 2 / pi).
    """
    cluster = prior.mode(whole)
    covariance_KDD = cluster.chol_KDD @ cluster.chol_KDD.mT
    value_KD, vector_KDD = torch.linalg.eigh(covariance_KDD)  # ascending
    column_K = (prior.dim - 1 - axis_K).clamp_min(0)
    row_K = torch.arange(len(column_K))
    variance_K, axis_KD = value_KD[row_K, column_K].clamp_min(0), vector_KDD[row_K, :, column_K]
    # The sign of an eigenvector is arbitrary; fixed, so that a fit does not depend on the linear algebra library.
    lead_K = axis_KD[row_K, axis_KD.abs().argmax(dim=1)]
    step_KD = axis_KD * lead_K.sign()[:, None] * (2 * variance_K / math.pi).sqrt()[:, None]
    halved_KDD = covariance_KDD - step_KD[:, :, None] * step_KD[:, None, :]
    mean_HD = torch.stack([cluster.mean_KD - step_KD, cluster.mean_KD + step_KD], dim=1).flatten(0, 1)
    chol_HDD = factorize(halved_KDD).repeat_interleave(2, dim=0)
    log_half_K2 = torch.full((len(axis_K), 2), math.log(0.5), dtype=torch.float64)
    return log_half_K2, Gaussians(prior.mean_D, mean_HD, chol_HDD)
