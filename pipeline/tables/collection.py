"""A collection: the folder with a marker that holds samples, shards, artifacts and clusterings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.tables.artifacts import ArtifactStore
from pipeline.tables.clusterings import Clustering
from pipeline.tables.delta import Delta, check_path
from pipeline.tables.orphans import sweep_artifacts
from pipeline.tables.place import Place, children, place, write_whole
from pipeline.tables.samples import LAYOUT, SamplesTable, TableProperties
from pipeline.tables.schema import TableError
from pipeline.tables.shards import ShardsTable

MARKER = "shoal.json"
FORMAT = {"format": "shoal-table", "version": 1}
RUN_FOLDER = "table"  # where `shoal run` puts the collection inside its output
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Collection:
    """What commands call TABLE. Knows where things are; reads and writes nothing but its marker."""

    def __init__(self, path: Place) -> None:
        self.path = path

    @classmethod
    def create(cls, path: str | Place) -> Collection:
        """Make the folder and its marker, or open the collection that is there.

        Raises TableError, and touches nothing, if something else is there: a file, a symbolic link, or a folder that is
        not empty and has no marker.
        """
        folder = _folder(path)
        if folder.is_symlink() and isinstance(folder, Path):
            raise TableError(f"{folder} is a symbolic link to {folder.readlink()}; give the folder itself.")
        with _reading(folder):
            marked = (folder / MARKER).exists()
            if not marked and folder.exists() and not folder.is_dir():
                raise TableError(f"{folder} is a file; give a folder that is empty or does not exist.")
            found = "" if marked else _entries(folder)
        if found:
            raise TableError(f"{folder} is no shoal table and not empty: it holds {found}; give an empty folder.")
        if not marked:
            _mark(folder)
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | Place) -> Collection:
        """The collection at `path`, or in `table` of the run there; TableError says what was found instead."""
        folder = _folder(path)
        with _reading(folder):
            home = next((each for each in (folder, folder / RUN_FOLDER) if (each / MARKER).is_file()), None)
            if home is None:
                raise TableError(_no_table(folder))
        _check_marker(home / MARKER)
        return cls(home)

    @classmethod
    def find(cls, path: str | Place) -> Collection | None:
        """As `open`, but None where there is nothing, or an empty folder, so that one can be made there."""
        folder = _folder(path)
        with _reading(folder):
            if not folder.exists() or (folder.is_dir() and not _entries(folder)):
                return None
        return cls.open(folder)

    @property
    def samples(self) -> SamplesTable:
        """Raises TableError if nothing was extracted or imported yet."""
        return SamplesTable.open(str(self._samples_path))

    def create_samples(self, properties: TableProperties) -> SamplesTable:
        """The samples table; made now, or opened if it has the same properties. TableError if they differ."""
        return SamplesTable.create(str(self._samples_path), properties)

    def has_samples(self) -> bool:
        """Whether `samples` can be opened; a log without a commit is what a process left that died while it made it."""
        first = self._samples_path / "_delta_log" / f"{0:020d}.json"  # one look is cheaper than the log
        return first.exists() or Delta(str(self._samples_path), LAYOUT).exists()

    @property
    def shards(self) -> ShardsTable:
        """Sizes and checksums of what was read; empty before the first shard."""
        return ShardsTable(str(self.path / "shards"))

    @property
    def artifacts(self) -> ArtifactStore:
        """What was fitted."""
        return ArtifactStore(self.path / "artifacts")

    def clustering(self, name: str) -> Clustering:
        """A clustering by name, with or without generations. Raises TableError if no folder can have that name."""
        if _NAME.fullmatch(name) is None:
            raise TableError(
                f"{name!r} is no name for a clustering; use letters, digits, '.', '_' and '-', 100 at most."
            )
        return Clustering(self.path / "clusterings" / name)

    def clusterings(self) -> list[str]:
        """Names of the clusterings with at least one published generation, sorted."""
        names = [each.name for each in children(self.path / "clusterings") if each.is_dir()]
        return [name for name in names if _NAME.fullmatch(name) and self.clustering(name).latest() is not None]

    def sweep_artifacts(self) -> list[str]:
        """Remove the artifacts that only ended generations name, of whatever clustering; the digests of the removed.

        Backbones stay, and what no generation ever named. Can be repeated, also after a crash. A model that is fitted
        again, to the same digest, while this runs may be removed before it is published.
        """
        names = [each.name for each in children(self.path / "clusterings") if _NAME.fullmatch(each.name)]
        tables = [self.clustering(name).published for name in names]
        return sweep_artifacts(self.artifacts, tables, self.samples.version if self.has_samples() else 0)

    @property
    def _samples_path(self) -> Place:
        return self.path / "samples"


def _folder(path: str | Place) -> Place:
    folder = place(path).absolute()
    check_path(str(folder))
    return folder


@contextmanager
def _reading(folder: Place) -> Iterator[None]:
    """What a disk or a store refuses, as a sentence."""
    try:
        yield
    except OSError as error:
        raise TableError(f"{folder} cannot be read ({error.strerror}); check the address and your rights.") from error


def _no_table(folder: Place) -> str:
    if not folder.exists():
        return f"There is nothing at {folder}; give a table, or make one with `shoal run` or `shoal extract`."
    found = f"a folder that holds {_entries(folder) or 'nothing'}" if folder.is_dir() else "a file"
    return f"{folder} is no shoal table but {found}; a table has the file {MARKER}."


def _entries(folder: Place, most: int = 5) -> str:
    """Some of what a folder holds, for an error; empty if it is empty or missing."""
    if not folder.is_dir():
        return ""
    names = [path.name for path in children(folder) if not path.name.startswith(f"{MARKER}.")]  # unfinished
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _mark(folder: Place) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / MARKER, f"{json.dumps(FORMAT)}\n".encode())
    except OSError as error:
        raise TableError(f"No table can be made at {folder} ({error}); check the folder.") from error


def _check_marker(marker: Place) -> None:
    try:
        found = json.loads(marker.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(f"{marker} cannot be read ({error}); it should say {json.dumps(FORMAT)}.") from error
    if found != FORMAT:
        raise TableError(
            f"{marker} says {json.dumps(found)} but this shoal reads {json.dumps(FORMAT)}; use a matching one."
        )
