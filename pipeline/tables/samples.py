"""The samples table: one row per sample, embeddings and rejects of a shard in the same commit."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from pipeline.tables.delta import Change, Delta, Layout, Version, WrittenFile, conform
from pipeline.tables.sample_files import SampleFile, check_one_shard_each, of_listing, of_written, shard_of
from pipeline.tables.schema import EMBEDDING, OK, REJECTED, SAMPLES, STATUS, Reason, TableError
from pipeline.tables.scrub import scrub
from pipeline.tables.sweep import delete, unused

__all__ = ["LAYOUT", "SampleFile", "SamplesTable", "TableProperties", "embedding_array", "embedding_matrix"]

LAYOUT = Layout(SAMPLES, statistics=("shard", "key", "offset"), partition=STATUS)


class TableProperties(BaseModel):
    """Where the embeddings of a table come from; the same for all its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dimension: int
    backbone: str
    backbone_digest: str
    l2_normalised: bool
    preprocessing: dict[str, Any]

    def stored(self) -> dict[str, str]:
        """As Delta table properties: JSON per field, readable in any Delta tool."""
        return {name: json.dumps(value, sort_keys=True) for name, value in self.model_dump(mode="json").items()}

    @classmethod
    def from_stored(cls, stored: Mapping[str, str]) -> TableProperties:
        """The inverse of `stored`."""
        return cls.model_validate({name: json.loads(value) for name, value in stored.items()})


