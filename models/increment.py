"""Learning goes on where a fit ended: rows that came or went later, and a model that changes no more than it must.

Statistics add over rows, so what is known of all rows is old statistics, perhaps faded, plus those of new rows; rows
that are not at hand keep the responsibilities they were last given. Source: Neal and Hinton (1998), A view of the EM
algorithm that justifies incremental, sparse, and other variants.

Shapes: N rows at hand, D dimensions, M sampled rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from models.clusterer import Clusterer, Move, Stats


@dataclass(frozen=True)
class Held:
    """Rows at hand during a refinement, and how the statistics count each of them."""

    x_ND: Tensor  # float32
    row_N: Tensor  # int64, stable hashes
    component_N: Tensor  # int64, index of the component that the row is counted in
    weight_N: Tensor  # float64, how much it counts there
    new_N: Tensor  # bool, whether it arrived since the model was made

    def __len__(self) -> int:
        return len(self.x_ND)

    def __getitem__(self, index: Tensor) -> Held:
        parts = (self.x_ND, self.row_N, self.component_N, self.weight_N, self.new_N)
        return Held(*(part[index] for part in parts))


@dataclass(frozen=True)
class Refinement:
    """What became of a model, and of every row, at hand or not."""

    model: Clusterer
    stats: Stats  # of all rows, as they are counted now
    component_N: Tensor  # int64, of the rows at hand: index in the new model
    moves: tuple[Move, ...] = ()
    heir: Mapping[int, int] = field(default_factory=dict)  # component that is gone -> where its other rows count now
    unsettled: tuple[int, ...] = ()  # components of the new model whose other rows should be read and labelled anew


@runtime_checkable
class Refinable(Clusterer, Protocol):
    """A Clusterer that can be refined in place of a new fit."""

    def refined(self, held: Held, stats: Stats, sample_MD: Tensor, rng: torch.Generator) -> Refinement:
        """The model after the rows at hand have settled and what they call for was born, split, merged or ended.

        `stats` are those of all rows, those at hand included; `sample_MD` is a uniform sample of all rows.
        """
        ...


def folded(old: Stats, decay: float, new: Stats) -> Stats:
    """`decay` times the old statistics plus the new ones."""
    return scaled(old, decay) + new


def scaled(stats: Stats, weight: float) -> Stats:
    """Statistics of rows that each count `weight` times; minus 1 is for taking rows out."""
    if weight == 1.0:
        return stats
    return stats.with_tensors({name: weight * value for name, value in stats.tensors().items()})


def total(parts: list[Stats]) -> Stats:
    """The sum of at least one."""
    whole = parts[0]
    for part in parts[1:]:
        whole = whole + part
    return whole
