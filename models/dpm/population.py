"""The clusters of a mixture between two sweeps, and the roster that the next ones are entered in.

Shapes: K clusters, J of them with a split on trial, H = 2J subclusters, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import triangles
from models.dpm.config import DPMConfig
from models.dpm.prior import Diagonal, Prior, load_prior
from models.dpm.students import IndependentStudents
from models.gaussians import Gaussians, deviations, factorize, principal_axes
from models.moments import Moments

_DOUBLE = 2**10  # K D^2 up to which float64 costs nothing that matters


@dataclass(frozen=True)
class Progress:
    """How far the search has come."""

    objective: float = -math.inf  # log joint of the last partition seen
    best: float = -math.inf  # largest objective so far under this prior
    stalled: int = 0  # sweeps since it was reached
    fitted: int = 0  # clusters when the prior was last fitted
    branched: bool = False  # branch merges were tried since the last move

    def tensor(self) -> Tensor:
        """For safetensors."""
        return torch.tensor([self.objective, self.best, self.stalled, self.fitted, self.branched], dtype=torch.float64)

    @staticmethod
    def from_tensor(values: Tensor) -> Progress:
        """The inverse of `tensor`."""
        objective, best, stalled, fitted, branched = values.tolist()
        return Progress(objective, best, int(stalled), int(fitted), bool(branched))


@dataclass(frozen=True)
class Population:
    """Clusters, the subclusters of those whose split is on trial, and what is known of each."""

    prior: Prior
    concentration: float
    id_K: Tensor  # int64, never reused
    next_id: int
    log_weight_K: Tensor
    clusters: Gaussians
    trial_J: Tensor  # int64, ascending: indices of the clusters on trial
    age_J: Tensor  # int64, sweeps since their subclusters were cut
    log_weight_half_H: Tensor
    halves: Gaussians
    axis_K: Tensor  # int64, the principal axis to be cut next; the number of axes once all were tried
    tried_K: Tensor  # float64, rows in the cluster when it was first cut
    progress: Progress

    def __len__(self) -> int:
        return len(self.id_K)

    @property
    def single(self) -> bool:
        """Whether rows are evaluated in float32, and factors of covariances have no more digits than that."""
        return _single(len(self), self.prior)

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {
            **{f"prior.{name}": value for name, value in self.prior.tensors().items()},
            "concentration": torch.tensor([self.concentration], dtype=torch.float64),
            "id_K": self.id_K,
            "next_id": torch.tensor([self.next_id]),
            "log_weight_K": self.log_weight_K,
            **_gaussian_tensors("cluster", self.clusters),
            "trial_J": self.trial_J,
            "age_J": self.age_J,
            "log_weight_half_H": self.log_weight_half_H,
            **_gaussian_tensors("half", self.halves),
            "axis_K": self.axis_K,
            "tried_K": self.tried_K,
            "progress": self.progress.tensor(),
        }

    @staticmethod
    def from_tensors(config: DPMConfig, tensors: Mapping[str, Tensor]) -> Population:
        """The inverse of `tensors`."""
        named = {name.removeprefix("prior."): value for name, value in tensors.items() if name.startswith("prior.")}
        prior = load_prior(config.covariance, named)
        return Population(
            prior=prior,
            concentration=float(tensors["concentration"]),
            id_K=tensors["id_K"],
            next_id=int(tensors["next_id"]),
            log_weight_K=tensors["log_weight_K"],
            clusters=_gaussians("cluster", prior, tensors),
            trial_J=tensors["trial_J"],
            age_J=tensors["age_J"],
            log_weight_half_H=tensors["log_weight_half_H"],
            halves=_gaussians("half", prior, tensors),
            axis_K=tensors["axis_K"],
            tried_K=tensors["tried_K"],
            progress=Progress.from_tensor(tensors["progress"]),
        )


@dataclass(frozen=True)
class Entry:
    """One cluster of the next population. `halves` are its subclusters' Moments, or None: cut along `axis`."""

    identity: int
    whole: Moments
    axis: int = 0
    tried: float = 0.0
    trial: bool = False
    age: int = 0
    halves: Moments | None = None


