"""Bytes on disk that no table names any more, or never did: files of replaced rows, and what killed writers left."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from urllib.parse import unquote_to_bytes

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.removal.targets import Targets
from pipeline.tables.artifacts import MANIFEST, TENSORS, read_artifact
from pipeline.tables.collection import Collection
from pipeline.tables.datafiles import PARTIAL, SUFFIX
from pipeline.tables.orphans import Held
from pipeline.tables.place import Place, children, remove_tree, scratches
from pipeline.tables.schema import TableError
from pipeline.tables.storage import files_below, open_filesystem
from pipeline.tables.stores import one_line

_READERS = 8
_PAIRS = (("shard", "key"), ("medoid_shard", "medoid_key"))  # the columns of any table that name samples
_LOG = "/_delta_log/"
_COMMIT = re.compile(r"\d{20}\.json")
_SHARED = ("backbone", "reduction")  # networks and projections, which hold no row


@dataclass(frozen=True)
class Swept:
    """What became of data files with rows that are to go."""

    deleted: int
    pending: tuple[str, ...]  # shards that are not in the table yet, but a writer has or had files of


def sweep_data_files(table: Collection, asked: Targets, found: Targets) -> Swept:
    """Delete every data file that has a row that is to go, whether or not a log ever named it, and partial ones.

    To be called when neither the newest version nor any generation names one. A samples file of a shard that is not
    done may belong to an extraction at work: it stays, and is told. A file that cannot be read and that no log names
    is of a killed writer: it goes. Opens every data file that may hold such a row; memory is the keys of some files.
    Raises TableError for a file that a log names and that cannot be read, and where the storage refuses.
    """
    done = table.samples.done_shards()  # before the listing: nobody can commit a file of these any more
    filesystem, root = open_filesystem(str(table.path))
    parts = ("samples", "clusterings")
    on_disk = {part: _data_files(filesystem, f"{root}/{part}", SUFFIX) for part in parts}
    partial = set[str]().union(*(_data_files(filesystem, f"{root}/{part}", PARTIAL) for part in parts))
    named = table.samples.files_by_status().values()
    on_disk["samples"] -= {f"{root}/samples/{file.path}" for files in named for file in files}
    samples, torn = _holders(filesystem, on_disk["samples"], asked | found)
    pending = {path: shards for path, shards in samples.items() if not shards <= done}
    others, torn_too = _holders(filesystem, on_disk["clusterings"], found)
    _require_unnamed(table.path, [path[len(root) + 1 :] for path in torn + torn_too])
    going = [*(samples.keys() - pending.keys()), *others, *torn, *torn_too, *partial]
    for path in going:
        with suppress(FileNotFoundError):
            filesystem.delete_file(path)
    return Swept(len(going), tuple(sorted(set().union(*pending.values()))))


def sweep_artifacts(table: Collection, is_stale: Callable[[int], bool]) -> None:
    """Delete artifacts that no generation needs and that were made of a stale version of the samples.

    A killed fit leaves them, named by nobody: sums over rows, and rows. So does one that is at work, which learned from
    rows that are to go. Half-written ones go in any case.
    """
    for folder in children(table.path / "artifacts"):
        _sweep_unfinished(folder)
    store, clusterings = table.artifacts, [table.clustering(each.name) for each in children(table.path / "clusterings")]
    named = {digest for one in clusterings for each in one.generations() for digest in each.digests}
    needed = set(Held(store).needed(named))
    whole = [path for path in store.list() if (path / TENSORS).is_file()]
    for artifact in [read_artifact(path, _no_tensor) for path in whole]:
        version = artifact.manifest.get("samples_version", artifact.manifest.get("made"))
        is_free = artifact.digest not in needed and artifact.kind not in _SHARED
        if is_free and isinstance(version, int) and is_stale(version):
            store.remove(artifact.digest)


def _no_tensor(name: str) -> bool:
    return False


def _sweep_unfinished(folder: Place) -> None:
    if folder.is_dir() and not (folder / MANIFEST).is_file():
        remove_tree(folder, strict=True)
    for name in (MANIFEST, TENSORS):
        for each in scratches(folder / name) if folder.is_dir() else []:
            each.unlink(missing_ok=True)


def delete_beside(files: tuple[Place, ...]) -> list[str]:
    """Delete files that show rows, and what a killed writer left of them; returns those that were there."""
    deleted = []
    for file in files:
        if file.is_file():
            deleted.append(str(file))
        for each in [file, *scratches(file)]:
            each.unlink(missing_ok=True)
    return deleted


def _data_files(filesystem: pafs.FileSystem, root: str, suffix: str) -> set[str]:
    return {path for path in files_below(filesystem, root) if path.endswith(suffix) and _LOG not in path}


def _require_unnamed(root: Place, torn: Sequence[str]) -> None:
    """Raise TableError for a data file, by its path in the collection, that a log names, or may have named."""
    for path in torn:
        parts = path.split("/")
        depth = 1 if parts[0] == "samples" else 3  # clusterings/NAME/TABLE
        log = reduce(operator.truediv, [*parts[:depth], "_delta_log"], root)
        commits = [each for each in children(log) if _COMMIT.fullmatch(each.name)]
        name = json.dumps("/".join(parts[depth:])).encode()
        is_cut = bool(commits) and int(commits[0].stem) > 0  # by another tool
        if is_cut or any(name in unquote_to_bytes(commit.read_bytes()) for commit in commits):
            raise TableError(
                f"Data file {path} of {root} is damaged, and its table's log names it; restore it, or delete it if no "
                "generation needs it, then run again."
            )


def _holders(filesystem: pafs.FileSystem, paths: set[str], targets: Targets) -> tuple[dict[str, set[str]], list[str]]:
    """Of files that have rows that are to go, the shards of these; and files that are no Parquet files."""
    ordered = sorted(paths)
    with ThreadPoolExecutor(_READERS) as threads:
        looks = dict(zip(ordered, threads.map(lambda path: _holding(filesystem, path, targets), ordered), strict=True))
    holders = {path: shards for path, shards in looks.items() if shards}
    return holders, [path for path, shards in looks.items() if shards is None]


def _holding(filesystem: pafs.FileSystem, path: str, targets: Targets) -> set[str] | None:
    """The shards of a file's rows that are to go; None if it can be read, but not as Parquet."""
    try:
        with suppress(pa.ArrowException, OSError), filesystem.open_input_file(path) as source:
            return _held(source, targets)
        with filesystem.open_input_stream(path, compression=None) as stream:  # was it the storage, or is it the file?
            content = stream.read()
    except FileNotFoundError:
        return set()
    except OSError as error:
        raise TableError(
            f"Data file {path} cannot be read ({one_line(error)}); check your rights, run again."
        ) from error
    with suppress(pa.ArrowException, OSError):
        return _held(pa.BufferReader(content), targets)
    return None


