"""An index as one Arrow table and one Parquet file: a line per image or reject, and in its metadata the shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.tables.place import Place

_META = b"shoal"
FORMAT = 1  # indexes of another are made again
COLUMNS = pa.schema(
    [
        pa.field("shard", pa.dictionary(pa.int32(), pa.string())),
        pa.field("row", pa.int64()),  # the hash of shard and key that every table of shoal has
        pa.field("offset", pa.int64()),  # of the uncompressed shard
        pa.field("size", pa.int64()),
        pa.field("key", pa.string()),  # of rejects only
        pa.field("reason", pa.string()),  # null: a usable image
        pa.field("detail", pa.string()),
    ]
)


@dataclass(frozen=True)
class IndexedShard:
    """A shard as it was when it was indexed."""

    shard: str
    size: int  # stored bytes
    modified: int | None  # ns since 1970
    checksum: str
    ranged: bool  # can be read from the middle: neither compressed nor on a web server
    rows: int
    rejects: Mapping[str, int]  # by reason

    @property
    def on_web(self) -> bool:
        """As of `is_on_web`."""
        return is_on_web(self.shard)

    @property
    def items(self) -> int:
        """Lines of the index."""
        return self.rows + sum(self.rejects.values())


def file_name(shard: str) -> str:
    """The last part of its path, or of its address without what is asked of it: the same wherever the shard is."""
    return PurePosixPath(shard.partition("?")[0]).name


def is_on_web(shard: str) -> bool:
    """Where files are asked for as a whole, and not for their time."""
    return shard.lower().startswith(("http://", "https://"))


def split(whole: pa.Table) -> dict[str, pa.Table]:
    """The tables of single shards that an index was joined from."""
    settings, parts, begin = settings_of(whole), {}, 0
    for entry in entries_of(whole):
        part = whole.slice(begin, entry.items)
        parts[entry.shard] = with_meta(part, settings, [entry])
        begin += entry.items
    return parts


def joined(tables: Sequence[pa.Table], settings: Mapping[str, Any]) -> pa.Table:
    """The tables of single shards as one, in an order that no folder decides: by names, then content."""
    tables = sorted(tables, key=lambda table: [_place_of(entry) for entry in entries_of(table)])
    entries = [entry for table in tables for entry in entries_of(table)]
    bare = [table.replace_schema_metadata(None) for table in tables]
    return with_meta(pa.concat_tables(bare).unify_dictionaries().combine_chunks(), settings, entries)


def is_in_order(entries: Sequence[IndexedShard]) -> bool:
    """Whether shards are in the order of `joined`."""
    return all(_place_of(one) <= _place_of(next_) for one, next_ in pairwise(entries))


def _place_of(entry: IndexedShard) -> tuple[str, str, str]:
    return file_name(entry.shard), entry.checksum, entry.shard


def with_meta(table: pa.Table, settings: Mapping[str, Any], entries: Sequence[IndexedShard]) -> pa.Table:
    """The table, which says of itself what it is made of."""
    meta = {"settings": settings, "shards": [asdict(entry) for entry in entries]}
    return table.replace_schema_metadata({_META: json.dumps(meta)})


def _meta(table: pa.Table) -> Any:
    return json.loads(table.schema.metadata[_META])


def entries_of(table: pa.Table) -> tuple[IndexedShard, ...]:
    """The shards that its lines are of, in their order."""
    return tuple(IndexedShard(**entry) for entry in _meta(table)["shards"])


def settings_of(table: pa.Table) -> Any:
    """What it was made with."""
    return _meta(table)["settings"]


def packed(table: pa.Table) -> bytes:
    """As a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue().to_pybytes())


def read_table(path: Place) -> pa.Table | None:
    """None where there is no file, or one that is none of ours: it is made again."""
    try:
        table = pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()
        entries_of(table)
    except (FileNotFoundError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None
    return table
