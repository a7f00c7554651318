"""What a worker tells Prometheus: counters and gauges that Ray exports on every node's metrics port as `ray_shoal_…`.

Sums over workers are left to whoever reads them: every process exports its own.
"""

from __future__ import annotations

from threading import Lock

from ray.util.metrics import Counter, Gauge

from pipeline.extract.prepare import Batch
from pipeline.extract.shard import ShardResult


class Meter:
    """The metrics of one worker process."""

    def __init__(self) -> None:
        self._images = Counter("shoal_images_embedded", "Images whose embedding was computed.")
        self._rejects = Counter("shoal_rejects", "Samples rejected, by reason.", ("reason",))
        self._shards = Counter("shoal_shards", "Shards that ended, by outcome.", ("outcome",))
        self._bytes = Counter("shoal_shard_bytes_read", "Stored bytes of the shards that were extracted.")
        self._seconds = Counter("shoal_stage_seconds", "Seconds spent, by stage; decode adds up threads.", ("stage",))
        self._waiting = Gauge("shoal_images_waiting", "Images read or decoded that wait for the backbone.")
        self._waiting_by_shard: dict[str, int] = {}
        self._lock = Lock()

    def batch(self, shard: str, batch: Batch, forward_s: float) -> None:
        """A batch of a shard was embedded."""
        _add(self._images, len(batch.pixels_NCHW))
        for stage, seconds in {**batch.seconds, "forward": forward_s}.items():
            _add(self._seconds, seconds, stage=stage)
        self._set_waiting(shard, batch.waiting)

    def shard(self, result: ShardResult) -> None:
        """A shard ended, in whatever way."""
        self._set_waiting(result.shard, 0)
        outcome = "failed" if result.failure or result.fatal else "extracted"
        self._shards.inc(1, {"outcome": outcome})
        for reason, count in result.rejects.items():
            self._rejects.inc(count, {"reason": reason})
        for stage in ("queue", "write"):
            _add(self._seconds, result.seconds.get(stage, 0.0), stage=stage)
        if result.summary is not None:
            _add(self._bytes, result.summary.size)

    def _set_waiting(self, shard: str, images: int) -> None:
        """The gauge is the sum over the shards that are open, each in a thread of its own."""
        with self._lock:
            self._waiting_by_shard[shard] = images
            if not images:
                del self._waiting_by_shard[shard]
            self._waiting.set(sum(self._waiting_by_shard.values()))


def _add(counter: Counter, value: float, **tags: str) -> None:
    if value > 0:  # Ray refuses to add nothing
        counter.inc(value, tags)
