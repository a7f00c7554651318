"""Batches that were decoded elsewhere: by tasks on any CPU of the cluster, for workers that hold a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline.extract.ledger import Attempt
from pipeline.extract.prepare import Announce, Batch, UnreadableError
from pipeline.extract.shard import Job
from pipeline.ingest.shards import ShardSummary


class DecoderDiedError(Exception):
    """The task that decoded a shard is gone, or the machine that it ran on."""


class RemoteSource:
    """Every open shard is one task, which decodes ahead of its reader.

    Batches wait in the object store: `Job.batches_ahead` per shard, and a task that is that far ahead stops. They go
    with the worker that asked for them.
    """

    def __init__(self, job: Job, ledger: Any) -> None:
        self._job = ray.put(job)
        self._ledger = ledger  # handle of an actor that is a Ledger
        self._decode: Any = ray.remote(_decode).options(
            num_cpus=job.pool.decode_threads,
            max_retries=0,  # the ledger decides how a shard is tried again
            scheduling_strategy="SPREAD",
            _generator_backpressure_num_objects=job.batches_ahead,
        )

    def open(self, shard: str, attempt: Attempt, announce: Announce) -> Iterator[Batch | ShardSummary]:
        """As LocalSource, but the task announces by itself. Raises DecoderDiedError when the task died."""
        pieces = self._decode.remote(self._job, shard, attempt, self._ledger)
        ended = False
        try:
            for piece in pieces:
                yield ray.get(piece)
            ended = True
        except RayTaskError as error:
            if isinstance(error.cause, UnreadableError):
                raise UnreadableError(str(error.cause)) from None  # Ray's text of it is a traceback
            raise
        except RayError as error:
            raise DecoderDiedError(str(error)) from error
        finally:
            if not ended:
                ray.cancel(pieces, force=True)  # or it would decode on for nobody


def _decode(job: Job, shard: str, attempt: Attempt, ledger: Any) -> Iterator[Batch | ShardSummary]:
    yield from job.local_source().open(shard, attempt, announcer(ledger, shard))


def announcer(ledger: Any, shard: str) -> Announce:
    """Tells the ledger of each image before it is decoded, and waits until it knows."""

    def announce(offset: int | None) -> None:
        ray.get(ledger.enter.remote(shard, offset))

    return announce
