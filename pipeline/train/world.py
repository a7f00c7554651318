"""The first seam: what the workers of a fit say to each other. One process alone, or a process group of torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from models.clusterer import Stats

S = TypeVar("S", bound=Stats)

_CHUNK_BYTES = 16 << 20  # what one call sums: statistics may take 500 MB, and must not need as much again


class World(Protocol):
    """All workers of a fit, seen from one of them. Every worker calls these methods alike, in the same order."""

    @property
    def rank(self) -> int:
        """This worker, from 0; worker 0 speaks for all."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    @property
    def leads_machine(self) -> bool:
        """Whether this is the first worker of its machine."""
        ...

    @property
    def device(self) -> torch.device:
        """Where this worker computes."""
        ...

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Sums over workers, equal to the last bit on all of them; the summands stay as they are."""
        ...

    def max(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Element-wise maxima over workers; the tensors stay as they are."""
        ...

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """As `sum`, into the summands themselves, which are contiguous: memory beside them is one chunk."""
        ...

    def share(self, payload: bytes) -> bytes:
        """What worker 0 gave."""
        ...

    def barrier(self) -> None:
        """Wait for all."""
        ...


@dataclass(frozen=True)
class Alone:
    """The only worker."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1
    leads_machine: bool = True

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The summands themselves."""
        return tensors

    def max(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors themselves."""
        return tensors

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Nothing to add."""

    def share(self, payload: bytes) -> bytes:
        """The same."""
        return payload

    def barrier(self) -> None:
        """Nobody to wait for."""


@dataclass(frozen=True)
class Group:
    """A worker of torch's default process group: gloo between CPUs, NCCL between GPUs."""

    device: torch.device
    leads_machine: bool

    @property
    def rank(self) -> int:
        """As the process group counts."""
        return dist.get_rank()

    @property
    def size(self) -> int:
        """Of the process group."""
        return dist.get_world_size()

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """All-reduced copies."""
        copies = _copies(tensors)
        self.sum_in_place(copies)
        return copies

    def max(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """All-reduced copies."""
        copies = _copies(tensors)
        self._reduce(copies, dist.ReduceOp.MAX)
        return copies

    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """All-reduce; small tensors of one type travel together, large ones in chunks."""
        self._reduce(tensors, dist.ReduceOp.SUM)

    def _reduce(self, tensors: Sequence[Tensor], how: dist.ReduceOp.RedOpType) -> None:
        for pieces in _chunks(tensors):
            buffer = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            moved = buffer.to(self.device)  # NCCL sums nothing that is not on a GPU
            dist.all_reduce(moved, how)
            if moved is not pieces[0]:
                for piece, total in zip(pieces, moved.split([len(piece) for piece in pieces]), strict=True):
                    piece.copy_(total)

    def share(self, payload: bytes) -> bytes:
        """Broadcast from worker 0; twice the payload in memory."""
        size = torch.tensor([len(payload)], device=self.device)
        dist.broadcast(size, 0)
        buffer = torch.empty(int(size), dtype=torch.uint8, device=self.device)
        if self.rank == 0 and payload:
            buffer.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        dist.broadcast(buffer, 0)
        return payload if self.rank == 0 else buffer.cpu().numpy().tobytes()

    def barrier(self) -> None:
        """Of the process group."""
        dist.barrier()


def sum_stats(stats: S, world: World) -> S:
    """The statistics of all workers' rows; `stats` must not be used again, its memory holds the result."""
    if world.size == 1:
        return stats
    # A summand may be a view of another shape or shared: what is summed in place has to be contiguous.
    tensors = {name: tensor.contiguous() for name, tensor in stats.tensors().items()}
    world.sum_in_place(list(tensors.values()))
    return stats.with_tensors(tensors)


def _copies(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors)


def _chunks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Flat pieces that are summed by one call: of one type and device, together no more than a chunk."""
    waiting: list[Tensor] = []
    room = 0
    for tensor in tensors:
        for piece in tensor.view(-1).split(max(1, _CHUNK_BYTES // tensor.element_size())):
            alike = bool(waiting) and (piece.dtype, piece.device) == (waiting[0].dtype, waiting[0].device)
            if waiting and not (alike and piece.nbytes <= room):
                yield waiting
                waiting, room = [], _CHUNK_BYTES
            room = (room if waiting else _CHUNK_BYTES) - piece.nbytes
            waiting.append(piece)
    if waiting:
        yield waiting
