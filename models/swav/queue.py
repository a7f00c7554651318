"""Embeddings of past batches, which take part in the codes of small ones.

Shapes: A assigning views, M rows in the queue, B rows of a part, T rows of a batch, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from models.objective import Batch, Reduce


@dataclass(frozen=True)
class Queue:
    """The newest rows first, in the order that batches have without workers; every worker holds all of it."""

    row_AMD: Tensor
    filled: int

    @property
    def share(self) -> float:
        """How much of it is filled; 1 where it has no rows."""
        return self.filled / self.row_AMD.shape[1] if self.row_AMD.shape[1] else 1.0

    def part(self, batch: Batch) -> Tensor:
        """The rows (A, m, D) that go with this part of a batch: over all parts, each row once."""
        rows, end = self.row_AMD.shape[1], batch.begin + len(batch.row_B)
        return self.row_AMD[:, rows * batch.begin // batch.total : rows * end // batch.total]

    def pushed(self, unit_ATD: Tensor) -> Queue:
        """With a batch in front; what does not fit any more is forgotten."""
        rows = self.row_AMD.shape[1]
        row_AMD = torch.cat([unit_ATD, self.row_AMD.to(unit_ATD)], dim=1)[:, :rows].contiguous()
        return Queue(row_AMD, min(rows, self.filled + unit_ATD.shape[1]))

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {"row_AMD": self.row_AMD.cpu(), "filled": torch.tensor(self.filled)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Queue:
        """The inverse of `tensors`."""
        return cls(tensors["row_AMD"], int(tensors["filled"]))


def empty_queue(assigning: int, rows: int, dim: int) -> Queue:
    """To be filled."""
    return Queue(torch.zeros(assigning, rows, dim), 0)


@dataclass(frozen=True)
class Waiting:
    """Embeddings of a part of a batch, until it is known that the step was made."""

    unit_ABD: Tensor
    begin: int
    total: int

    def whole(self) -> Tensor:
        """(A, T, D), zeros but for this part: summed over workers, the batch."""
        views, rows, dim = self.unit_ABD.shape
        unit_ATD = self.unit_ABD.new_zeros(views, self.total, dim)
        unit_ATD[:, self.begin : self.begin + rows] = self.unit_ABD
        return unit_ATD


def push_all(queue: Queue, waiting: list[Waiting], reduce: Reduce) -> Queue:
    """The queue after these batches, of which every worker gives its parts: one sum of all of them."""
    for unit_ATD in reduce.sum(*(each.whole() for each in waiting)):
        queue = queue.pushed(unit_ATD)
    return queue
