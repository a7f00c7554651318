"""What all Delta tables share: files that workers write unseen, and one atomic commit that makes them exist."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from pipeline.tables.schema import TableError
from pipeline.tables.storage import open_filesystem

COMMIT_ATTEMPTS = 5  # each on a fresh look at the log; more than a few lost races mean two runs that fight
RETENTION = {  # nothing expires by itself: generations name versions for as long as they exist
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}
PROPERTY_PREFIX = "shoal."
_MISREAD_BY_DELTALAKE = re.compile(r"%[0-9A-Fa-f]{2}|\\")  # 1.6.6 decodes a local path once more than it encodes it


@dataclass(frozen=True)
class Layout:
    """The type of a table on disk: columns of a data file, partition column, and columns whose bounds the log keeps."""

    schema: pa.Schema
    statistics: tuple[str, ...]
    partition: pa.Field | None = None

    @property
    def delta_schema(self) -> Schema:
        """Data columns and the partition column."""
        return Schema.from_arrow(self.schema if self.partition is None else self.schema.append(self.partition))


@dataclass(frozen=True)
class WrittenFile:
    """A data file as the log describes it; it exists for readers once a commit names it."""

    path: str  # relative to the table
    size: int  # bytes
    rows: int
    partition: str | None
    minimum: Mapping[str, Any]  # by statistics column; None where all values are null
    maximum: Mapping[str, Any]


@dataclass(frozen=True)
class Change:
    """What one commit adds, removes and says of itself."""

    added: Sequence[WrittenFile]
    removed: Sequence[WrittenFile] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


class Delta:
    """One Delta table. Picklable: a copy in a worker opens its own handle when it first needs the log."""

    def __init__(self, path: str | Path, layout: Layout) -> None:
        self.path = str(path)
        self.layout = layout
        self._handle: DeltaTable | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None}

    def exists(self) -> bool:
        """Whether there is a Delta table at `path`."""
        return bool(DeltaTable.is_deltatable(self.path))

    def create(self, properties: Mapping[str, str] | None = None) -> None:
        """Make the table with `properties`; one that exists is left as it is, also if another process is faster."""
        check_path(self.path)
        named = {PROPERTY_PREFIX + name: value for name, value in (properties or {}).items()}
        try:
            DeltaTable.create(
                self.path,
                self.layout.delta_schema,
                mode="ignore",
                partition_by=None if self.layout.partition is None else [self.layout.partition.name],
                configuration={**RETENTION, **named},
                raise_if_key_not_exists=False,  # our own properties are no Delta keys
            )
        except (DeltaError, OSError) as error:
            if not self.exists():
                raise TableError(f"No table can be made at {self.path} ({_line(error)}); check the folder.") from error

    @property
    def version(self) -> int:
        """The newest committed version."""
        return int(self._at(None).version())

    @property
    def properties(self) -> dict[str, str]:
        """What `create` was given."""
        stored = self._at(None).metadata().configuration
        return {
            name.removeprefix(PROPERTY_PREFIX): value
            for name, value in stored.items()
            if name.startswith(PROPERTY_PREFIX)
        }

    def files(self, version: int | None = None) -> list[WrittenFile]:
        """Data files of a version (default the newest), from the log alone; order is that of their random names.

        O(files) time and memory; about 1 s for 100,000 files.
        """
        return _files_of(self._at(version), self.layout)

    def write(self, table: pa.Table, partition: str | None = None) -> WrittenFile:
        """Write rows, in the order given, to one Parquet file under a unique name that no reader sees before a commit.

        Embeddings are byte-stream-split and zstd-compressed. Columns that are absent and may be null become null.
        Raises TableError if the columns are not the table's.
        """
        rows = conform(table, self.layout.schema)
        folder = "" if self.layout.partition is None else f"{self.layout.partition.name}={partition}/"
        name = f"{folder}{uuid4().hex}.parquet"
        filesystem, root = open_filesystem(self.path)
        filesystem.create_dir(f"{root}/{folder}", recursive=True)
        with filesystem.open_output_stream(f"{root}/{name}") as sink:
            pq.write_table(rows, sink, compression="zstd", **_encodings(rows.schema))
            size = sink.tell()
        bounds = {column: pc.min_max(rows[column]).as_py() for column in self.layout.statistics}
        minimum, maximum = ({column: bound[side] for column, bound in bounds.items()} for side in ("min", "max"))
        return WrittenFile(name, size, rows.num_rows, partition, minimum, maximum)

    def discard(self, files: Sequence[WrittenFile]) -> None:
        """Delete files that were written and will not be committed."""
        filesystem, root = open_filesystem(self.path)
        for file in files:
            filesystem.delete_file(f"{root}/{file.path}")

    def read(self, file: str, rows: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One data file in its order. Raises TableError if it is gone, damaged or has another number of rows."""
        filesystem, root = open_filesystem(self.path)
        try:
            with filesystem.open_input_file(f"{root}/{file}") as source:
                table = pq.ParquetFile(source).read(columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            raise TableError(
                f"Data file {file} of {self.path} cannot be read ({_line(error)}); restore it or rebuild the table."
            ) from error
        if table.num_rows != rows:
            raise TableError(
                f"Data file {file} of {self.path} has {table.num_rows} rows but its log entry says {rows}; "
                "restore the file or rebuild the table."
            )
        return table.replace_schema_metadata(None)

    def read_all(self, files: Sequence[WrittenFile]) -> pa.Table:
        """Rows of several data files, one after the other."""
        tables = [self.read(file.path, file.rows) for file in files]
        return pa.concat_tables(tables) if tables else self.layout.schema.empty_table()

    def commit(
        self, plan: Callable[[list[WrittenFile]], Change | None], transaction: tuple[str, int] | None = None
    ) -> int:
        """Make `plan`'s change the next version, or nothing; returns the version that has it.

        `plan` decides on the files that the newest version has, and Delta refuses the commit if anybody commits between
        that look and the write; then `plan` decides again. It returns None when there is nothing to do, and raises to
        refuse. A `transaction` (application, number) that the log has, or has a higher number of, is done already and
        `plan` is not asked. Raises TableError after COMMIT_ATTEMPTS lost races.
        """
        refusal = ""
        for _ in range(COMMIT_ATTEMPTS):
            handle = self._at(None)  # refreshed here only: one state is read, decided on and committed on
            version = int(handle.version())
            change = None if _is_done(handle, transaction) else plan(_files_of(handle, self.layout))
            if change is None:
                return version
            try:
                self._commit(handle, change, transaction)
                return version + 1  # this or nothing, without retries; the handle itself is not always moved
            except CommitFailedError as error:
                refusal = _line(error)
            except (DeltaError, OSError) as error:
                raise TableError(f"{self.path} cannot be committed to ({_line(error)}); check the folder.") from error
        raise TableError(
            f"This writer lost a race {COMMIT_ATTEMPTS} times: others keep committing to {self.path} ({refusal}); "
            "let them finish, then run again."
        )

    def _commit(self, handle: DeltaTable, change: Change, transaction: tuple[str, int] | None) -> None:
        now_ms = int(time.time() * 1000)
        handle.create_write_transaction(
            [
                *(self._add(file, now_ms) for file in change.added),
                *(self._remove(file, now_ms) for file in change.removed),
            ],
            mode="append",
            schema=self.layout.delta_schema,
            partition_by=list(handle.metadata().partition_columns),
            commit_properties=CommitProperties(
                custom_metadata=dict(change.metadata),
                max_commit_retries=0,  # Delta's own retries would let two blind appends both win
                app_transactions=None if transaction is None else [Transaction(*transaction)],
            ),
        )

    def _add(self, file: WrittenFile, now_ms: int) -> AddAction:
        statistics = {
            "numRecords": file.rows,
            "minValues": {name: value for name, value in file.minimum.items() if value is not None},
            "maxValues": {name: value for name, value in file.maximum.items() if value is not None},
        }
        return AddAction(file.path, file.size, self._partition(file), now_ms, True, json.dumps(statistics))

    def _remove(self, file: WrittenFile, now_ms: int) -> RemoveAction:
        return RemoveAction(file.path, True, now_ms, file.size, self._partition(file))

    def _partition(self, file: WrittenFile) -> dict[str, str | None]:
        return {} if self.layout.partition is None else {self.layout.partition.name: file.partition}

    def _at(self, version: int | None) -> DeltaTable:
        """A handle on a version, or the one handle that is kept at the newest."""
        try:
            if version is not None:
                return DeltaTable(self.path, version=version)
            if self._handle is None:
                self._handle = DeltaTable(self.path)
            else:
                self._handle.update_incremental()
        except TableNotFoundError as error:
            raise TableError(
                f"There is no Delta table at {self.path}; check the path, or run the step that makes it."
            ) from error
        except (DeltaError, OSError) as error:
            wanted = "" if version is None else f" at version {version}"
            raise TableError(
                f"{self.path} cannot be read{wanted} ({_line(error)}); check the version and the folder."
            ) from error
        return self._handle


def check_path(path: str | Path) -> None:
    """Raise TableError for a local path that deltalake would take for another one."""
    found = _MISREAD_BY_DELTALAKE.search(str(path))
    if found:
        raise TableError(f"{path} contains {found[0]!r}, which Delta Lake would decode; choose a folder without it.")


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns, types and order of `schema`; absent nullable columns become null."""
    unknown = sorted(set(table.schema.names) - set(schema.names))
    absent = [each.name for each in schema if each.name not in table.schema.names and not each.nullable]
    if unknown or absent:
        raise TableError(f"Rows have columns {unknown} too many and {absent} too few; expected {schema.names}.")
    columns = [
        table[each.name] if each.name in table.schema.names else pa.nulls(table.num_rows, each.type) for each in schema
    ]
    try:
        return pa.table(columns, names=schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise TableError(f"Rows do not have the table's types ({_line(error)}); expected {schema.names}.") from error


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    floats = [each.name for each in schema if each.type == pa.list_(pa.float32())]
    repeated = [each.name for each in schema if each.type == pa.string() and each.name != "key"]
    return {
        "use_dictionary": repeated or False,
        "column_encoding": {f"{name}.list.element": "BYTE_STREAM_SPLIT" for name in floats} or None,
    }


def _is_done(handle: DeltaTable, transaction: tuple[str, int] | None) -> bool:
    if transaction is None:
        return False
    app, number = transaction
    done = handle.transaction_version(app)
    return done is not None and done >= number


def _files_of(handle: DeltaTable, layout: Layout) -> list[WrittenFile]:
    actions = pa.table(handle.get_add_actions(flatten=True))
    rows = actions.num_rows

    def column(name: str) -> list[Any]:
        return list(actions[name].to_pylist()) if name in actions.column_names else [None] * rows

    partition = [None] * rows if layout.partition is None else column(f"partition.{layout.partition.name}")
    minimum, maximum = (
        zip(*(column(f"{side}.{name}") for name in layout.statistics), strict=True) for side in ("min", "max")
    )
    return [
        WrittenFile(path, size, records, value, _named(layout, low), _named(layout, high))
        for path, size, records, value, low, high in zip(
            column("path"), column("size_bytes"), column("num_records"), partition, minimum, maximum, strict=True
        )
    ]


def _named(layout: Layout, values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(layout.statistics, values, strict=True))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
