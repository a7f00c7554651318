"""Bytes on disk that no table names any more, or never did: files of replaced rows, and what killed writers left."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.removal.targets import Targets
from pipeline.tables.artifacts import MANIFEST, TENSORS, read_artifact
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place, children, remove_tree
from pipeline.tables.schema import TableError
from pipeline.tables.storage import open_filesystem
from pipeline.tables.stores import one_line

_READERS = 8
_PAIRS = (("shard", "key"), ("medoid_shard", "medoid_key"))  # the columns of any table that name samples
_LOG = "/_delta_log/"
_SHARED = ("backbone", "reduction")  # networks and projections, which hold no row


@dataclass(frozen=True)
class Swept:
    """What became of data files with rows that are to go."""

    deleted: int
    pending: tuple[str, ...]  # shards that are not in the table yet, but a writer has or had files of


def sweep_data_files(table: Collection, asked: Targets, found: Targets) -> Swept:
    """Delete every data file that has a row that is to go, whether or not a log ever named it.

    To be called when neither the newest version nor any generation names one. A samples file of a shard that is not
    done may belong to an extraction at work: it stays, and is told. Opens every data file that may hold such a row;
    memory is the keys of some files.
    """
    done = table.samples.done_shards()  # before the listing: nobody can commit a file of these any more
    filesystem, root = open_filesystem(str(table.path))
    on_disk = {part: _data_files(filesystem, f"{root}/{part}") for part in ("samples", "clusterings")}
    named = table.samples.files_by_status().values()
    on_disk["samples"] -= {f"{root}/samples/{file.path}" for files in named for file in files}
    samples = _holders(filesystem, on_disk["samples"], asked | found)
    pending = {path: shards for path, shards in samples.items() if not shards <= done}
    going = [*(samples.keys() - pending.keys()), *_holders(filesystem, on_disk["clusterings"], found)]
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
    store = table.artifacts
    known = {artifact.digest: artifact for artifact in (read_artifact(path, _no_tensor) for path in store.list())}
    needed, names = set[str](), [each.name for each in children(table.path / "clusterings")]
    stack = [digest for name in names for each in table.clustering(name).generations() for digest in each.digests]
    while stack:
        digest = stack.pop()
        if digest in known and digest not in needed:
            needed.add(digest)
            stack += [text for text in known[digest].manifest.values() if isinstance(text, str)]
    for digest, artifact in known.items():
        version = artifact.manifest.get("samples_version", artifact.manifest.get("made"))
        if digest not in needed and artifact.kind not in _SHARED and isinstance(version, int) and is_stale(version):
            store.remove(digest)


def _no_tensor(name: str) -> bool:
    return False


def _sweep_unfinished(folder: Place) -> None:
    if folder.is_dir() and not (folder / MANIFEST).is_file():
        remove_tree(folder)
    for each in children(folder) if folder.is_dir() else []:
        if each.name.startswith((f"{MANIFEST}.", f"{TENSORS}.")):
            each.unlink(missing_ok=True)


def delete_beside(files: tuple[Place, ...]) -> list[str]:
    """Delete files that show rows, and what a killed writer left of them; returns those that were there."""
    deleted = []
    for file in files:
        if file.is_file():
            deleted.append(str(file))
        for each in children(file.parent):
            if each.name == file.name or each.name.startswith(f"{file.name}."):
                each.unlink(missing_ok=True)
    return deleted


def _data_files(filesystem: pafs.FileSystem, root: str) -> set[str]:
    infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    files = {info.path for info in infos if info.type == pafs.FileType.File}
    return {path for path in files if path.endswith(".parquet") and _LOG not in path}


def _holders(filesystem: pafs.FileSystem, paths: set[str], targets: Targets) -> dict[str, set[str]]:
    """Of files that have rows that are to go, the shards of these."""
    ordered = sorted(paths)
    with ThreadPoolExecutor(_READERS) as threads:
        looks = threads.map(lambda path: _holding(filesystem, path, targets), ordered)
        return {path: shards for path, shards in zip(ordered, looks, strict=True) if shards}


def _holding(filesystem: pafs.FileSystem, path: str, targets: Targets) -> set[str]:
    """The shards of a file's rows that are to go."""
    try:
        with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
            names = set(file.schema_arrow.names)
            pairs = [pair for pair in _PAIRS if names.issuperset(pair)]
            return {
                shard
                for shard_column, key_column in pairs
                if _may_hold(file, shard_column, key_column, targets)
                for shard in _shards(file.read([shard_column, key_column]), targets)
            }
    except FileNotFoundError:
        return set()
    except (pa.ArrowException, OSError) as error:
        raise TableError(
            f"Data file {path} cannot be read ({one_line(error)}); delete it if no version needs it, then run again."
        ) from error


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
