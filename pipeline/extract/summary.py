"""What an extraction did, added up shard by shard."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from models.errors import ShoalError
from pipeline.extract.resume import Todo
from pipeline.extract.shard import EXAMPLES, ShardResult
from pipeline.ingest.shards import Reject


@dataclass(frozen=True)
class ExtractSummary:
    """What one call did."""

    images: int
    rejects: dict[str, int]  # by reason
    shards_done: int
    shards_skipped: int  # were in the table already
    shards_changed: list[str]  # of the skipped: have another size now than when they were read
    shards_failed: dict[str, str]  # could not be read now, and why; the next call tries them again
    examples: list[Reject]  # a few rejects, the first by shard
    seconds: float  # start of the workers included

    @property
    def rejected(self) -> int:
        """Rejects of all reasons."""
        return sum(self.rejects.values())

    @property
    def images_per_second(self) -> float:
        """Over the whole call."""
        return self.images / self.seconds if self.seconds else 0.0


class Tally:
    """Adds up results; in which order they come does not show."""

    def __init__(self, todo: Todo, started: float) -> None:
        self._started = started  # by time.monotonic
        self._todo = todo
        self._images = 0
        self._shards = 0
        self._rejects: Counter[str] = Counter()
        self._failed: dict[str, str] = {}
        self._examples: list[Reject] = []

    def add(self, results: Iterable[ShardResult]) -> None:
        """Take in what became of some shards."""
        for result in results:
            if result.failure is not None:
                self._failed[result.shard] = result.failure
                continue
            self._shards += 1
            self._images += result.images
            self._rejects.update(result.rejects)
            # Sorting is stable, so rejects of one shard stay in its order.
            self._examples = sorted([*self._examples, *result.examples], key=lambda reject: reject.shard)[:EXAMPLES]

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
            seconds=time.monotonic() - self._started,
        )
