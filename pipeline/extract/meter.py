"""What an extraction tells Prometheus: its workers of images and shards, and the driver of what is in the table."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock

from pipeline.extract.prepare import Batch
from pipeline.extract.shard import ShardResult
from pipeline.metrics import Counter, Gauge

IMAGES = Counter("shoal_images_embedded", "Images whose embedding was computed.")
REJECTS = Counter("shoal_rejects", "Samples rejected, by reason.", ("reason",))
SHARDS = Counter("shoal_shards", "Shards that ended, by outcome.", ("outcome",))
BYTES = Counter("shoal_shard_bytes_read", "Stored bytes of the shards that were extracted.")
SECONDS = Counter("shoal_stage_seconds", "Seconds spent, by stage; decode adds up threads.", ("stage",))
WAITING = Gauge("shoal_images_waiting", "Images read or decoded that wait for the backbone.")

ROWS = Counter("shoal_rows_committed", "Rows that a commit made visible, by status: ok or rejected.", ("status",))
TO_EXTRACT = Gauge("shoal_extract_shards", "Shards that the extraction was given.")
IN_TABLE = Gauge("shoal_extract_shards_done", "Shards of these that are in the table.")


class Meter:
    """The metrics of one worker process."""

    def __init__(self) -> None:
        self._waiting_by_shard: dict[str, int] = {}
        self._lock = Lock()

    def batch(self, shard: str, batch: Batch, forward_s: float) -> None:
        """A batch of a shard was embedded."""
        IMAGES.add(len(batch.pixels_NCHW))
        for stage, seconds in {**batch.seconds, "forward": forward_s}.items():
            SECONDS.add(seconds, stage=stage)
        self._set_waiting(shard, batch.waiting)

    def shard(self, result: ShardResult) -> None:
        """A shard ended, in whatever way."""
        self._set_waiting(result.shard, 0)
        SHARDS.add(1, outcome="failed" if result.failure or result.fatal else "extracted")
        for reason, count in result.rejects.items():
            REJECTS.add(count, reason=reason)
        for stage in ("queue", "write"):
            SECONDS.add(result.seconds.get(stage, 0.0), stage=stage)
        if result.summary is not None:
            BYTES.add(result.summary.size)

    def _set_waiting(self, shard: str, images: int) -> None:
        """The gauge is the sum over the shards that are open, each in a thread of its own."""
        with self._lock:
            self._waiting_by_shard[shard] = images
            if not images:
                del self._waiting_by_shard[shard]
            WAITING.set(sum(self._waiting_by_shard.values()))


def tell_standing(in_table: int, total: int) -> None:
    """The driver's part: so many of all shards are in the table."""
    TO_EXTRACT.set(total)
    IN_TABLE.set(in_table)


def tell_commit(results: Iterable[ShardResult]) -> None:
    """The driver's part: rows of these shards are in the table, but for those that failed."""
    for result in results:
        if result.summary is not None:
            ROWS.add(result.images, status="ok")
            ROWS.add(sum(result.rejects.values()), status="rejected")
