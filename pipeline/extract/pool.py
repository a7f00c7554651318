"""How many workers a cluster has room for, and what each of them may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import ShoalError


@dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    cpus: int
    gpus: float

    def room(self, cpus: int, gpus: float) -> int:
        """Workers of that size that fit; a fraction of a GPU never spans two."""
        by_cpu = self.cpus // cpus
        if gpus == 0:
            return by_cpu
        per_gpu = int(1 / gpus + 1e-9)
        return min(by_cpu, int(self.gpus) * per_gpu if gpus <= 1 else int(self.gpus // gpus))


@dataclass(frozen=True)
class Pool:
    """A fixed number of equal workers."""

    actors: int
    cpus: int  # per actor
    gpus: float  # per actor
    decode_threads: int
    torch_threads: int


def plan_pool(
    nodes: Sequence[Node], shards: int, actors: int | None, gpus_per_actor: float, decode_threads: int | None
) -> Pool:
    """The largest equal workers that all fit at once, at most one per shard.

    A pool that does not fit would wait for ever, hence the ShoalError. Threads follow from the whole request, not
    from what is left to do, so that a resumed extraction computes with as many as the one it resumes.
    """
    room = sum(node.room(1, gpus_per_actor) for node in nodes)
    if room < (actors or 1):
        raise ShoalError(
            f"extract needs {actors or 1} actors of 1 CPU and {gpus_per_actor:g} GPU but the cluster has room for "
            f"{room}; set extract.actors or extract.gpus_per_actor lower, or wait until its nodes are up."
        )
    count = min(actors or room, max(1, shards))
    cpus = max(
        size
        for size in range(1, max(node.cpus for node in nodes) + 1)
        if sum(node.room(size, gpus_per_actor) for node in nodes) >= count
    )
    # A GPU leaves the CPUs to decoding; without one the backbone needs most of them.
    decoders = decode_threads or max(1, cpus - 1 if gpus_per_actor else cpus // 4)
    return Pool(count, cpus, gpus_per_actor, decoders, max(1, cpus - decoders))
