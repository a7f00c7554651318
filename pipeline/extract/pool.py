"""How many workers a cluster has room for, and what each of them may use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from models.errors import ShoalError
from pipeline.extract.config import ExtractConfig

WORTH = 4  # CPUs of all machines for each of a machine without GPU, at most, for which `auto` splits
MAX_STREAMS = 16  # per worker: each open shard is a thread there, and half a dozen of decoding tasks feed any GPU


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
    decode_threads: int  # per actor, or per decoding task when split
    torch_threads: int
    streams: int = 1  # shards open at a time, per actor
    split: bool = False  # shards are decoded by tasks of one CPU, `streams` per actor


def plan_pool(nodes: Sequence[Node], shards: int, config: ExtractConfig, light: bool = False) -> Pool:
    """The largest equal workers that all fit at once, at most one per shard; `light` backbones share a GPU.

    A pool that does not fit would wait for ever, hence the ShoalError, unless `autoscale` says that room will come.
    Threads follow from the whole request, not from what is left to do, so that a resumed extraction computes with as
    many as the one it resumes.
    """
    gpus = _gpus_per_actor(nodes, config.gpus_per_actor, light)
    split = config.layout == "split" or (config.layout == "auto" and gpus > 0 and _has_decoders(nodes))
    room = sum(node.room(1, gpus) for node in nodes)
    if room < (config.actors or 1) and not (config.autoscale and config.actors):
        raise ShoalError(
            f"extract needs {config.actors or 1} actors of 1 CPU and {gpus:g} GPU but the cluster has room for "
            f"{room}; set extract.actors or extract.gpus_per_actor lower, wait until its nodes are up, or set "
            "extract.actors and extract.autoscale where nodes come on demand."
        )
    count = min(config.actors or room, max(1, shards))
    at_most = -(-max(1, shards) // count)
    return _split(nodes, count, gpus, config, at_most) if split else _fused(nodes, count, gpus, config, at_most)


def _gpus_per_actor(nodes: Sequence[Node], wanted: float | None, light: bool) -> float:
    if wanted is not None:
        return wanted
    if not any(node.gpus for node in nodes):
        return 0
    return 0.5 if light else 1


def _has_decoders(nodes: Sequence[Node]) -> bool:
    """Whether machines without GPUs, beside some with, have so many CPUs that pixels are worth a network's time."""
    others = sum(node.cpus for node in nodes if not node.gpus)
    return any(node.gpus for node in nodes) and others * WORTH >= sum(node.cpus for node in nodes)


def _fused(nodes: Sequence[Node], count: int, gpus: float, config: ExtractConfig, at_most: int) -> Pool:
    sizes = range(1, max((node.cpus for node in nodes), default=1) + 1)
    here = min(count, sum(node.room(1, gpus) for node in nodes))  # machines that are still to come are like these
    fitting = (size for size in sizes if here and sum(node.room(size, gpus) for node in nodes) >= here)
    cpus = max(fitting, default=1)
    # A GPU leaves the CPUs to decoding; without one the backbone needs most of them.
    decoders = config.decode_threads or max(1, cpus - 1 if gpus else cpus // 4)
    streams = min(config.streams or (2 if gpus else 1), at_most)
    return Pool(count, cpus, gpus, decoders, max(1, cpus - decoders), streams)


def _split(nodes: Sequence[Node], count: int, gpus: float, config: ExtractConfig, at_most: int) -> Pool:
    """One CPU per worker, and all others to tasks that decode a shard each."""
    threads = config.decode_threads or 1
    tasks = sum(node.cpus // threads for node in nodes) - count  # each worker may take a CPU where a task would fit
    if tasks < 1 and not config.autoscale:
        raise ShoalError(
            f"The split layout needs {threads} CPUs of one machine beside those of its {count} actors, but the cluster "
            f"has {sum(node.cpus for node in nodes)} in all; set extract.actors or extract.decode_threads lower, or "
            "extract.layout=fused."
        )
    streams = config.streams or max(1, min(MAX_STREAMS, tasks // count))
    return Pool(count, 1, gpus, threads, 1, min(streams, at_most), split=True)
