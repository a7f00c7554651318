"""The Ray part: a fixed pool of actors that take shards by name and give back small records of what they wrote."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
import ray.data
from pydantic import TypeAdapter

from models.errors import ShoalError
from pipeline.extract.ledger import Attempt, Ledger
from pipeline.extract.pool import Node
from pipeline.extract.shard import Job, ShardResult, ShardWorker
from pipeline.tables.schema import TableError

_RESULT = TypeAdapter(ShardResult)  # results travel as JSON: Ray would pickle the objects, with a warning


class ShardActor:
    """What Ray starts in each worker process, and again when the process died.

    Errors that a person can put right come back as results: Ray would bury them in tracebacks.
    """

    def __init__(self, job: Job, ledger: Any) -> None:
        self._job = job
        self._ledger = ledger  # handle of an actor that is a Ledger
        self._worker: ShardWorker | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> Iterator[dict[str, list[str]]]:
        """The result of each shard of `batch`, which is one."""
        for shard in map(str, batch["shard"]):
            attempt: Attempt = ray.get(self._ledger.begin.remote(shard))
            result = self._extract(shard, attempt)
            ray.get(self._ledger.end.remote(shard))
            yield {"result": [_RESULT.dump_json(result).decode()]}

    def _extract(self, shard: str, attempt: Attempt) -> ShardResult:
        if attempt.hopeless:
            return ShardResult(shard, failure=f"{attempt.deaths} workers died on it, and not of single images")
        try:
            # Loaded here and not by the constructor, whose deaths nobody would count.
            self._worker = self._worker or ShardWorker(self._job)
            return self._worker.extract(shard, attempt, lambda offset: self._announce(shard, offset))
        except (ShoalError, TableError) as error:
            return ShardResult(shard, fatal=str(error))
        except OSError as error:
            where = self._job.table.path
            return ShardResult(shard, fatal=f"A worker cannot write to {where} ({error}); mend that and run again.")

    def _announce(self, shard: str, offset: int | None) -> None:
        ray.get(self._ledger.enter.remote(shard, offset))


def cluster_nodes() -> list[Node]:
    """The machines that are up."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    return [Node(int(each.get("CPU", 0)), float(each.get("GPU", 0))) for each in resources]


def run(shards: Sequence[str], job: Job) -> Generator[ShardResult]:
    """Results as they come. Closing the iterator stops the workers.

    A worker that dies is started again by Ray, and its shard with it. Takes 5-20 s to start, and 1-2 ms per shard.
    """
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    ledger: Any = ray.remote(num_cpus=0)(Ledger).remote()
    with ray.data.DataContext.current(context):  # a dataset keeps the context it was made in
        names = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
        results = names.map_batches(
            ShardActor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=job.pool.actors),
            num_cpus=job.pool.cpus,
            num_gpus=job.pool.gpus or None,
            fn_constructor_args=(job, ledger),
        )
    try:
        # Nothing is fetched ahead, or a finished shard would wait for the next one before it can be committed.
        batches: Iterable[Any] = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for batch in batches:
            yield from map(_RESULT.validate_json, batch["result"].to_pylist())
    finally:
        ray.kill(ledger)
