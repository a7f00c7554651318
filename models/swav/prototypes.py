"""Prototypes as a Clusterer of backbone features: a projection head, and directions on the sphere behind it.

Shapes: N rows, F features, D dimensions behind the head, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from models.clusterer import Assignment, Stats, Update, check_dim
from models.posterior import most_probable, posterior_assignment
from models.single import AS_NUMBERED, Names
from models.swav.config import PrototypesConfig
from models.swav.network import project


@dataclass(frozen=True)
class PrototypeStats:
    """What a pass over rows leaves behind; adds over rows."""

    count_K: Tensor  # float64
    sum_KD: Tensor  # float64, of unit vectors
    cosine: Tensor  # float64, (): sum of cosines to the nearest prototype

    def __add__(self, other: PrototypeStats) -> PrototypeStats:
        return PrototypeStats(self.count_K + other.count_K, self.sum_KD + other.sum_KD, self.cosine + other.cosine)

    def tensors(self) -> dict[str, Tensor]:
        """The summands by name."""
        return {"count_K": self.count_K, "sum_KD": self.sum_KD, "cosine": self.cosine}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> PrototypeStats:
        """The inverse of `tensors`."""
        return PrototypeStats(tensors["count_K"], tensors["sum_KD"], tensors["cosine"])


@dataclass(frozen=True)
class Prototypes:
    """The nearest prototype by cosine, behind the head in evaluation mode.

    `expect` and `maximize` are spherical k-means (Dhillon and Modha 2001) with the head as it is, so that prototypes
    can follow rows that came later. In float64, so that labels do not depend on how rows are cut into blocks.
    O(N (F H + H D + D K)) for H hidden units.
    """

    config: PrototypesConfig
    head: Mapping[str, Tensor]  # as `models.swav.network.make_head` names them
    prototype_KD: Tensor  # float64, of length 1
    cosine: float = -math.inf  # sum over rows in the pass before
    names: Names = AS_NUMBERED

    @property
    def id_K(self) -> Tensor:
        """0 to K - 1, until renamed."""
        return self.names.ids(len(self.prototype_KD), self.prototype_KD.device)

    @property
    def component_K(self) -> Tensor:
        """A cluster is one component of the same id."""
        return self.id_K

    @property
    def next_id(self) -> int:
        """K, until renamed."""
        return self.names.next_id(len(self.prototype_KD))

    @property
    def hard(self) -> bool:
        """Each row counts at its nearest prototype."""
        return True

    @property
    def retained(self) -> tuple[str, ...]:
        """Nothing."""
        return ()

    @property
    def dim(self) -> int:
        """F: of the rows that it takes."""
        return self.head["0.weight"].shape[1]

    def expect(self, x_ND: Tensor, row_N: Tensor) -> PrototypeStats:
        """Counts and sums of unit vectors by nearest prototype. Deterministic: `row_N` is not needed."""
        check_dim(x_ND, self.dim)
        unit_ND = project(self.head, x_ND)
        cosine_NK = unit_ND @ self.prototype_KD.to(x_ND.device).T
        return self._sums(unit_ND, most_probable(cosine_NK / self.config.temperature), None)

    def counted(self, x_ND: Tensor, component_N: Tensor, weight_N: Tensor | None = None) -> PrototypeStats:
        """Counts and sums of the rows at these prototypes, nearest or not."""
        check_dim(x_ND, self.dim)
        return self._sums(project(self.head, x_ND), component_N, weight_N)

    def renamed(self, cluster_K: Tensor, next_id: int) -> Prototypes:
        """The same prototypes under other ids, all different."""
        return replace(self, names=Names(cluster_K.cpu(), max(next_id, self.next_id)))

    def maximize(self, stats: Stats, rng: torch.Generator) -> Update:
        """Each prototype turns to the mean direction of its rows; one without rows stays, so K never changes."""
        stats = cast(PrototypeStats, stats)
        length_K1 = torch.linalg.vector_norm(stats.sum_KD, dim=1, keepdim=True)
        turned_KD = torch.where(
            length_K1 > 0, functional.normalize(stats.sum_KD), self.prototype_KD.to(length_K1.device)
        )
        cosine = float(stats.cosine)
        settled = not cosine - self.cosine > self.config.tolerance * float(stats.count_K.sum())  # also stops on NaN
        return Update(replace(self, prototype_KD=turned_KD, cosine=cosine), (), cosine, settled)

    def assign(self, x_ND: Tensor) -> Assignment:
        """Nearest and second nearest prototype; `score` is the cosine.

        `probability` is the softmax that the head was trained with: cosines over the temperature.
        """
        check_dim(x_ND, self.dim)
        cosine_NK = project(self.head, x_ND) @ self.prototype_KD.to(x_ND.device).T
        equal_K, id_K = cosine_NK.new_zeros(cosine_NK.shape[1]), self.id_K.to(x_ND.device)
        found = posterior_assignment(cosine_NK / self.config.temperature, None, equal_K, id_K)
        return replace(found, score_N=found.score_N * self.config.temperature)

    def tensors(self) -> dict[str, Tensor]:
        """Head, prototypes and their ids, and the number that a fit continues from."""
        head = {f"head.{name}": value for name, value in self.head.items()}
        return {
            **head,
            "prototype_KD": self.prototype_KD,
            "cosine": torch.tensor(self.cosine, dtype=torch.float64),
            **self.names.tensors(len(self.prototype_KD)),
        }

    def _sums(self, unit_ND: Tensor, component_N: Tensor, weight_N: Tensor | None) -> PrototypeStats:
        prototype_KD = self.prototype_KD.to(unit_ND.device)
        weight_N = torch.ones_like(unit_ND[:, 0]) if weight_N is None else weight_N.double()
        count_K = torch.zeros_like(prototype_KD[:, 0]).index_add_(0, component_N, weight_N)
        sum_KD = torch.zeros_like(prototype_KD).index_add_(0, component_N, unit_ND * weight_N[:, None])
        cosine_N = (unit_ND * prototype_KD[component_N]).sum(dim=1)
        return PrototypeStats(count_K, sum_KD, (cosine_N * weight_N).sum())


def load(config: PrototypesConfig, tensors: dict[str, Tensor]) -> Prototypes:
    """The model that `tensors()` described."""
    head = {name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")}
    names = Names.from_tensors(tensors)
    return Prototypes(config, head, tensors["prototype_KD"], float(tensors["cosine"]), names)
