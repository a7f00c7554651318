"""Parquet files of tables: on a disk, too, none has its name before it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pipeline.tables.schema import TableError

SUFFIX = ".parquet"
PARTIAL = f"{SUFFIX}.partial"  # of a writer at work, or of one that was killed
_ATTEMPTS = 3  # `shoal remove` deletes partial files, also of a writer at work


class LostFileError(TableError):
    """A data file is gone, or its content is damaged: the next look would find the same."""


def write(filesystem: pafs.FileSystem, path: str, rows: pa.Table, encodings: Mapping[str, Any]) -> int:
    """Write rows to a file, zstd-compressed; its bytes.

    To an object store it goes as one upload, which does not exist there before it is complete; on a disk under another
    name at first, `.partial`. Raises OSError where the storage refuses.
    """
    if filesystem.type_name != "local":
        return _write(filesystem, path, rows, encodings)
    filesystem.create_dir(path.rpartition("/")[0], recursive=True)  # object stores have no folders
    partial = path.removesuffix(SUFFIX) + PARTIAL
    for _ in range(_ATTEMPTS - 1):
        with suppress(FileNotFoundError):
            return _write_and_rename(filesystem, partial, path, rows, encodings)
    return _write_and_rename(filesystem, partial, path, rows, encodings)


def _write_and_rename(
    filesystem: pafs.FileSystem, partial: str, path: str, rows: pa.Table, encodings: Mapping[str, Any]
) -> int:
    try:
        size = _write(filesystem, partial, rows, encodings)
        filesystem.move(partial, path)
    except BaseException:
        with suppress(OSError):
            filesystem.delete_file(partial)
        raise
    return size


def _write(filesystem: pafs.FileSystem, path: str, rows: pa.Table, encodings: Mapping[str, Any]) -> int:
    with filesystem.open_output_stream(path) as sink:
        pq.write_table(rows, sink, compression="zstd", **encodings)
        return int(sink.tell())
