"""Which samples are to be taken down: keys wherever they are, and keys of one shard."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from models.errors import ShoalError, first_line
from pipeline.tables.place import Place, place

Wanted = tuple[str | None, str]  # shard, or None for all of them, and key
_NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Targets:
    """Keys of samples, a few or millions. About 100 bytes a key."""

    anywhere: frozenset[str] = frozenset()
    in_shard: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, wanted: Iterable[Wanted]) -> Targets:
        """Raises ShoalError for an empty key: rejects that are of no sample have that."""
        anywhere, in_shard = set[str](), defaultdict[str, set[str]](set)
        for shard, key in wanted:
            if not key:
                raise ShoalError("A key to be removed is empty; give the keys of samples, one a line.")
            (anywhere if shard is None else in_shard[shard]).add(key)
        return cls(frozenset(anywhere), {shard: frozenset(keys) for shard, keys in in_shard.items()})

    def __len__(self) -> int:
        return len(self.anywhere) + sum(map(len, self.in_shard.values()))

    def __iter__(self) -> Iterator[Wanted]:
        yield from ((None, key) for key in sorted(self.anywhere))
        yield from ((shard, key) for shard, keys in sorted(self.in_shard.items()) for key in sorted(keys))

    def __or__(self, other: Targets) -> Targets:
        return Targets.of([*self, *other])

    def within(self, shard: str) -> tuple[AbstractSet[str], AbstractSet[str]]:
        """Two sets, each of which may hold a key of the shard."""
        return self.anywhere, self.in_shard.get(shard, _NOTHING)

    def are_in(self, shard: str, keys: Sequence[str]) -> np.ndarray:
        """Which of the keys of a shard are to go, bool."""
        everywhere, here = self.within(shard)
        return np.fromiter((key in everywhere or key in here for key in keys), bool, len(keys))

    def may_be_in(self, shard: str, first: str, last: str) -> bool:
        """Whether a key from `first` to `last` of the shard is to go."""
        return any(_any_between(keys, first, last) for keys in (self._ordered, self._ordered_in.get(shard, [])))

    def missing_from(self, found: Targets) -> list[Wanted]:
        """Those that were `found` nowhere, or not in their shard."""
        seen = _NOTHING.union(*found.in_shard.values())
        return [
            (shard, key)
            for shard, key in self
            if key not in (seen if shard is None else found.in_shard.get(shard, _NOTHING))
        ]

    def resolved(self, shards: AbstractSet[str]) -> Targets:
        """With the names of shards as a table has them, for file names that one shard alone has.

        Raises ShoalError for a file name that several shards share.
        """
        by_name = defaultdict[str, list[str]](list)
        for shard in shards:
            by_name[PurePosixPath(shard).name].append(shard)
        return Targets.of((None if shard is None else _full(shard, shards, by_name), key) for shard, key in self)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "anywhere": sorted(self.anywhere),
            "in_shard": {shard: sorted(keys) for shard, keys in self.in_shard.items()},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Targets:
        """The inverse of `as_json`."""
        in_shard = {str(shard): frozenset(keys) for shard, keys in stored["in_shard"].items()}
        return cls(frozenset(stored["anywhere"]), in_shard)

    @cached_property
    def _ordered(self) -> list[str]:
        return sorted(self.anywhere)

    @cached_property
    def _ordered_in(self) -> dict[str, list[str]]:
        return {shard: sorted(keys) for shard, keys in self.in_shard.items()}


def read_targets(file: str | Place, shard: str | None = None) -> list[Wanted]:
    """Keys from a file: one a line, or the columns `key` and perhaps `shard` of a .csv or .parquet file.

    Text as it stands in the file, but for the end of a line; empty lines count for nothing. Rows without a shard of
    their own have the one given. Raises ShoalError for a file that is none of these, OSError where it is missing.
    """
    source = place(file)
    try:
        return list(_wanted(source.name.lower(), source.read_bytes(), shard))
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ShoalError(
            f"{file} cannot be read ({first_line(error)}); give UTF-8 text with one key a line, or a .csv or .parquet "
            "file with a column `key`."
        ) from error


def _wanted(name: str, data: bytes, shard: str | None) -> Iterator[Wanted]:
    if not name.endswith((".csv", ".parquet")):
        lines = (line.removesuffix("\r") for line in data.decode("utf-8-sig").split("\n"))
        yield from ((shard, line) for line in lines if line)
        return
    table = _csv(data) if name.endswith(".csv") else pq.read_table(pa.BufferReader(data))
    if "key" not in table.column_names:
        raise ShoalError(f"{name} has the columns {table.column_names[:9]}; expected `key`, and perhaps `shard`.")
    if any(table.column_names.count(name) > 1 for name in ("key", "shard")):
        raise ShoalError(f"{name} has several columns `key` or `shard`, {table.column_names[:9]}; leave one of each.")
    keys = table["key"].cast(pa.string()).to_pylist()
    shards = table["shard"].cast(pa.string()).to_pylist() if "shard" in table.column_names else [None] * len(keys)
    if None in keys:
        raise ShoalError(f"{name} has no key in row {keys.index(None) + 1}; give every row one.")
    yield from ((own or shard, key) for own, key in zip(shards, keys, strict=True))


def _csv(data: bytes) -> pa.Table:
    as_text = pyarrow.csv.ConvertOptions(column_types={"key": pa.string(), "shard": pa.string()})  # 007 is no 7
    lines = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(pa.BufferReader(data), parse_options=lines, convert_options=as_text)


def _full(shard: str, shards: AbstractSet[str], by_name: Mapping[str, Sequence[str]]) -> str:
    named = [shard] if shard in shards else by_name.get(shard, [])
    if len(named) > 1:
        raise ShoalError(
            f"{len(named)} shards are called {shard}: {', '.join(sorted(named)[:3])}; give the whole name."
        )
    return named[0] if named else shard


def _any_between(ordered: Sequence[str], first: str, last: str) -> bool:
    place_of_first = bisect_left(ordered, first)
    return place_of_first < len(ordered) and ordered[place_of_first] <= last
