"""A file or folder anywhere: `Path` on a disk, and in an object store a `StorePath` with the part of it that we use."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast
from uuid import uuid4

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.tables.schema import TableError
from pipeline.tables.storage import is_object_store, is_url, open_filesystem, patiently
from pipeline.tables.stores import Address, one_line


@dataclass(frozen=True)
class StorePath:
    """A name in an object store, which is a folder when other names are below it.

    Picklable: it holds a URL, and every process opens the store itself. Each question is a request to the store or
    two. Raises OSError where `Path` would; its text holds no secret.
    """

    base: str  # the URL up to its options
    options: str = ""  # `?region=...`, of all names of a store

    @classmethod
    def of(cls, url: str) -> StorePath:
        """Raises TableError for a URL that names no store, or has credentials in it."""
        query = Address.of(url).query
        return cls(url.removesuffix(query).rstrip("/"), query)

    def __str__(self) -> str:
        return self.base + self.options

    def __truediv__(self, name: str) -> StorePath:
        return StorePath(f"{self.base}/{name}", self.options)

    @property
    def name(self) -> str:
        """The last part."""
        return self.base.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    @property
    def parent(self) -> StorePath:
        """The folder; a bucket is its own."""
        above = self.base.rpartition("/")[0]
        return self if above.endswith("/") else StorePath(above, self.options)

    def absolute(self) -> StorePath:
        """A URL is."""
        return self

    def exists(self) -> bool:
        """Whether it is a file or a folder."""
        return bool(self._info().type != pafs.FileType.NotFound)

    def is_file(self) -> bool:
        """Whether it is an object."""
        return bool(self._info().type == pafs.FileType.File)

    def is_dir(self) -> bool:
        """Whether there are names below it."""
        return bool(self._info().type == pafs.FileType.Directory)

    def is_symlink(self) -> bool:
        """Stores have none."""
        return False

    def iterdir(self) -> Iterator[StorePath]:
        """What is in the folder."""
        return (self / name for name in self._listed())

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """A folder in a store is there once a file is in it."""

    def read_bytes(self) -> bytes:
        """The whole object."""
        with self._asked() as (filesystem, path):
            return patiently(lambda: _read(filesystem, path))

    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole object."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> None:
        """Put an object, whole or not at all."""
        with self._asked() as (filesystem, path), filesystem.open_output_stream(path, compression=None) as sink:
            sink.write(data)

    def write_text(self, text: str, encoding: str = "utf-8") -> None:
        """As `write_bytes`."""
        self.write_bytes(text.encode(encoding))

    def unlink(self, missing_ok: bool = False) -> None:
        """Delete the object."""
        try:
            with self._asked() as (filesystem, path):
                filesystem.delete_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def rmdir(self) -> None:
        """A folder in a store is gone with the last file in it; deleting it would take what came in since a look."""

    def sizes(self) -> dict[str, int]:
        """Bytes of the files directly below, by name."""
        return {name: info.size for name, info in self._listed().items() if info.type == pafs.FileType.File}

    def _info(self) -> pafs.FileInfo:
        with self._asked() as (filesystem, path):
            return filesystem.get_file_info(path)

    def _listed(self) -> dict[str, pafs.FileInfo]:
        with self._asked() as (filesystem, path):
            return {info.base_name: info for info in filesystem.get_file_info(pafs.FileSelector(path))}

    @contextmanager
    def _asked(self) -> Iterator[tuple[pafs.FileSystem, str]]:
        try:
            yield open_filesystem(str(self))
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, "is not there", str(self)) from error
        except (OSError, pa.ArrowException) as error:
            raise OSError(errno.EIO, one_line(error), str(self)) from error


def _read(filesystem: pafs.FileSystem, path: str) -> bytes:
    with filesystem.open_input_stream(path, compression=None) as source:
        return bytes(source.read())


Place: TypeAlias = Path | StorePath


def place(path: str | Place) -> Place:
    """Where a path or URL is. Raises TableError for a web address: nothing can be written there, or listed."""
    if isinstance(path, StorePath):
        return path
    if is_object_store(path):
        return StorePath.of(str(path))
    if is_url(path):
        if str(path).lower().startswith("file://"):
            return Path(open_filesystem(path)[1])
        raise TableError(f"{path} is no folder; give a local path, or a URL of s3, gs or az.")
    return Path(path).expanduser()


def write_whole(path: Place, data: bytes) -> None:
    """Write a file that a reader sees all of, or as it was; on a disk it outlives a power cut when this returns.

    Raises OSError where the folder is missing or closed.
    """
    if isinstance(path, StorePath):
        path.write_bytes(data)
        return
    scratch = path.with_name(f"{path.name}.{uuid4().hex}")  # a rename is atomic within one folder; see `scratches`
    try:
        scratch.write_bytes(data)
        _sync(scratch)
        scratch.replace(path)
        _sync(path.parent)
    finally:
        scratch.unlink(missing_ok=True)


def scratches(path: Place) -> list[Place]:
    """What `write_whole` has left of this file where it was killed, or has not finished."""
    name = re.compile(rf"{re.escape(path.name)}\.[0-9a-f]{{32}}")
    return [each for each in children(path.parent) if name.fullmatch(each.name)]


@contextmanager
def opened(path: Place) -> Iterator[pa.NativeFile]:
    """A file of which any part can be read, each for a request where it is in a store.

    Raises OSError where the file is missing or cannot be read, then or later.
    """
    if isinstance(path, StorePath):
        with path._asked() as (filesystem, name), filesystem.open_input_file(name) as source:
            yield source
    else:
        with pa.OSFile(str(path)) as source:
            yield source


def remove_tree(folder: Place, *, strict: bool = False) -> None:
    """Delete a folder and what is in it, as far as that is possible; of a link the link, not what it leads to.

    Raises TableError, if `strict`, that names what is left.
    """
    failures = _remove_folder(folder) if isinstance(folder, Path) else _remove_prefix(folder)
    if strict and failures:
        name, error = failures[0]
        raise TableError(f"{name} cannot be deleted ({one_line(error)}); check your rights, then run again.")


def _remove_folder(folder: Path) -> list[tuple[str, OSError]]:
    """What could not be deleted, and why."""
    failures: list[tuple[str, OSError]] = []
    try:
        if folder.is_symlink():
            folder.unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, onerror=lambda _, name, why: failures.append((name, cast(OSError, why[1]))))
    except OSError as error:
        failures.append((str(folder), error))
    return [(name, error) for name, error in failures if os.path.lexists(name)]


def _remove_prefix(folder: StorePath) -> list[tuple[str, OSError]]:
    try:
        filesystem, path = open_filesystem(str(folder))
        filesystem.delete_dir(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        return [(str(folder), error)]
    return []


def children(folder: Place) -> list[Place]:
    """What is in a folder, sorted by name; nothing where there is no folder."""
    try:
        return sorted(folder.iterdir(), key=lambda each: each.name)
    except FileNotFoundError:
        return []


def sizes(folder: Place) -> dict[str, int]:
    """Bytes of the files directly in a folder, by name; of a store for one request."""
    if isinstance(folder, StorePath):
        return folder.sizes()
    return {each.name: each.stat().st_size for each in folder.iterdir() if each.is_file()}


def _sync(path: Path) -> None:
    """Have the disk keep what is written so far: a name may outlive a power cut that its content does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
