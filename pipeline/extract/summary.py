"""What an extraction did, added up shard by shard."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from models.errors import ShoalError
from pipeline.extract.resume import Todo
from pipeline.extract.shard import EXAMPLES, STAGES, ShardResult
from pipeline.ingest.shards import Reject


@dataclass(frozen=True)
class ExtractSummary:
    """What one call did."""

    images: int
    rejects: dict[str, int]  # by reason
    shards_done: int
    shards_skipped: int  # were in the table already
    shards_changed: list[str]  # of the skipped: are no longer what was read
    shards_failed: dict[str, str]  # could not be read now, and why; the next call tries them again
    examples: list[Reject]  # a few rejects, the first by shard
    seconds: float  # from Ray being up to the last commit
    startup_seconds: float | None  # of these, up to the first embedded image
    steady_seconds: float | None  # from the first worker being ready to the last commit
    bytes: int  # of the shards as stored
    stage_seconds: dict[str, float]  # added up over workers, and over threads that decode

    @property
    def rejected(self) -> int:
        """Rejects of all reasons."""
        return sum(self.rejects.values())

    @property
    def images_per_second(self) -> float:
        """Without the start of the workers."""
        return self.images / self.steady_seconds if self.steady_seconds else 0.0


class Tally:
    """Adds up results; in which order they come does not show. Memory: shards that failed, not those done."""

    def __init__(self, todo: Todo) -> None:
        self._started = time.time()
        self._ended = self._started
        self._todo = todo
        self._images = 0
        self._shards = 0
        self._bytes = 0
        self._rejects: Counter[str] = Counter()
        self._failed: dict[str, str] = {}
        self._examples: list[Reject] = []
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._ready_at: list[float] = []
        self._first_at: list[float] = []

    def add(self, results: Iterable[ShardResult]) -> None:
        """Take in what became of some shards."""
        for result in results:
            if result.failure is not None:
                self._failed[result.shard] = result.failure
                continue
            self._shards += 1
            self._images += result.images
            self._bytes += result.summary.size if result.summary else 0
            self._rejects.update(result.rejects)
            for stage, seconds in result.seconds.items():
                self._seconds[stage] += seconds
            self._ready_at = _earliest(self._ready_at, result.ready_at)
            self._first_at = _earliest(self._first_at, result.first_at)
            # Sorting is stable, so rejects of one shard stay in its order.
            self._examples = sorted([*self._examples, *result.examples], key=lambda reject: reject.shard)[:EXAMPLES]

    def committed(self) -> None:
        """What was added is in the table now."""
        self._ended = time.time()

    def check(self, max_rejects: int | None) -> None:
        """Raise ShoalError if more samples than that were rejected."""
        rejected = self._rejects.total()
        if max_rejects is not None and rejected > max_rejects:
            first = self._examples[0]
            raise ShoalError(
                f"{rejected} samples were rejected beside {self._images} embedded, more than extract.max_rejects = "
                f"{max_rejects}, the first for {first.reason} in {first.shard}; mend the shards or raise the limit."
            )

    @property
    def in_table(self) -> int:
        """Shards that need no more work."""
        return len(self._todo.skipped) + self._shards

    def summary(self) -> ExtractSummary:
        """The sum so far."""
        return ExtractSummary(
            images=self._images,
            rejects=dict(sorted(self._rejects.items())),
            shards_done=self._shards,
            shards_skipped=len(self._todo.skipped),
            shards_changed=self._todo.changed,
            shards_failed=dict(sorted(self._failed.items())),
            examples=self._examples,
            seconds=self._ended - self._started,
            startup_seconds=self._first_at[0] - self._started if self._first_at else None,
            steady_seconds=self._ended - self._ready_at[0] if self._ready_at else None,
            bytes=self._bytes,
            stage_seconds=self._seconds,
        )


def _earliest(known: list[float], moment: float | None) -> list[float]:
    """The earliest moment so far, as a list of one, or of none."""
    return [min([*known, moment])] if moment is not None else known
