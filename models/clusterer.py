"""Contract A: what can be fitted from statistics that add over rows.

Shapes: N rows, D dimensions, K components (a cluster may own several components).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from models.errors import ShoalError

NOISE = -1  # the cluster of a row that belongs to none


@dataclass(frozen=True)
class Assignment:
    """What a fitted model says of each row."""

    cluster_N: Tensor  # int64, stable cluster id, NOISE for none
    component_N: Tensor  # int64, index of the component in the model
    probability_N: Tensor  # float32, posterior probability of `cluster_N`
    runner_up_N: Tensor  # int64, the next most probable cluster, NOISE where there is none
    score_N: Tensor  # float32, log density or negative squared distance: larger is more typical


@dataclass(frozen=True)
class Move:
    """One proposal to change the number of clusters, and what became of it."""

    kind: Literal["split", "merge", "birth", "death"]
    clusters: tuple[int, ...]  # ids: the cluster first, then what it becomes or joins
    log_ratio: float  # log Hastings ratio; nan where the move has none
    accepted: bool
    why: str


@runtime_checkable
class Stats(Protocol):
    """Sufficient statistics. `a + b` equals one pass over both sets of rows; size independent of N."""

    def __add__(self, other: Self) -> Self: ...

    def tensors(self) -> dict[str, Tensor]:
        """The summands by name, for safetensors and for sums over workers."""
        ...

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """Statistics of the same kind with these summands: the way back from `tensors`."""
        ...


@dataclass(frozen=True)
class Update:
    """What `maximize` returns: the next model, why it differs, and whether another pass can improve it."""

    model: Clusterer
    moves: tuple[Move, ...]
    objective: float  # larger is better, of the model that `expect` was called on
    settled: bool


@runtime_checkable
class Clusterer(Protocol):
    """A frozen value: parameters in, new parameters out. No method changes it."""

    @property
    def id_K(self) -> Tensor:
        """Stable cluster id of each component, int64."""
        ...

    @property
    def component_K(self) -> Tensor:
        """Stable id of each component, int64: names it in every generation, whatever its index."""
        ...

    @property
    def next_id(self) -> int:
        """Above every id that this model or those before it gave to a component or a cluster."""
        ...

    @property
    def hard(self) -> bool:
        """Whether the statistics count each row in one component, so that a single row can be moved or taken out."""
        ...

    @property
    def retained(self) -> tuple[str, ...]:
        """Names in `tensors` of sampled rows, which are remembered elsewhere; `load` does without them."""
        ...

    @property
    def dim(self) -> int:
        """D of the rows it takes."""
        ...

    def counted(self, x_ND: Tensor, component_N: Tensor, weight_N: Tensor | None = None) -> Stats:
        """Statistics of rows in the components given by index, each row `weight_N` (float64) times or once.

        Equals `expect` where those are the components that it finds. Raises ShoalError where rows are shared.
        """
        ...

    def renamed(self, cluster_K: Tensor, next_id: int) -> Self:
        """The same model with other cluster ids: component k belongs to cluster `cluster_K[k]`."""
        ...

    def expect(self, x_ND: Tensor, row_N: Tensor) -> Stats:
        """Statistics of one block of rows; any randomness is keyed by `row_N` (int64), never by block."""
        ...

    def maximize(self, stats: Stats, rng: torch.Generator) -> Update:
        """The next model, from the statistics of all rows."""
        ...

    def assign(self, x_ND: Tensor) -> Assignment:
        """What the model says of each row. Raises ShoalError when `x_ND` has another dimension."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that `load` needs beside the config, for safetensors."""
        ...


@dataclass(frozen=True)
class DataSummary:
    """What an algorithm may know of the data before its first pass; independent of order and partition of rows."""

    rows: int
    mean_D: Tensor  # float64
    covariance_DD: Tensor  # float64, biased (divided by rows)
    sample_MD: Tensor  # float32, a uniform sample of rows: those with the smallest row hash
    seed: int

    @property
    def dim(self) -> int:
        """D."""
        return int(self.mean_D.shape[0])

    def to(self, device: torch.device | str) -> DataSummary:
        """The same on another device."""
        mean_D, covariance_DD, sample_MD = (x.to(device) for x in (self.mean_D, self.covariance_DD, self.sample_MD))
        return DataSummary(self.rows, mean_D, covariance_DD, sample_MD, self.seed)

    @property
    def variance(self) -> float:
        """Mean variance per dimension."""
        return float(self.covariance_DD.diagonal().mean())


def check_dim(x_ND: Tensor, dim: int) -> None:
    """Raise ShoalError unless `x_ND` has `dim` columns."""
    if x_ND.ndim != 2 or x_ND.shape[1] != dim:
        raise ShoalError(
            f"Embeddings are {x_ND.shape[-1]}-d but the clusterer was fitted on {dim}-d; "
            "re-extract with the backbone it was fitted on, or fit again."
        )
