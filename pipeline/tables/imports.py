"""Embeddings that another tool computed become rows of a samples table: `shoal import`."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.progress import Progress, silent
from pipeline.tables.collection import MARKER, Collection
from pipeline.tables.delta import WrittenFile
from pipeline.tables.formats import READERS, read_embeddings
from pipeline.tables.samples import SamplesTable, TableProperties, embedding_array, embedding_matrix
from pipeline.tables.schema import OK, REJECTED, SAMPLES, SHARDS, Reason, TableError
from pipeline.tables.shards import ShardRecord
from pipeline.tables.storage import is_url

__all__ = ["ImportSummary", "import_files", "local_source", "read_embeddings"]


@dataclass(frozen=True)
class ImportSummary:
    """What an import did. Counts are of this call; `version` is that of the samples table afterwards."""

    files: int  # imported now
    skipped: int  # imported before, and unchanged
    rows: int
    rejects: dict[str, int]  # by reason
    dimension: int
    version: int


def import_files(
    paths: Sequence[str | Path],
    collection_path: str | Path,
    backbone: str = "imported",
    l2_normalise: bool = False,
    on_progress: Progress = silent,
) -> ImportSummary:
    """Import files that `read_embeddings` reads, or all of them in folders, into a collection that is made if need be.

    The canonical path of a file is its shard; each file is one commit, so a killed import continues where it stopped,
    and files that were imported before are skipped. A row that is null, not finite, or to be normalised and of norm 0
    is rejected as non_finite_embedding, and the second row with a key as duplicate_key. A file without rows is recorded
    as one reject, empty_shard. Raises TableError if a file cannot be read, has another dimension than the table, or
    changed since it was imported; files before it stay imported. Memory: a few blocks of rows, and about 100 bytes per
    row of one file for its keys.
    """
    files = _list_files(paths)
    run = _Import(Collection.create(collection_path), backbone, l2_normalise)
    for done, file in enumerate(files):
        on_progress("import", done, len(files))
        run.take(file)
    run.finish()
    on_progress("import", len(files), len(files))
    return run.summary()


class _Import:
    """The state of one import: the tables, and what was counted."""

    def __init__(self, collection: Collection, backbone: str, l2_normalise: bool) -> None:
        self.collection = collection
        self.backbone = backbone
        self.l2_normalise = l2_normalise
        self.samples = collection.samples if collection.has_samples() else None
        self.known = collection.shards.records()
        self.done = self.samples.done_shards() if self.samples else set()
        self.empty: list[Path] = []
        self.files = self.skipped = self.rows = 0
        self.rejects: Counter[str] = Counter()

    def take(self, file: Path) -> None:
        """Import one file, or skip it."""
        if str(file) in self.done:
            self._skip(file)
            return
        blocks = read_embeddings(file)
        first = next(blocks, None)
        if first is None:
            self.empty.append(file)  # its dimension is unknown; the others may make the table
            return
        self._import(self._table(file, len(first["embedding"][0])), file, chain([first], blocks))

    def finish(self) -> None:
        """Record the files without rows."""
        if self.empty and self.samples is None:
            raise TableError(f"No row in {len(self.empty)} files, first {self.empty[0]}; give files with embeddings.")
        for file in self.empty:
            row = {"key": "", "shard": str(file), "reason": Reason.empty_shard, "detail": "the file has no rows"}
            table = self._opened()
            self._commit(table, file, [table.write(pa.Table.from_pylist([row], schema=SAMPLES), REJECTED)])
            self.rejects[Reason.empty_shard] += 1

    def summary(self) -> ImportSummary:
        """What was done."""
        table = self._opened()
        return ImportSummary(
            self.files, self.skipped, self.rows, dict(self.rejects), table.properties.dimension, table.version
        )

    def _opened(self) -> SamplesTable:
        return self.samples or self.collection.samples

    def _table(self, file: Path, dimension: int) -> SamplesTable:
        wanted = TableProperties(
            dimension=dimension,
            backbone=self.backbone,
            backbone_digest="",  # nobody here knows what computed them
            l2_normalised=self.l2_normalise,
            preprocessing={},
        )
        try:
            self.samples = self.collection.create_samples(wanted)
        except TableError as error:
            raise TableError(f"{file} cannot be imported here: {error}") from error
        return self.samples

    def _import(self, table: SamplesTable, file: Path, blocks: Iterator[pa.Table]) -> None:
        seen: set[str] = set()
        written: list[WrittenFile] = []
        try:
            for block in blocks:
                for status, rows in _sort_out(block, str(file), seen, self.l2_normalise):
                    written.append(table.write(rows, status))
                    self._count(status, rows)
        except Exception:
            table.discard(written)
            raise
        self._commit(table, file, written)

    def _count(self, status: str, rows: pa.Table) -> None:
        if status == OK:
            self.rows += rows.num_rows
        else:
            self.rejects.update(rows["reason"].to_pylist())

    def _commit(self, table: SamplesTable, file: Path, written: list[WrittenFile]) -> None:
        try:
            table.commit(written, metadata={"imported": str(file)})
        except TableError:
            table.withdraw(written)
            raise
        self.files += 1  # from here on the rows are the table's, whatever becomes of the record
        self._record(table, file)

    def _record(self, table: SamplesTable, file: Path) -> None:
        shard = str(file)
        counts = {
            status: sum(each.rows for each in files if each.shard == shard)
            for status, files in table.files_by_status().items()
        }
        record = ShardRecord(shard, file.stat().st_size, _checksum(file), counts[OK], counts[REJECTED])
        self.collection.shards.upsert(pa.Table.from_pylist([vars(record)], schema=SHARDS))

    def _skip(self, file: Path) -> None:
        """Count a file that was imported before. Raises TableError if it is another file now."""
        self.skipped += 1
        record = self.known.get(str(file))
        if record is None:  # an import was killed after it committed the rows
            self._record(self._opened(), file)
        elif record.checksum != (found := _checksum(file)):
            raise TableError(
                f"{file} was imported with checksum {record.checksum} but has {found} now; "
                "import it under another name, or into a new table."
            )


def local_source(path: str | Path) -> Path:
    """The canonical path of a file or folder to import. Raises TableError for a URL, and for what is not there."""
    if is_url(path):
        raise TableError(f"{path} is a URL; download the file first, then import it.")
    given = Path(path).expanduser().resolve()
    if not given.exists():
        raise TableError(f"There is nothing at {given} to import; check the path.")
    return given


def _list_files(paths: Sequence[str | Path]) -> list[Path]:
    """Canonical paths of all files, each once, sorted."""
    found: set[Path] = set()
    for path in paths:
        given = local_source(path)
        found.update(_within(given) if given.is_dir() else [given])
    if not found:
        raise TableError(f"There is no file to import in {[str(path) for path in paths]}; expected {sorted(READERS)}.")
    for file in found:
        _check_utf8(file)
    return sorted(found)


def _within(folder: Path) -> Iterator[Path]:
    """Files to import below a folder; not hidden ones, nor the insides of a shoal table."""
    for root, folders, names in os.walk(folder):
        if MARKER in names:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        files = (Path(root, name) for name in names if not name.startswith("."))
        yield from (file for file in files if file.suffix.lower() in READERS)


def _check_utf8(file: Path) -> None:
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        raise TableError(f"{file!r} is not UTF-8, as a table's text must be; rename the file.") from error


def _sort_out(block: pa.Table, shard: str, seen: set[str], l2_normalise: bool) -> Iterator[tuple[str, pa.Table]]:
    """The good and the rejected rows of a block as rows of SAMPLES; `seen` grows by its keys."""
    x_ND = embedding_matrix(block)
    norm_N = np.sqrt(np.einsum("nd,nd->n", x_ND, x_ND, dtype=np.float64))
    usable_N = np.isfinite(norm_N) & ((norm_N > 0) | (not l2_normalise))
    repeated_N = _repeats(block["key"].to_pylist(), seen)
    good_N = usable_N & ~repeated_N
    rows = pa.table({"key": block["key"], "shard": [shard] * block.num_rows, "label": block["label"]})
    if good_N.any():
        kept_ND = x_ND[good_N] / norm_N[good_N, None] if l2_normalise else x_ND[good_N]
        vectors = embedding_array(kept_ND.astype(np.float32, copy=False))
        yield OK, rows.filter(pa.array(good_N)).append_column("embedding", vectors)
    if not good_N.all():
        bad_N = np.flatnonzero(~good_N)
        reasons = [Reason.duplicate_key if repeated_N[row] else Reason.non_finite_embedding for row in bad_N]
        details = [None if repeated_N[row] else _what_is_wrong(x_ND[row]) for row in bad_N]
        columns = {"reason": pa.array(reasons, pa.string()), "detail": pa.array(details, pa.string())}
        yield REJECTED, pa.table({**dict(zip(rows.column_names, rows.take(bad_N).columns, strict=True)), **columns})


def _what_is_wrong(x_D: np.ndarray) -> str:
    bad = int((~np.isfinite(x_D)).sum())
    return f"{bad} of {len(x_D)} values are NaN or infinite" if bad else "its norm is 0, so it cannot be normalised"


def _repeats(keys: list[str], seen: set[str]) -> np.ndarray:
    """Which keys were seen before, in this block or an earlier one."""
    repeated = np.zeros(len(keys), dtype=bool)
    for row, key in enumerate(keys):
        repeated[row] = key in seen
        seen.add(key)
    return repeated


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
