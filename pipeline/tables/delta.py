"""What all Delta tables share: files that workers write unseen, and one atomic commit that makes them exist."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction
from pyarrow.fs import FileType

from pipeline.tables import datafiles
from pipeline.tables.datafiles import LostFileError
from pipeline.tables.log import Layout, Transactions, Version, WrittenFile
from pipeline.tables.schema import TableError
from pipeline.tables.storage import delta_options, delta_path, is_url, open_filesystem
from pipeline.tables.stores import one_line

__all__ = ["Change", "Delta", "Layout", "Version", "WrittenFile", "check_path", "conform"]

COMMIT_ATTEMPTS = 5  # each on a fresh look at the log; more than a few lost races mean two runs that fight
RETENTION = {  # nothing expires by itself: generations name versions for as long as they exist
    "delta.enableExpiredLogCleanup": "false",
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}
_READERS = 16  # an object store answers one request in tens of milliseconds
PROPERTY_PREFIX = "shoal."
FEW_COMMITS = 64  # whose log files are read one by one; a whole version is fewer requests than more of them
_MISREAD_BY_DELTALAKE = re.compile(r"%[0-9A-Fa-f]{2}|\\")  # 1.6.6 decodes a local path once more than it encodes it


@dataclass(frozen=True)
class Change:
    """What one commit adds, removes and says of itself."""

    added: Sequence[WrittenFile]
    removed: Sequence[WrittenFile] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


class _NoTableError(TableError):
    """There is no Delta table."""


class Delta:
    """One Delta table. Picklable: a copy in a worker opens its own handle when it first needs the log."""

    def __init__(self, path: str | Path, layout: Layout) -> None:
        self.path = str(path)
        self.layout = layout
        self._handle: DeltaTable | None = None
        self._transactions = Transactions()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_transactions": Transactions()}

    def exists(self) -> bool:
        """Whether there is a Delta table at `path`. Raises TableError if the storage does not say."""
        filesystem, root = open_filesystem(self.path)
        try:
            if filesystem.get_file_info(f"{root}/_delta_log").type == FileType.NotFound:
                return False
            self._handle_at(None)  # deltalake's `is_deltatable` keeps all other threads waiting for the storage
        except _NoTableError:
            return False
        except OSError as error:
            raise TableError(f"{self.path} cannot be read ({one_line(error)}); check the address.") from error
        return True

    def create(self, properties: Mapping[str, str] | None = None) -> None:
        """Make the table with `properties`; one that exists is left as it is, also if another process is faster."""
        check_path(self.path)
        named = {PROPERTY_PREFIX + name: value for name, value in (properties or {}).items()}
        try:
            DeltaTable.create(
                delta_path(self.path),
                self.layout.delta_schema,
                mode="ignore",
                partition_by=None if self.layout.partition is None else [self.layout.partition.name],
                configuration={**RETENTION, **named},
                raise_if_key_not_exists=False,  # our own properties are no Delta keys
                storage_options=delta_options(self.path),
            )
        except (DeltaError, OSError) as error:
            if not self.exists():
                raise TableError(
                    f"No table can be made at {self.path} ({one_line(error)}); check the folder."
                ) from error

    def extend(self) -> None:
        """Add the columns that the layout has and the table, made by an earlier shoal, has not; its rows read as null.

        Raises TableError if that cannot be committed, also after COMMIT_ATTEMPTS lost races.
        """
        refusal = ""
        for _ in range(COMMIT_ATTEMPTS):
            handle = self._handle_at(None)
            present = {each.name for each in handle.schema().fields}
            absent = [each for each in self.layout.delta_schema.fields if each.name not in present]
            if not absent:
                return
            try:
                handle.alter.add_columns(absent, commit_properties=CommitProperties(max_commit_retries=0))
            except CommitFailedError as error:
                refusal = one_line(error)  # somebody was faster, perhaps with the same columns
            except (DeltaError, OSError) as error:
                raise TableError(f"{self.path} cannot be extended ({one_line(error)}); check the folder.") from error
        raise self._outrun(refusal)

    def require_columns(self) -> None:
        """Make the table unless it is there, with all columns of the layout."""
        if not self.exists():
            self.create()
        self.extend()

    @property
    def version(self) -> int:
        """The newest committed version."""
        return self.at().number

    @property
    def properties(self) -> dict[str, str]:
        """What `create` was given."""
        stored = self._handle_at(None).metadata().configuration
        return {
            name.removeprefix(PROPERTY_PREFIX): value
            for name, value in stored.items()
            if name.startswith(PROPERTY_PREFIX)
        }

    def at(self, version: int | None = None) -> Version:
        """A version (default the newest) as the log tells it. Raises TableError if there is none."""
        return Version(self.path, self.layout, self._handle_at(version))

    def files(self, version: int | None = None) -> list[WrittenFile]:
        """Data files of a version (default the newest), from the log alone; order is that of their random names.

        O(files) time and memory; about 1 s for 100,000 files.
        """
        return self.at(version).files()

    def changes(self, since: int, to: int | None = None) -> tuple[list[WrittenFile], list[WrittenFile]]:
        """Files that version `to` (default the newest) has and version `since` has not, and the other way round.

        By path, in no order. Reads one small log file per commit in between if those are few and only added; else the
        two whole versions.
        """
        later = self.at(to)
        between = later.since(since) if later.number - since <= FEW_COMMITS else None
        if between is not None:
            return between.added, []
        after = {file.path: file for file in later.files()}
        before = {file.path: file for file in self.files(since)}
        return (
            [file for path, file in after.items() if path not in before],
            [file for path, file in before.items() if path not in after],
        )

    def write(self, table: pa.Table, partition: str | None = None) -> WrittenFile:
        """Write rows, in the order given, to one Parquet file under a unique name that no reader sees before a commit.

        The file has its name when it is complete. Embeddings are byte-stream-split. Columns that are absent and may be
        null become null. Raises TableError if the columns are not the table's.
        """
        rows = conform(table, self.layout.schema)
        folder = "" if self.layout.partition is None else f"{self.layout.partition.name}={partition}/"
        name = f"{folder}{uuid4().hex}.parquet"
        filesystem, root = open_filesystem(self.path)
        size = datafiles.write(filesystem, f"{root}/{name}", rows, self.layout.encodings)
        bounds = {column: pc.min_max(rows[column]).as_py() for column in self.layout.statistics}
        minimum, maximum = ({column: bound[side] for column, bound in bounds.items()} for side in ("min", "max"))
        return WrittenFile(name, size, rows.num_rows, partition, minimum, maximum)

    def discard(self, files: Sequence[WrittenFile]) -> None:
        """Delete files that were written and will not be committed."""
        filesystem, root = open_filesystem(self.path)
        for file in files:
            filesystem.delete_file(f"{root}/{file.path}")

    def read(self, file: str, rows: int | None, columns: Sequence[str] | None = None) -> pa.Table:
        """One data file in its order; columns that it was written without are null.

        Raises LostFileError if it is gone, damaged or has another number of rows than `rows` (None: any), TableError
        where the storage refuses.
        """
        filesystem, root = open_filesystem(self.path)
        try:
            with filesystem.open_input_file(f"{root}/{file}") as source:
                table = pq.ParquetFile(source).read(columns=None if columns is None else list(columns))
        except (pa.ArrowException, OSError) as error:
            is_lost = isinstance(error, FileNotFoundError | pa.ArrowInvalid)
            raise (LostFileError if is_lost else TableError)(
                f"Data file {file} of {self.path} cannot be read ({one_line(error)}); restore it or rebuild the table."
            ) from error
        if rows is not None and table.num_rows != rows:
            raise LostFileError(
                f"Data file {file} of {self.path} has {table.num_rows} rows but its log entry says {rows}; "
                "restore the file or rebuild the table."
            )
        return self._completed(table, columns)

    def read_all(self, files: Sequence[WrittenFile]) -> pa.Table:
        """Rows of several data files, one after the other."""
        with ThreadPoolExecutor(_READERS) as threads:
            tables = list(threads.map(lambda file: self.read(file.path, file.rows), files))
        return pa.concat_tables(tables) if tables else self.layout.schema.empty_table()

    def commit(
        self, plan: Callable[[list[WrittenFile]], Change | None], transaction: tuple[str, int] | None = None
    ) -> int:
        """`commit_on` for a plan that wants to know all files: O(files) even for a small change."""
        return self.commit_on(lambda version: plan(version.files()), transaction)

    def commit_on(self, plan: Callable[[Version], Change | None], transaction: tuple[str, int] | None = None) -> int:
        """Make `plan`'s change the next version, or nothing; returns the version that has it.

        `plan` decides on the newest version, and Delta refuses the commit if anybody commits between that look and the
        write; then `plan` decides again. It returns None when there is nothing to do, and raises to refuse. A
        `transaction` (application, number) that the log has, or has a higher number of, is done already and `plan` is
        not asked. Raises TableError after COMMIT_ATTEMPTS lost races.
        """
        refusal = "the log was read again by this process"
        for _ in range(COMMIT_ATTEMPTS):
            handle = self._handle_at(None)  # refreshed here only: one state is read, decided on and committed on
            version = Version(self.path, self.layout, handle)
            is_done = transaction is not None and self._transactions.has(transaction, version)
            change = None if is_done else plan(version)
            if change is None:
                return version.number
            if handle.version() != version.number:
                continue  # the handle is shared: another thread has moved it past what `plan` decided on
            try:
                self._commit(handle, change, transaction)
                return version.number + 1  # this or nothing, without retries; the handle itself is not always moved
            except CommitFailedError as error:
                refusal = one_line(error)
            except (DeltaError, OSError) as error:
                raise TableError(
                    f"{self.path} cannot be committed to ({one_line(error)}); check the folder."
                ) from error
        raise self._outrun(refusal)

    def checkpoint(self) -> str:
        """Sum the log up in a checkpoint of the newest version; its file name in `_delta_log`."""
        handle = self._handle_at(None)
        try:
            handle.create_checkpoint()
        except (DeltaError, OSError) as error:
            raise TableError(f"{self.path} cannot be checkpointed ({one_line(error)}); check the folder.") from error
        return f"{handle.version():020d}.checkpoint.parquet"

    def _outrun(self, refusal: str) -> TableError:
        return TableError(
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

    def _completed(self, table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
        names = self.layout.schema.names if columns is None else columns
        for name in names:
            if name not in table.column_names:
                table = table.append_column(name, pa.nulls(table.num_rows, self.layout.schema.field(name).type))
        return table.select(names).replace_schema_metadata(None)

    def _handle_at(self, version: int | None) -> DeltaTable:
        """A handle on a version, or the one handle that is kept at the newest."""
        try:
            if version is not None:
                return DeltaTable(delta_path(self.path), version=version, storage_options=delta_options(self.path))
            if self._handle is None:
                self._handle = DeltaTable(delta_path(self.path), storage_options=delta_options(self.path))
            else:
                self._handle.update_incremental()
        except TableNotFoundError as error:
            raise _NoTableError(
                f"There is no Delta table at {self.path}; check the path, or run the step that makes it."
            ) from error
        except (DeltaError, OSError) as error:
            wanted = "" if version is None else f" at version {version}"
            raise TableError(
                f"{self.path} cannot be read{wanted} ({one_line(error)}); check the version and the folder."
            ) from error
        return self._handle


def check_path(path: str | Path) -> None:
    """Raise TableError for a local path that deltalake would take for another one."""
    found = None if is_url(path) else _MISREAD_BY_DELTALAKE.search(str(path))
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
        raise TableError(f"Rows do not have the table's types ({one_line(error)}); expected {schema.names}.") from error
