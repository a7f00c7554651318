"""The shards table: what each shard was when it was read, which is how a changed shard is noticed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tables.delta import Change, Delta, Layout, WrittenFile, conform
from pipeline.tables.schema import SHARDS

LAYOUT = Layout(SHARDS, statistics=("shard",))
CROWD = 16  # files of about the same size that become one
_TIER_BITS = 4  # files are about the same size if their rows differ less than CROWD-fold


@dataclass(frozen=True)
class ShardRecord:
    """One row of the shards table."""

    shard: str
    size: int | None  # bytes as stored
    checksum: str | None  # "sha256:…" of the bytes as stored, or the store's ETag
    samples: int
    rejects: int
    modified: int | None = None  # nanoseconds since 1970, as the store said before the shard was read


class ShardsTable:
    """At most one row per shard. It is made by the first `upsert`; until then it is empty.

    Keep one for many upserts: it remembers the data files that it has seen, which is all rows, 200 bytes each. They are
    at most CROWD files of every order of magnitude: each row is rewritten when 16 files of a size become one, so
    log₁₆(rows) times.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._delta = Delta(path, LAYOUT)
        self._seen: dict[str, pa.Table] = {}  # by data file; those never change
        self._made = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": {}}

    @property
    def version(self) -> int | None:
        """The newest committed version; None before the first `upsert`."""
        return self._delta.version if self._delta.exists() else None

    def upsert(self, rows: pa.Table) -> int:
        """Add `rows` (columns SHARDS), replacing earlier rows of the same shards; returns the version.

        One commit. A table made before SHARDS had all of its columns gets the missing ones, in a commit before.
        """
        if not self._made:
            self._delta.create()
            self._delta.extend()
            self._made = True
        new = conform(rows, SHARDS)
        tried: list[WrittenFile] = []

        def plan(present: list[WrittenFile]) -> Change:
            self._forget(tried, present)
            replaced = self._holding(present, new["shard"])
            paths = {file.path for file in replaced}
            stale = replaced + _crowd([file for file in present if file.path not in paths])
            kept = pa.concat_tables([*(self._rows(file) for file in stale), SHARDS.empty_table()])
            kept = kept.filter(pc.invert(_among(kept["shard"], new["shard"])))
            written = self._write(pa.concat_tables([kept, new]).sort_by("shard"))
            tried.append(written)
            self._seen = {file.path: self._seen[file.path] for file in [*present, written] if file.path in self._seen}
            return Change([written], removed=stale)

        return self._delta.commit(plan) if new.num_rows else self._delta.version

    def read(self) -> pa.Table:
        """All rows, sorted by shard."""
        if not self._delta.exists():
            return SHARDS.empty_table()
        return self._delta.read_all(self._delta.files()).sort_by("shard")

    def records(self) -> dict[str, ShardRecord]:
        """All rows by shard."""
        columns = self.read().select([each.name for each in SHARDS]).to_pydict()
        return dict(zip(columns["shard"], map(ShardRecord, *columns.values()), strict=True))

    def count(self) -> int:
        """Rows, from the log alone."""
        return sum(file.rows for file in self._delta.files()) if self._delta.exists() else 0

    def _holding(self, present: Sequence[WrittenFile], shards: pa.ChunkedArray) -> list[WrittenFile]:
        """Files with a row of one of `shards`; those whose range leaves it open are read, once."""
        bounds = pc.min_max(shards).as_py()
        near = [f for f in present if f.maximum["shard"] >= bounds["min"] and f.minimum["shard"] <= bounds["max"]]
        return [file for file in near if pc.any(_among(self._rows(file)["shard"], shards)).as_py()]

    def _rows(self, file: WrittenFile) -> pa.Table:
        if file.path not in self._seen:
            self._seen[file.path] = self._delta.read(file.path, file.rows)
        return self._seen[file.path]

    def _forget(self, tried: list[WrittenFile], present: Sequence[WrittenFile]) -> None:
        """Delete what lost races left, except for a file whose commit went well although its answer was lost."""
        committed = {file.path for file in present}
        self._delta.discard([file for file in tried if file.path not in committed])
        tried.clear()

    def _write(self, rows: pa.Table) -> WrittenFile:
        written = self._delta.write(rows)
        self._seen[written.path] = rows
        return written


def _crowd(files: Sequence[WrittenFile]) -> list[WrittenFile]:
    """The smallest files, if CROWD of them are of about one size."""
    tiers = defaultdict[int, list[WrittenFile]](list)
    for file in files:
        tiers[file.rows.bit_length() // _TIER_BITS].append(file)
    return next((tiers[tier] for tier in sorted(tiers) if len(tiers[tier]) >= CROWD), [])


def _among(values: pa.ChunkedArray, wanted: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.is_in(values, value_set=wanted.combine_chunks())
