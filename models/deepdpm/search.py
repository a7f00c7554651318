"""What DeepDPM remembers between epochs beside its networks.

Shapes: K clusters, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.deepdpm.mixture import Mixture
from models.dpm.prior import NIW

_COUNTERS = ("next_id", "steps", "updated", "updates", "played", "frozen", "stalled")


@dataclass(frozen=True)
class Search:
    """The mixture, the means of its halves, and how far the search has come."""

    prior: NIW
    mixture: Mixture
    half_K2D: Tensor  # float64, about the prior's mean
    axis_K: Tensor  # int64, the principal axis that the halves were cut along; the number of axes once all were tried
    tried_K: Tensor  # float64, rows when the first axis was tried
    next_id: int
    steps: int = 0  # taken so far
    updated: int = 0  # step of the last M-step
    updates: int = 0  # M-steps since the last round
    played: int = 0  # step of the last round of moves
    frozen: int = 0  # step until which the mixture stays as it is
    stalled: int = 0  # rounds since `best`
    seen: float = math.nan  # log joint of the last partition seen
    objective: float = -math.inf  # the same at the last round
    best: float = -math.inf

    def __getitem__(self, living: Tensor) -> Search:
        """The same search without the clusters that are not in `living`."""
        return replace(
            self,
            mixture=self.mixture[living],
            half_K2D=self.half_K2D[living],
            axis_K=self.axis_K[living],
            tried_K=self.tried_K[living],
        )

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {
            **prefixed("prior.", self.prior.tensors()),
            **prefixed("mixture.", self.mixture.tensors()),
            "half_K2D": self.half_K2D.contiguous(),
            "axis_K": self.axis_K,
            "tried_K": self.tried_K,
            "counters": torch.tensor([getattr(self, name) for name in _COUNTERS]),
            "objectives": torch.tensor([self.seen, self.objective, self.best], dtype=torch.float64),
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Search:
        """The inverse of `tensors`."""
        tensors = {name: value.cpu() for name, value in tensors.items()}
        seen, objective, best = tensors["objectives"].tolist()
        prior = NIW.from_tensors(part("prior.", tensors))
        return Search(
            prior=prior,
            mixture=Mixture.from_tensors(prior.mean_D, part("mixture.", tensors)),
            half_K2D=tensors["half_K2D"],
            axis_K=tensors["axis_K"],
            tried_K=tensors["tried_K"],
            **dict(zip(_COUNTERS, tensors["counters"].tolist(), strict=True)),
            seen=seen,
            objective=objective,
            best=best,
        )


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under longer names."""
    return {f"{prefix}{name}": value for name, value in tensors.items()}


def part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
