"""What the log of a Delta table says of its files: those of one version, and what changed since another."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable, Schema

from pipeline.tables.storage import open_filesystem

_HARMLESS = {"add", "commitInfo", "txn"}  # what a commit may do without taking anything from the versions before


@dataclass(frozen=True)
class Layout:
    """The type of a table on disk: columns of a data file, partition column, and columns whose bounds the log keeps.

    `repeated` names the integer columns with few distinct values, which are stored as a dictionary.
    """

    schema: pa.Schema
    statistics: tuple[str, ...]
    partition: pa.Field | None = None
    repeated: tuple[str, ...] = ()

    @property
    def encodings(self) -> dict[str, Any]:
        """How Parquet encodes the columns: a dictionary for what repeats itself, split bytes for embeddings."""
        floats = [each.name for each in self.schema if each.type == pa.list_(pa.float32())]
        strings = [each.name for each in self.schema if each.type == pa.string() and each.name != "key"]
        return {
            "use_dictionary": [*strings, *self.repeated] or False,
            "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in floats} or None,
        }

    @property
    def delta_schema(self) -> Schema:
        """Data columns and the partition column."""
        return Schema.from_arrow(self.schema if self.partition is None else self.schema.append(self.partition))


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A data file as the log describes it; it exists for readers once a commit names it."""

    path: str  # relative to the table
    size: int  # bytes
    rows: int
    partition: str | None
    minimum: Mapping[str, Any]  # by statistics column; None where all values are null
    maximum: Mapping[str, Any]


@dataclass(frozen=True)
class Since:
    """What commits that only added did, together."""

    added: list[WrittenFile]
    transactions: dict[str, int]  # by application, the newest number


class Version:
    """One version of a table, and nothing that was committed after it; to be used before its handle moves on."""

    def __init__(self, path: str, layout: Layout, handle: DeltaTable) -> None:
        self.number = int(handle.version())
        self._path = path
        self._layout = layout
        self._handle = handle
        self._since: dict[int, Since | None] = {}

    def listing(self) -> pa.Table:
        """A row per data file: path, size, rows, partition, and `min.` and `max.` of each statistics column.

        In no order. From the log alone, without a Python object per file: 0.2 s for 100,000.
        """
        stream = self._handle.get_add_actions(flatten=True)
        found = pa.RecordBatchReader.from_stream(stream).read_all()  # `pa.table` would import pandas
        partition = self._layout.partition
        names = {"path": "path", "size_bytes": "size", "num_records": "rows"}
        names |= {} if partition is None else {f"partition.{partition.name}": "partition"}
        names |= {f"{side}.{name}": f"{side}.{name}" for side in ("min", "max") for name in self._layout.statistics}
        columns = [found[name] if name in found.column_names else pa.nulls(found.num_rows) for name in names]
        listing = pa.table(columns, names=list(names.values()))
        return listing if partition is not None else listing.append_column("partition", pa.nulls(found.num_rows))

    def files(self) -> list[WrittenFile]:
        """Data files, in no order; 1 s for 100,000."""
        listing = self.listing().to_pydict()
        minimum, maximum = (
            zip(*(listing[f"{side}.{name}"] for name in self._layout.statistics), strict=True)
            for side in ("min", "max")
        )
        return [
            WrittenFile(path, size, rows, partition, self._named(low), self._named(high))
            for path, size, rows, partition, low, high in zip(
                *(listing[name] for name in ("path", "size", "rows", "partition")), minimum, maximum, strict=True
            )
        ]

    def transaction(self, application: str) -> int | None:
        """The newest number of an application; reads all of the log since its last checkpoint."""
        number: int | None = self._handle.transaction_version(application)
        return number

    def since(self, number: int) -> Since | None:
        """What commits after version `number` did, if they only added; else None, and the methods above have to tell.

        Reads one small log file per commit: O(what they added), whatever the table holds.
        """
        if number not in self._since:
            self._since[number] = self._read_since(number) if number <= self.number else None
        return self._since[number]

    def _read_since(self, number: int) -> Since | None:
        since = Since([], {})
        for version in range(number + 1, self.number + 1):
            actions = self._actions(version)
            if actions is None:
                return None
            since.added.extend(self._added(action["add"]) for action in actions if "add" in action)
            since.transactions.update(
                (action["txn"]["appId"], action["txn"]["version"]) for action in actions if "txn" in action
            )
        return since

    def _actions(self, version: int) -> list[Mapping[str, Any]] | None:
        filesystem, root = open_filesystem(self._path)
        try:
            with filesystem.open_input_stream(f"{root}/_delta_log/{version:020d}.json", compression=None) as source:
                actions = [json.loads(line) for line in source.read().splitlines() if line]
        except (OSError, ValueError):  # another tool has cleaned the log up
            return None
        return actions if all(set(action) <= _HARMLESS for action in actions) else None

    def _added(self, action: Mapping[str, Any]) -> WrittenFile:
        statistics = json.loads(action.get("stats") or "{}")
        low, high = (statistics.get(side, {}) for side in ("minValues", "maxValues"))
        partition = self._layout.partition
        return WrittenFile(
            unquote(action["path"]),
            action["size"],
            statistics.get("numRecords"),
            None if partition is None else action["partitionValues"].get(partition.name),
            {name: low.get(name) for name in self._layout.statistics},
            {name: high.get(name) for name in self._layout.statistics},
        )

    def _named(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self._layout.statistics, values, strict=True))


class Transactions:
    """The newest number of every application that was asked for, brought from one version to a later one."""

    def __init__(self) -> None:
        self._version: int | None = None
        self._newest: dict[str, int | None] = {}

    def has(self, transaction: tuple[str, int], version: Version) -> bool:
        """Whether `version` has this (application, number), or a higher number of the application."""
        application, number = transaction
        since = None if self._version is None else version.since(self._version)
        self._newest = {} if since is None else {**self._newest, **since.transactions}
        self._version = version.number
        if application not in self._newest:
            self._newest[application] = version.transaction(application)
        newest = self._newest[application]
        return newest is not None and newest >= number
