"""Which shards are in the table already, and which of those are no longer what was read."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pipeline.tables.collection import Collection
from pipeline.tables.schema import TableError
from pipeline.tables.storage import open_filesystem

_THREADS = 32  # an object store answers one question in tens of milliseconds, and many at a time


@dataclass(frozen=True)
class Todo:
    """The shards of one call, without repetitions."""

    shards: list[str]
    skipped: list[str]  # have rows in the table
    changed: list[str]  # of the skipped: have another size now than when they were read

    @property
    def total(self) -> int:
        """All shards of the call."""
        return len(self.shards) + len(self.skipped)


def plan_shards(shards: Sequence[str], table: Collection) -> Todo:
    """Compare `shards` with the log and the shards table; asks the storage for the size of each skipped one.

    A shard that changed and kept its size is not noticed: that would take reading it.
    """
    done = table.samples.done_shards()
    unique = list(dict.fromkeys(shards))
    skipped = [shard for shard in unique if shard in done]
    return Todo([shard for shard in unique if shard not in done], skipped, _changed(skipped, table))


def _changed(skipped: Sequence[str], table: Collection) -> list[str]:
    known = table.shards.records() if skipped else {}
    with ThreadPoolExecutor(_THREADS) as threads:
        sizes = list(threads.map(_size, skipped))
    return [
        shard
        for shard, size in zip(skipped, sizes, strict=True)
        if shard in known and None not in (size, known[shard].size) and size != known[shard].size
    ]


def _size(shard: str) -> int | None:
    """Bytes as stored; None where nobody can tell."""
    try:
        filesystem, path = open_filesystem(shard)
        size: int | None = filesystem.get_file_info(path).size
    except (OSError, TableError):
        return None
    return size
