"""Data files of the samples table as the log describes them: rows of exactly one shard each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tables.log import WrittenFile
from pipeline.tables.schema import TableError


@dataclass(frozen=True, slots=True)
class SampleFile:
    """A committed data file: rows of exactly one shard, `(shard, key)` unique in the `ok` part."""

    path: str
    rows: int
    shard: str
    bytes: int
    first_key: str  # smallest and largest key, not those of the first and last row
    last_key: str
    first_offset: int | None  # null for imported embeddings

    @property
    def extent(self) -> tuple[str, str, str, int]:
        """Which rows these are, whatever the file is called: no two `ok` files of a version share it."""
        return self.shard, self.first_key, self.last_key, self.rows

    @property
    def order(self) -> tuple[str, int, str, str, int, str]:
        """Sorts files by what is in them, so that neither random names nor the order of commits shows."""
        offset = -1 if self.first_offset is None else self.first_offset
        return self.shard, offset, self.first_key or "", self.last_key or "", self.rows, self.path  # null: scrubbed


def of_listing(listing: pa.Table) -> Iterator[SampleFile]:
    """Rows of `Version.listing` as files."""
    columns = ("path", "rows", "min.shard", "size", "min.key", "max.key", "min.offset")
    return map(SampleFile, *(listing[name].to_pylist() for name in columns))


def of_written(file: WrittenFile) -> SampleFile:
    """What `SamplesTable.write` wrote, once it is committed."""
    low, high = file.minimum, file.maximum
    return SampleFile(file.path, file.rows, shard_of(file), file.size, low["key"], high["key"], low["offset"])


def check_one_shard_each(listing: pa.Table) -> None:
    """Raise TableError if a file of `Version.listing` has not exactly one shard."""
    one = pc.and_(pc.equal(listing["min.shard"], listing["max.shard"]), pc.is_valid(listing["rows"]))
    bad = listing.filter(pc.invert(pc.fill_null(one, False))).slice(0, 1).to_pylist()
    if bad:
        raise _foreign(bad[0]["path"], bad[0]["min.shard"], bad[0]["max.shard"])


def shard_of(file: WrittenFile) -> str:
    """The one shard of a file; TableError if it has not exactly one."""
    first, last = file.minimum["shard"], file.maximum["shard"]
    if first is None or first != last or file.rows is None:
        raise _foreign(file.path, first, last)
    return str(first)


def _foreign(path: str, first: str | None, last: str | None) -> TableError:
    return TableError(
        f"Data file {path} has shards {first} to {last} in the log but must have exactly one; "
        "the table was changed by another tool: restore an earlier version."
    )
