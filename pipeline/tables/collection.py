"""A collection: the folder with a marker that holds samples, shards, artifacts and clusterings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from uuid import uuid4

from pipeline.tables.artifacts import ArtifactStore
from pipeline.tables.clusterings import Clustering
from pipeline.tables.delta import check_path
from pipeline.tables.samples import SamplesTable, TableProperties
from pipeline.tables.schema import TableError
from pipeline.tables.shards import ShardsTable
from pipeline.tables.storage import is_url

MARKER = "shoal.json"
FORMAT = {"format": "shoal-table", "version": 1}
RUN_FOLDER = "table"  # where `shoal run` puts the collection inside its output
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class Collection:
    """What commands call TABLE. Knows where things are; reads and writes nothing but its marker."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: str | Path) -> Collection:
        """Make the folder and its marker, or open the collection that is there.

        Raises TableError, and touches nothing, if something else is there: a file, a symbolic link, or a folder that is
        not empty and has no marker.
        """
        folder = _local(path)
        if folder.is_symlink():
            raise TableError(f"{folder} is a symbolic link to {folder.readlink()}; give the folder itself.")
        if folder.exists() and not folder.is_dir():
            raise TableError(f"{folder} is a file; give a folder that is empty or does not exist.")
        if not (folder / MARKER).exists():
            found = _entries(folder)
            if found:
                raise TableError(f"{folder} is no shoal table and not empty: it holds {found}; give an empty folder.")
            _mark(folder)
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | Path) -> Collection:
        """The collection at `path`, or in `table` of the run there; TableError says what was found instead."""
        folder = _local(path)
        if not folder.exists():
            raise TableError(
                f"There is nothing at {folder}; give a table, or make one with `shoal run` or `shoal extract`."
            )
        home = next((each for each in (folder, folder / RUN_FOLDER) if (each / MARKER).is_file()), None)
        if home is None:
            found = f"a folder that holds {_entries(folder) or 'nothing'}" if folder.is_dir() else "a file"
            raise TableError(f"{folder} is no shoal table but {found}; a table has the file {MARKER}.")
        _check_marker(home / MARKER)
        return cls(home)

    @property
    def samples(self) -> SamplesTable:
        """Raises TableError if nothing was extracted or imported yet."""
        return SamplesTable.open(self._samples_path)

    def create_samples(self, properties: TableProperties) -> SamplesTable:
        """The samples table; made now, or opened if it has the same properties. TableError if they differ."""
        return SamplesTable.create(self._samples_path, properties)

    def has_samples(self) -> bool:
        """Whether `samples` can be opened."""
        return (self._samples_path / "_delta_log").is_dir()

    @property
    def shards(self) -> ShardsTable:
        """Sizes and checksums of what was read; empty before the first shard."""
        return ShardsTable(self.path / "shards")

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
        names = sorted(path.name for path in self.path.glob("clusterings/*") if path.is_dir())
        return [name for name in names if _NAME.fullmatch(name) and self.clustering(name).latest() is not None]

    @property
    def _samples_path(self) -> Path:
        return self.path / "samples"


def _local(path: str | Path) -> Path:
    if is_url(path):
        raise TableError(f"{path} is a URL; a table must be in a local folder.")
    folder = Path(path).expanduser().absolute()
    check_path(folder)
    return folder


def _entries(folder: Path, most: int = 5) -> str:
    """Some of what a folder holds, for an error; empty if it is empty or missing."""
    if not folder.is_dir():
        return ""
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith(f"{MARKER}."))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _mark(folder: Path) -> None:
    scratch = folder / f"{MARKER}.{uuid4().hex}"  # an unfinished one does not count as content
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(FORMAT) + "\n")
        scratch.replace(folder / MARKER)
    except OSError as error:
        raise TableError(f"No table can be made at {folder} ({error}); check the folder.") from error


def _check_marker(marker: Path) -> None:
    try:
        found = json.loads(marker.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise TableError(f"{marker} cannot be read ({error}); it should say {json.dumps(FORMAT)}.") from error
    if found != FORMAT:
        raise TableError(
            f"{marker} says {json.dumps(found)} but this shoal reads {json.dumps(FORMAT)}; use a matching one."
        )