def _held(source: pa.NativeFile, targets: Targets) -> set[str]:
    with pq.ParquetFile(source) as file:
        names = set(file.schema_arrow.names)
        return {
            shard
            for shard_column, key_column in _PAIRS
            if names.issuperset((shard_column, key_column)) and _may_hold(file, shard_column, key_column, targets)
            for shard in _shards(file.read([shard_column, key_column]), targets)
        }


def _shards(rows: pa.Table, targets: Targets) -> set[str]:
    return {
        shard
        for shard, key in zip(*(column.to_pylist() for column in rows.columns), strict=True)
        if key is not None and any(key in keys for keys in targets.within(shard))
    }


def _may_hold(file: pq.ParquetFile, shard_column: str, key_column: str, targets: Targets) -> bool:
    """By the bounds in the file's footer, where it has them and a row group has one shard."""
    for group in range(file.metadata.num_row_groups):
        shards, keys = (_bounds(file.metadata.row_group(group), name) for name in (shard_column, key_column))
        if shards is None or keys is None or shards[0] != shards[1] or targets.may_be_in(shards[0], *keys):
            return True
    return False


def _bounds(group: pq.RowGroupMetaData, name: str) -> tuple[str, str] | None:
    columns = (group.column(number) for number in range(group.num_columns))
    found = next(column.statistics for column in columns if column.path_in_schema == name)
    return (found.min, found.max) if found is not None and found.has_min_max else None
