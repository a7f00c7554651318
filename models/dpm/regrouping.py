"""On what terms groups of components may be joined, and who was in which cluster before.

A clustering that goes on keeps its clusters, so joining has hysteresis: groups of one old cluster are judged by half
the strictness, groups of different old clusters by twice, and groups of newborn components as if there had been no
clusters. Which old clusters belong together is decided before the newborn are looked at, so one that lies between two
joins the nearer and is no bridge. Components that stay are one group from the start, and no two such groups are joined.

Shapes: K components.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.clusterer import NOISE

_KEEP = 2.0  # how much easier it is to stay together than to come together, and that than to give up a cluster


@dataclass(frozen=True)
class Holds:
    """The cluster that each component was in, and whether it may be grouped anew."""

    hold_K: Tensor  # int64, NOISE (-1) for the newborn
    free_K: Tensor  # bool

    @staticmethod
    def none(count: int) -> Holds:
        """All newborn."""
        hold_K = torch.full((count,), NOISE)
        return Holds(hold_K, hold_K == NOISE)

    def named(self, together_K: Tensor) -> Tensor:
        """Smallest component of each hold among those that are together, every other by itself, (K,)."""
        name, first = list(range(len(self.hold_K))), dict[int, int]()
        for k in torch.nonzero(together_K & (self.hold_K != NOISE)).flatten().tolist():
            name[k] = first.setdefault(int(self.hold_K[k]), k)
        return torch.tensor(name, dtype=torch.int64)

    def to(self, device: torch.device | str) -> Holds:
        """The same on another device."""
        return Holds(self.hold_K.to(device), self.free_K.to(device))


@dataclass
class Groups:
    """Components by groups; a group goes by its smallest component, and the lists are indexed by it."""

    name_K: Tensor  # int64, the group of each component
    weight: list[float]
    size: list[int]  # components
    holds: list[frozenset[int]]  # clusters that its components were in
    stays: list[bool]  # whether some of its components do: two such groups are never joined
    settled: bool = False  # whether groups without a hold in common have been decided on

    @staticmethod
    def of(weight_K: Tensor, holds: Holds) -> Groups:
        """Components that stay by their holds, every other by itself."""
        name_K = holds.named(~holds.free_K)
        weight = torch.zeros_like(weight_K).index_add_(0, name_K, weight_K).tolist()
        size = torch.bincount(name_K, minlength=len(name_K)).tolist()
        old = [frozenset({hold} if hold != NOISE else ()) for hold in holds.hold_K.tolist()]
        return Groups(name_K, weight, size, old, (~holds.free_K).tolist())

    def old(self, i: int, j: int) -> bool:
        """Whether both are, at least in part."""
        return bool(self.holds[i] and self.holds[j])

    def factor(self, i: int, j: int) -> float:
        """How much stricter than plain a pair is judged; infinite where it is not to be joined."""
        if self.stays[i] and self.stays[j]:
            return math.inf
        if not self.old(i, j):
            return 1.0
        if self.holds[i] & self.holds[j]:
            return 1 / _KEEP
        return math.inf if self.settled else _KEEP

    def join(self, i: int, j: int) -> None:
        """Make group j part of group i."""
        self.name_K[self.name_K == j] = i
        self.weight[i] += self.weight[j]
        self.size[i] += self.size[j]
        self.holds[i] |= self.holds[j]
        self.stays[i] |= self.stays[j]