@dataclass
class Roster:
    """The next population while it is being decided: one entry per cluster, parameters taken together at the end."""

    config: DPMConfig
    prior: Prior
    concentration: float
    entries: list[Entry] = field(default_factory=list)

    def enter(self, identity: int, whole: Moments) -> None:
        """A cluster that has never been cut: new, or no longer what it was."""
        self.entries.append(Entry(identity, whole, tried=float(whole.count_K[0])))

    def population(self, next_id: int, progress: Progress) -> Population:
        """Parameters of all entries, in one batched factorisation."""
        whole = Moments.cat([entry.whole for entry in self.entries])
        trial_J = torch.tensor([k for k, entry in enumerate(self.entries) if entry.trial], dtype=torch.int64)
        log_weight_half_H, halves = self._halves(whole[trial_J], [self.entries[k] for k in trial_J.tolist()])
        clusters = density(self.config, self.prior, whole)
        if _single(len(whole), self.prior):
            clusters, halves = clusters.rounded(), halves.rounded()
        return Population(
            prior=self.prior,
            concentration=self.concentration,
            id_K=torch.tensor([entry.identity for entry in self.entries], dtype=torch.int64),
            next_id=next_id,
            log_weight_K=(whole.count_K / whole.count_K.sum()).log(),
            clusters=clusters,
            trial_J=trial_J,
            age_J=torch.tensor([self.entries[k].age for k in trial_J.tolist()], dtype=torch.int64),
            log_weight_half_H=log_weight_half_H,
            halves=halves,
            axis_K=torch.tensor([entry.axis for entry in self.entries], dtype=torch.int64),
            tried_K=torch.tensor([entry.tried for entry in self.entries], dtype=torch.float64),
            progress=progress,
        )

    def _halves(self, whole_J: Moments, entries: list[Entry]) -> tuple[Tensor, Gaussians]:
        axis_J = torch.tensor([entry.axis for entry in entries], dtype=torch.int64)
        log_weight_J2, halves = cut_in_two(self.prior, whole_J, axis_J)
        kept = [j for j, entry in enumerate(entries) if entry.halves is not None]
        if not kept:
            return log_weight_J2.flatten(), halves
        moments = Moments.cat([entry.halves for entry in entries if entry.halves is not None])
        index = torch.tensor([2 * j + half for j in kept for half in (0, 1)])
        mode = self.prior.mode(moments)
        halves.mean_KD[index], halves.chol_KDD[index] = mode.mean_KD, mode.chol_KDD
        # One row more on each side keeps an empty half's weight finite, so that rows may come back to it.
        count_k2 = moments.count_K.view(-1, 2) + 1
        log_weight_J2[torch.tensor(kept)] = (count_k2 / count_k2.sum(dim=1, keepdim=True)).log()
        return log_weight_J2.flatten(), halves


def density(config: DPMConfig, prior: Prior, moments: Moments) -> Gaussians:
    """What rows are evaluated under, given each set."""
    return prior.predictive(moments) if config.assignment == "predictive" else prior.mode(moments)


def cut_in_two(prior: Prior, whole: Moments, axis_K: Tensor) -> tuple[Tensor, Gaussians]:
    """Each cluster's Gaussian cut at its mean across principal axis `axis_K`: the exact moments of the two halves.

    A normal of variance v cut at its mean has halves of mean +-sqrt(2 v / pi) and variance v (1 - 2 / pi).
    """
    cluster = prior.mode(whole)
    covariance_KDD = cluster.covariance_KDD
    variance_K, axis_KD = principal_axes(covariance_KDD, axis_K)
    step_KD = axis_KD * (2 * variance_K / math.pi).sqrt()[:, None]
    halved_KDD = covariance_KDD - step_KD[:, :, None] * step_KD[:, None, :]
    mean_HD = torch.stack([cluster.mean_KD - step_KD, cluster.mean_KD + step_KD], dim=1).flatten(0, 1)
    chol_KDD = deviations(halved_KDD.diagonal(dim1=1, dim2=2)) if prior.diagonal else factorize(halved_KDD)
    log_half_K2 = torch.full((len(axis_K), 2), math.log(0.5), dtype=torch.float64)
    return log_half_K2, Gaussians(prior.mean_D, mean_HD, chol_KDD.repeat_interleave(2, dim=0))


def newborn(config: DPMConfig, prior: Prior, clusters: Moments) -> Population:
    """Clusters with ids 0, 1, ..., none of them tried."""
    roster = Roster(config, prior, config.concentration)
    for k in range(len(clusters)):
        roster.enter(k, clusters.one(k))
    return roster.population(len(clusters), Progress())


def _single(count: int, prior: Prior) -> bool:
    return count * prior.dim**2 > _DOUBLE


def _gaussian_tensors(name: str, gaussians: Gaussians) -> dict[str, Tensor]:
    tensors = {f"{name}.mean_KD": gaussians.mean_KD.contiguous()}
    if gaussians.diagonal:
        tensors[f"{name}.chol_KDD"] = gaussians.chol_KDD.contiguous()
    else:
        triangle_KT = triangles.packed(gaussians.chol_KDD)
        single_KT = triangle_KT.float()
        tensors[f"{name}.chol_KT"] = single_KT if torch.equal(single_KT.double(), triangle_KT) else triangle_KT
    return tensors if gaussians.degrees_K is None else tensors | {f"{name}.degrees_K": gaussians.degrees_K}


def _gaussians(name: str, prior: Prior, tensors: Mapping[str, Tensor]) -> Gaussians:
    """From triangles, diagonals, or the square factors that earlier versions wrote."""
    triangle_KT, degrees_K = tensors.get(f"{name}.chol_KT"), tensors.get(f"{name}.degrees_K")
    chol_KDD = tensors[f"{name}.chol_KDD"] if triangle_KT is None else triangles.unpacked(triangle_KT.double())
    kind = IndependentStudents if isinstance(prior, Diagonal) and degrees_K is not None else Gaussians
    return kind(prior.mean_D, tensors[f"{name}.mean_KD"], chol_KDD, degrees_K)
