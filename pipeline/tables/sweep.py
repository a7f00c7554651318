"""Data files that nobody needs any more: found by what the log has ever said, and deleted.

A file that no version named is left alone: a writer may be about to commit it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

from pipeline.tables.delta import Delta
from pipeline.tables.schema import TableError
from pipeline.tables.storage import files_below, open_filesystem
from pipeline.tables.stores import one_line

_THREADS = 16  # an object store answers one request in tens of milliseconds


@dataclass(frozen=True)
class StoredFile:
    """A data file on the disk or in the store."""

    path: str  # relative to the table
    size: int  # bytes


def unused(delta: Delta, needed: Collection[str], upto: int) -> list[StoredFile]:
    """Data files that a version up to `upto` named, that the newest version has not, and whose path is not `needed`.

    One listing of the folder; log files are read, newest first, only while there are files to be looked for.
    """
    stored = _stored(delta)
    used = {file.path for file in delta.files()}.union(needed)
    left = {path: file for path, file in stored.items() if path not in used}
    found: list[StoredFile] = []
    for version in range(upto, -1, -1):
        if not left:
            break
        found.extend(left.pop(path) for path in _named_by(delta, version) & left.keys())
    return sorted(found, key=lambda file: file.path)


def delete(delta: Delta, files: Sequence[StoredFile]) -> None:
    """Delete data files; one that is gone already is no error. Raises TableError where the storage refuses."""
    filesystem, root = open_filesystem(delta.path)

    def remove(file: StoredFile) -> None:
        try:
            filesystem.delete_file(f"{root}/{file.path}")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise TableError(
                f"Data file {file.path} of {delta.path} cannot be deleted ({one_line(error)}); check your rights, then "
                "run again."
            ) from error

    with ThreadPoolExecutor(_THREADS) as threads:
        list(threads.map(remove, files))


def _stored(delta: Delta) -> dict[str, StoredFile]:
    filesystem, root = open_filesystem(delta.path)
    try:
        sizes = files_below(filesystem, root)
    except OSError as error:
        raise TableError(f"{delta.path} cannot be listed ({one_line(error)}); check the address.") from error
    files = [StoredFile(path[len(root) + 1 :], size) for path, size in sizes.items() if path.endswith(".parquet")]
    return {file.path: file for file in files if not file.path.startswith("_")}  # the log keeps Parquet files too


def _named_by(delta: Delta, version: int) -> set[str]:
    """Paths that a commit added or removed; none if another tool has cleaned it up."""
    filesystem, root = open_filesystem(delta.path)
    try:
        with filesystem.open_input_stream(f"{root}/_delta_log/{version:020d}.json", compression=None) as source:
            actions = [json.loads(line) for line in source.read().splitlines() if line]
    except FileNotFoundError:
        return set()
    except (OSError, ValueError) as error:
        raise TableError(f"The log of {delta.path} cannot be read ({one_line(error)}); restore it.") from error
    return {unquote(action[kind]["path"]) for action in actions for kind in ("add", "remove") if kind in action}
