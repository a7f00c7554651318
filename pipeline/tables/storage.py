"""One door to files: a path or URL becomes a pyarrow filesystem and a path on it."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from pipeline.tables.schema import TableError

OBJECT_STORES = ("s3", "gs", "gcs", "az", "abfs", "abfss")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least: `C:/` is a drive


def is_url(path: str | Path) -> bool:
    """Whether `path` starts with a scheme."""
    return SCHEME.match(str(path)) is not None


def open_filesystem(url_or_path: str | Path) -> tuple[pafs.FileSystem, str]:
    """The filesystem that holds `url_or_path`, and its path there; nothing is opened yet.

    Local paths and `file://` become absolute local paths; `s3://`, `gs://` and `az://` take credentials from the
    environment as pyarrow does; `http(s)://` goes through fsspec and is read-only.
    Raises TableError for a scheme that nothing here reads.
    """
    text = str(url_or_path)
    if not is_url(text):
        return pafs.LocalFileSystem(), Path(text).expanduser().absolute().as_posix()
    scheme = urlsplit(text).scheme.lower()
    if scheme == "file":
        return pafs.LocalFileSystem(), unquote(text.split("://", 1)[1].removeprefix("localhost"))
    if scheme in ("http", "https"):
        return _http(), text
    if scheme in OBJECT_STORES:
        return _object_store(text)
    raise TableError(
        f"{text} has the scheme {scheme}://, which is unknown; use a local path, file, s3, gs, az, http or https."
    )


def _http() -> pafs.FileSystem:
    import fsspec  # noqa: PLC0415 - only needed here, and importing it is slow

    return pafs.PyFileSystem(pafs.FSSpecHandler(fsspec.filesystem("http")))


def _object_store(url: str) -> tuple[pafs.FileSystem, str]:
    try:
        filesystem, path = pafs.FileSystem.from_uri(url.replace("az://", "abfs://", 1))
    except (pa.ArrowException, OSError) as error:
        raise TableError(f"{url} cannot be opened ({error}); check the address and the credentials.") from error
    return filesystem, path
