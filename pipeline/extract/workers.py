"""The Ray part: a fixed pool of actors that take shards by name and give back small records of what they wrote."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ray
import ray.data
from pydantic import TypeAdapter
from ray.data._internal.execution import streaming_executor_state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models.errors import ShoalError
from pipeline.extract.backbone import open_backbone
from pipeline.extract.ledger import Attempt, Ledger, Standing
from pipeline.extract.meter import Meter
from pipeline.extract.pool import Node
from pipeline.extract.prepare import Batch
from pipeline.extract.shard import Hooks, Job, ShardResult, ShardWorker
from pipeline.extract.sources import DecoderDiedError, RemoteSource, announcer
from pipeline.tables.schema import TableError

POLL_S = 1.0
ADVANCE_S = 1.0  # between two messages of a worker about one shard

_RESULT = TypeAdapter(ShardResult)  # results travel as JSON: Ray would pickle the objects, with a warning


class ShardActor:
    """What Ray starts in each worker process, and again when the process died.

    Errors that a person can put right come back as results: Ray would bury them in tracebacks.
    """

    def __init__(self, job: Job, ledger: Any) -> None:
        self._job = job
        self._ledger = ledger  # handle of an actor that is a Ledger
        self._meter = Meter()
        self._loading = threading.Lock()
        self._worker: ShardWorker | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[str]]]:
        """The result of each shard of `batch`, which is one; up to `streams` threads are in here."""
        for shard in map(str, batch["shard"]):
            result = self._extract(shard)
            self._meter.shard(result)
            ray.get(self._ledger.end.remote(shard, result.standing))
            yield {"result": [_RESULT.dump_json(result).decode()]}

    def _extract(self, shard: str) -> ShardResult:
        while True:
            attempt: Attempt = ray.get(self._ledger.begin.remote(shard))
            if attempt.hopeless:
                return ShardResult(shard, failure=f"{attempt.deaths} workers died on it, and not of single images")
            try:
                hooks = Hooks(announcer(self._ledger, shard), _Advance(shard, self._ledger, self._meter))
                return self._loaded().extract(shard, attempt, hooks)
            except DecoderDiedError:
                continue
            except (ShoalError, TableError) as error:
                return ShardResult(shard, fatal=str(error))
            except OSError as error:
                where = self._job.table.path
                return ShardResult(shard, fatal=f"A worker cannot write to {where} ({error}); mend that and run again.")

    def _loaded(self) -> ShardWorker:
        """Loaded here and not by the constructor, whose deaths nobody would count."""
        with self._loading:
            if self._worker is None:
                self._worker = _worker(self._job, self._ledger)
            return self._worker


class _Advance:
    """Tells the meter of every batch, and the ledger now and then."""

    def __init__(self, shard: str, ledger: Any, meter: Meter) -> None:
        self._shard = shard
        self._ledger = ledger
        self._meter = meter
        self._standing = Standing()
        self._told_at = time.monotonic()

    def __call__(self, batch: Batch, forward_s: float) -> None:
        self._meter.batch(self._shard, batch, forward_s)
        images = len(batch.pixels_NCHW)
        rejects = len(batch.items) - images
        before = self._standing
        self._standing = Standing(0.0, before.images + images, before.rejects + rejects, batch.waiting)
        done = self._standing.images + self._standing.rejects
        self._standing = replace(self._standing, shards=batch.fraction * done / (done + batch.waiting))
        if time.monotonic() - self._told_at >= ADVANCE_S:
            self._ledger.advance.remote(self._shard, self._standing)
            self._told_at = time.monotonic()


def _worker(job: Job, ledger: Any) -> ShardWorker:
    backbone = open_backbone(job.backbone, "cuda" if job.pool.gpus else "cpu")
    job.require(backbone)
    return ShardWorker(job, backbone, RemoteSource(job, ledger) if job.pool.split else job.local_source())


def cluster_nodes() -> list[Node]:
    """The machines that are up."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return [Node(int(each.get("CPU", 0)), float(each.get("GPU", 0))) for each in resources]


class Run:
    """The workers of one extraction, and what they say. Needs a Ray session."""

    def __init__(self, job: Job) -> None:
        self._job = job
        # With the driver, which no run outlives anyhow: any other machine may be lost. A ledger that dies begins anew:
        # it has forgotten deaths and progress, and no row depends on those.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
        self._ledger: Any = ray.remote(Ledger).options(**options).remote(job.pool.streams)

    def results(self, shards: Sequence[str]) -> Generator[ShardResult]:
        """Results as they come. Closing the iterator stops the workers.

        A worker that dies is started again by Ray, and its shards with it; on a machine that is left, or when another
        worker has no more to do. Takes 5-10 s to start, and 1-2 ms per shard.
        """
        pool = self._job.pool
        context = ray.data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        # Ray Data is told when a task ends, and looks ten times a second all the same: 7 % of a CPU, for nothing here.
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = POLL_S
        with ray.data.DataContext.current(context):  # a dataset keeps the context it was made in
            names = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
            results = names.map_batches(
                ShardActor,
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(
                    size=pool.actors,
                    max_tasks_in_flight_per_actor=pool.streams,  # a shard that waits at one worker is no other's
                    max_concurrent_calls_per_actor=pool.streams,
                    enable_true_multi_threading=pool.streams > 1,
                ),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus or None,
                fn_constructor_args=(self._job, self._ledger),
            )
        try:
            # Nothing is fetched ahead, or a finished shard would wait for the next one before it can be committed.
            batches: Iterable[Any] = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for batch in batches:
                yield from map(_RESULT.validate_json, batch["result"].to_pylist())
        finally:
            ray.kill(self._ledger)

    def standing(self) -> Standing:
        """How far all shards are together. Raises ray.exceptions.RayError once the run is over."""
        standing: Standing = ray.get(self._ledger.standing.remote(), timeout=5)
        return standing