class SamplesTable:
    """Picklable; workers call `write`, and the driver calls `commit`.

    Keep one for many commits: it remembers which shards are done, and reads only what the log says since.
    """

    def __init__(self, path: str | Path, properties: TableProperties, delta: Delta | None = None) -> None:
        self.path = str(path)
        self.properties = properties
        self._delta = delta or Delta(path, LAYOUT)
        self._done = _DoneShards()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_done": _DoneShards()}

    @classmethod
    def create(cls, path: str | Path, properties: TableProperties) -> SamplesTable:
        """Make the table, or open the one that is there if it has the same properties; TableError if not."""
        Delta(path, LAYOUT).create(properties.stored())
        table = cls.open(path)
        table.require(properties)
        return table

    @classmethod
    def open(cls, path: str | Path) -> SamplesTable:
        """Raises TableError if there is no samples table at `path`."""
        delta = Delta(path, LAYOUT)
        stored = delta.properties
        try:
            return cls(path, TableProperties.from_stored(stored), delta)
        except ValueError as error:
            raise TableError(
                f"The Delta table at {path} has the properties {sorted(stored)} but a samples table of shoal has "
                f"{sorted(TableProperties.model_fields)}; give a table that shoal wrote."
            ) from error

    def require(self, properties: TableProperties) -> None:
        """Raise TableError unless rows with `properties` may join this table; names both sides of each difference."""
        here, there = (each.model_dump(mode="json") for each in (self.properties, properties))
        differences = [f"{name} {here[name]!r} against {there[name]!r}" for name in here if here[name] != there[name]]
        if differences:
            raise TableError(
                f"The table at {self.path} and the new rows differ: {', '.join(differences)}; "
                "use the table's settings, or write to a new table."
            )

    @property
    def version(self) -> int:
        """The newest committed version."""
        return self._delta.version

    def files(self, status: str = OK, version: int | None = None) -> list[SampleFile]:
        """Data files in canonical order: by shard, offset and key, however they were committed. From the log alone."""
        return self.files_by_status(version).get(status, [])

    def files_by_status(self, version: int | None = None) -> dict[str, list[SampleFile]]:
        """As `files`, for all statuses at the cost of one; REMOVED only where there are any."""
        found: dict[str, list[SampleFile]] = {OK: [], REJECTED: []}
        listing = self._delta.at(version).listing()
        check_one_shard_each(listing)
        for file, status in zip(of_listing(listing), listing["partition"].to_pylist(), strict=True):
            found.setdefault(status, []).append(file)
        return {status: sorted(files, key=lambda file: file.order) for status, files in found.items()}

    def changes(self, since: int, to: int | None = None) -> tuple[list[SampleFile], list[SampleFile]]:
        """`ok` files that version `to` (default the newest) has and version `since` has not, and the other way round.

        Both in canonical order. From the log alone: O(what was added) after few commits that only added, else O(files).
        """
        added, removed = (
            sorted((of_written(file) for file in files if file.partition == OK), key=lambda file: file.order)
            for files in self._delta.changes(since, to)
        )
        return added, removed

    def done_shards(self, version: int | None = None) -> set[str]:
        """Shards with rows of either status. From the statistics in the log, so O(files) and no data is read."""
        done = self._done if version is None else _DoneShards()
        return set(done.at(self._delta.at(version)))

    def count(self, status: str = OK, version: int | None = None) -> int:
        """Rows, from the log alone."""
        listing = self._delta.at(version).listing()
        return int(pc.sum(listing["rows"].filter(pc.equal(listing["partition"], status)), min_count=0).as_py())

    def write(self, table: pa.Table, status: str = OK) -> WrittenFile:
        """Write rows of one shard, in the order given, to a file that no reader sees before `commit`.

        `table` has columns SAMPLES; nullable ones may be absent. Raises TableError unless all rows are of one shard
        and, for `ok`, every embedding is finite and of the table's dimension; for `rejected`, every reason is a Reason.
        """
        rows = conform(table, SAMPLES)
        shards = pc.unique(rows["shard"]).to_pylist()
        if len(shards) != 1:
            raise TableError(f"A data file holds rows of exactly one shard but {len(shards)} were given: {shards[:3]}.")
        if status == OK:
            self._check_embeddings(rows)
        else:
            _check_reasons(rows)
        return self._delta.write(rows, status)

    def refuse_done(self, shards: AbstractSet[str]) -> None:
        """Raise TableError if the newest version has rows of any of these, as `commit` would."""
        _refuse_done(shards, self.done_shards())

    def commit(
        self,
        files: Sequence[WrittenFile],
        transaction: tuple[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """Make all `files` visible at once, and return the version that has them.

        All files of a shard, of both statuses, belong into the same commit: a shard is done when it has any row. Two
        writers of the same shard therefore cannot both win: whoever is second finds the shard done, on the very state
        of the log that it would commit on, and gets a TableError. With a `transaction` (application, number) that the
        log already has, or a higher number of it, nothing is committed: a retry after a crash is one commit.

        Beyond what deltalake does itself (0.2 s with 100,000 files), the first commit of an object lists the table, and
        the others cost what was added since.
        """
        shards = {shard_of(file) for file in files}

        def plan(version: Version) -> Change:
            _refuse_done(shards, self._done.at(version))
            return Change(files, metadata=metadata or {})

        return self._delta.commit_on(plan, transaction)

    def replace(
        self,
        removed: Sequence[SampleFile],
        added: Sequence[WrittenFile],
        metadata: Mapping[str, str] | None = None,
    ) -> int:
        """Have `added`, which `write` gave, take the place of `removed` in one commit; returns the version that has it.

        `removed` may be of both statuses. Raises TableError, and changes nothing, if one of them is not in the newest
        version. O(files).
        """

        def plan(present: list[WrittenFile]) -> Change:
            by_path = {file.path: file for file in present}
            gone = [file.path for file in removed if file.path not in by_path]
            if gone:
                raise TableError(
                    f"This writer lost a race: {len(gone)} of {len(removed)} files to be replaced are no longer in "
                    f"{self.path}, first {gone[0]}; nothing was changed, run again."
                )
            return Change(added, [by_path[file.path] for file in removed], metadata or {})

        return self._delta.commit(plan)

    def scrub(self, keys: Collection[str], versions: Collection[int] = ()) -> None:
        """Delete what only earlier versions have, but for `versions`, and take the `keys` in it out of the log.

        For keys that the newest version and `versions` have no longer; see `pipeline.tables.scrub`. What no version
        ever had stays: a writer may be about to commit it.
        """
        needed = {file.path for version in set(versions) for file in self._delta.files(version)}
        delete(self._delta, unused(self._delta, needed, self._delta.version))
        scrub(self._delta, keys, versions)

    def discard(self, files: Sequence[WrittenFile]) -> None:
        """Delete files that were written and will not be committed."""
        self._delta.discard(files)

    def withdraw(self, files: Sequence[WrittenFile]) -> None:
        """`discard` what a commit refused, but not what it committed all the same where only its answer was lost."""
        committed = {file.path for of_status in self.files_by_status().values() for file in of_status}
        self._delta.discard([file for file in files if file.path not in committed])

    def read(self, file: SampleFile, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of one file in their order; TableError if the file is gone or damaged."""
        return self._delta.read(file.path, file.rows, columns)

    def rejects(self, version: int | None = None) -> pa.Table:
        """All rejected rows, in canonical order of their files."""
        tables = [self.read(file) for file in self.files(REJECTED, version)]
        return pa.concat_tables(tables) if tables else SAMPLES.empty_table()

    def _check_embeddings(self, rows: pa.Table) -> None:
        x_ND = embedding_matrix(rows)
        if x_ND.shape[1] != self.properties.dimension:
            raise TableError(
                f"Embeddings are {x_ND.shape[1]}-d but the table at {self.path} holds {self.properties.dimension}-d; "
                "use the table's backbone, or write to a new table."
            )
        if not np.isfinite(x_ND).all():
            raise TableError(f"An ok row has NaN or infinity in it; reject it as {Reason.non_finite_embedding}.")


class _DoneShards:
    """Which shards have rows, brought from one version to a later one by what was added in between."""

    def __init__(self) -> None:
        self._version: int | None = None
        self._shards: set[str] = set()

    def at(self, version: Version) -> AbstractSet[str]:
        """Raises TableError if a file has not exactly one shard."""
        since = None if self._version is None else version.since(self._version)
        if since is None:
            listing = version.listing()
            check_one_shard_each(listing)
            self._shards = set(listing["min.shard"].to_pylist())
        else:
            self._shards.update(shard_of(file) for file in since.added)
        self._version = version.number
        return self._shards


def embedding_matrix(table: pa.Table) -> np.ndarray:
    """The `embedding` column as float32 (N, D): a read-only view of the Arrow buffer, copied only if in several chunks.

    Raises TableError if an embedding is null, or the embeddings have different lengths.
    """
    blocks = [_matrix(chunk) for chunk in table["embedding"].chunks if len(chunk)]
    if not blocks:
        return np.empty((0, 0), np.float32)
    if len({block.shape[1] for block in blocks}) > 1:
        raise TableError(f"Embeddings have different lengths: {sorted({block.shape[1] for block in blocks})}.")
    return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)


def embedding_array(x_ND: np.ndarray) -> pa.ListArray:
    """Rows of a float32 matrix as a list array over the same buffer (no copy if contiguous). N · D < 2³¹."""
    rows, dimension = x_ND.shape
    offsets = np.arange(rows + 1, dtype=np.int64) * dimension
    if offsets[-1] >= 2**31:
        raise TableError(f"{rows} × {dimension} values do not fit one list array (2³¹); write fewer rows per file.")
    values = pa.array(np.ascontiguousarray(x_ND, dtype=np.float32).reshape(-1))
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), values, type=EMBEDDING)


def _matrix(chunk: pa.ListArray) -> np.ndarray:
    offsets = chunk.offsets.to_numpy()
    lengths = np.diff(offsets)
    if chunk.null_count or (lengths != lengths[0]).any():
        found = "null" if chunk.null_count else f"{lengths.min()} to {lengths.max()} long"
        raise TableError(f"Embeddings must all be equally long and not null, but some are {found}.")
    values = chunk.values.slice(offsets[0], offsets[-1] - offsets[0])
    return np.asarray(values.to_numpy(zero_copy_only=values.null_count == 0).reshape(len(chunk), -1))


def _refuse_done(shards: AbstractSet[str], done: AbstractSet[str]) -> None:
    lost = sorted(shards & done)
    if lost:
        raise TableError(
            f"This writer lost a race: {len(lost)} of {len(shards)} shards were committed by another one, first "
            f"{lost[0]}; nothing was added, run again to continue with what is left."
        )


def _check_reasons(rows: pa.Table) -> None:
    unknown = set(pc.unique(rows["reason"]).to_pylist()) - set(Reason)
    if unknown:
        raise TableError(f"A rejected row has the reason {sorted(map(str, unknown))}; expected one of {list(Reason)}.")
