"""The shards table: what each shard was when it was read, which is how a changed shard is noticed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tables.delta import Change, Delta, Layout, WrittenFile, conform
from pipeline.tables.schema import SHARDS

LAYOUT = Layout(SHARDS, statistics=("shard",))


@dataclass(frozen=True)
class ShardRecord:
    """One row of the shards table."""

    shard: str
    size: int | None  # bytes as stored
    checksum: str | None  # of the bytes as stored, or the store's ETag
    samples: int
    rejects: int


class ShardsTable:
    """At most one row per shard. It is made by the first `upsert`; until then it is empty."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._delta = Delta(path, LAYOUT)

    @property
    def version(self) -> int | None:
        """The newest committed version; None before the first `upsert`."""
        return self._delta.version if self._delta.exists() else None

    def upsert(self, rows: pa.Table) -> int:
        """Add `rows` (columns SHARDS), replacing earlier rows of the same shards; returns the version.

        One commit. Reads and rewrites only files whose range of shards overlaps that of `rows`.
        """
        self._delta.create()
        new = conform(rows, SHARDS)

        def plan(present: list[WrittenFile]) -> Change:
            stale, kept = self._overlap(present, new)
            merged = pa.concat_tables([*kept, new]).sort_by("shard")
            return Change([self._delta.write(merged)], removed=stale)

        return self._delta.commit(plan) if new.num_rows else self._delta.version

    def read(self) -> pa.Table:
        """All rows, sorted by shard."""
        if not self._delta.exists():
            return SHARDS.empty_table()
        return self._delta.read_all(self._delta.files()).sort_by("shard")

    def records(self) -> dict[str, ShardRecord]:
        """All rows by shard."""
        return {row["shard"]: ShardRecord(**row) for row in self.read().to_pylist()}

    def count(self) -> int:
        """Rows, from the log alone."""
        return sum(file.rows for file in self._delta.files()) if self._delta.exists() else 0

    def _overlap(self, present: list[WrittenFile], new: pa.Table) -> tuple[list[WrittenFile], list[pa.Table]]:
        """Files that hold a shard of `new`, and what else they hold."""
        bounds = pc.min_max(new["shard"]).as_py()
        stale, kept = [], []
        for file in present:
            if file.maximum["shard"] < bounds["min"] or file.minimum["shard"] > bounds["max"]:
                continue
            old = self._delta.read(file.path, file.rows)
            rest = old.filter(pc.invert(pc.is_in(old["shard"], value_set=new["shard"].combine_chunks())))
            if rest.num_rows < old.num_rows:
                stale.append(file)
                kept.append(rest)
        return stale, kept
