"""One door to files: a path or URL becomes a pyarrow filesystem and a path on it, or what deltalake needs instead."""

from __future__ import annotations

import os
import random
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.tables.schema import TableError
from pipeline.tables.stores import ATTEMPTS, Address, Store, one_line
from pipeline.tables.stores import SCHEMES as OBJECT_STORES

T = TypeVar("T")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: `C:/` is a drive


def is_url(path: str | Path) -> bool:
    """Whether `path` starts with a scheme."""
    return SCHEME.match(str(path)) is not None


def is_object_store(path: str | Path) -> bool:
    """Whether `path` is a URL of an object store."""
    return is_url(path) and _scheme(str(path)) in OBJECT_STORES


def open_filesystem(url_or_path: str | Path) -> tuple[pafs.FileSystem, str]:
    """The filesystem that holds `url_or_path`, and its path there; nothing is opened yet.

    Local paths and `file://` become absolute local paths. `s3://`, `gs://` and `az://` take endpoint, region and
    credentials from the environment (README, "Object stores"), repeat requests that fail, and share one filesystem per
    process and store. `http(s)://` goes through fsspec and is read-only.
    Raises TableError for a scheme that nothing here reads, and for a URL with credentials in it.
    """
    text = str(url_or_path)
    if not is_url(text):
        return pafs.LocalFileSystem(), Path(text).expanduser().absolute().as_posix()
    scheme = _scheme(text)
    if scheme == "file":
        return pafs.LocalFileSystem(), unquote(text.split("://", 1)[1].removeprefix("localhost"))
    if scheme in ("http", "https"):
        return _http(), text
    if scheme in OBJECT_STORES:
        address = Address.of(text)
        return _opened(address.store), address.path
    raise TableError(
        f"{text} has the scheme {scheme}://, which is unknown; use a local path, file, s3, gs, az, http or https."
    )


def files_below(filesystem: pafs.FileSystem, root: str) -> dict[str, int]:
    """Bytes of all files below a folder by path, for who looks for what to delete; none where there is no folder.

    On a disk without links below `root`: what they lead to is somebody else's. Raises OSError.
    """
    if filesystem.type_name == "local":
        return dict(_on_disk(root))
    infos = filesystem.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    return {info.path: info.size for info in infos if info.type == pafs.FileType.File}


def _on_disk(root: str) -> Iterator[tuple[str, int]]:
    with suppress(FileNotFoundError), os.scandir(root) as entries:  # others may be deleting, too
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _on_disk(entry.path)
                continue
            with suppress(FileNotFoundError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode):
                    yield entry.path, found.st_size


def delta_path(url_or_path: str | Path) -> str:
    """`url_or_path` as deltalake spells it."""
    text = str(url_or_path)
    return Address.of(text).delta_url if is_object_store(text) else text


def delta_options(url_or_path: str | Path) -> dict[str, str] | None:
    """`storage_options` for deltalake, so that it asks the same store in the same way as pyarrow; None for local paths.

    Holds no credentials: deltalake takes them from the environment.
    """
    text = str(url_or_path)
    return Address.of(text).store.delta_options if is_object_store(text) else None


def patiently(read: Callable[[], T]) -> T:
    """`read()`, which only reads, repeated while it meets the one passing failure that pyarrow does not repeat itself.

    The body of "503 Slow Down" has no room in the buffer of a read of fewer bytes, and the AWS SDK then takes the
    answer for a broken one (https://github.com/apache/doris/pull/66557 tells how). Wrap reads of less than a kilobyte.
    """
    for attempt in range(ATTEMPTS - 1):
        try:
            return read()
        except OSError as error:
            if "Failed to flush response stream" not in str(error):
                raise
            time.sleep(random.uniform(0, min(0.1 * 2**attempt, 5)))
    return read()


def _scheme(url: str) -> str:
    return urlsplit(url).scheme.lower()


@lru_cache
def _opened(store: Store) -> pafs.FileSystem:
    """Making one takes tens of milliseconds, and each has its own connections."""
    try:
        return store.filesystem
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TableError(f"{store} cannot be opened ({one_line(error)}); check the credentials.") from error


def _http() -> pafs.FileSystem:
    import fsspec  # noqa: PLC0415 - only needed here, and importing it is slow

    return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("http")))
