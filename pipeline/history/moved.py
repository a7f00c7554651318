"""The file of all images that moved: written as they are found, and there once it is whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.csv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from models.errors import ShoalError
from pipeline.history.compare import MOVED
from pipeline.tables.place import Place
from pipeline.tables.storage import open_filesystem

SUFFIXES = (".parquet", ".csv")


def check_output(path: Place) -> None:
    """Raise ShoalError unless a file of a known kind can be made there."""
    suffix = Path(path.name).suffix.lower()
    if suffix not in SUFFIXES:
        raise ShoalError(f"--output {path} ends in {suffix or 'nothing'}; end it in {' or '.join(SUFFIXES)}.")
    if path.is_dir():
        raise ShoalError(f"--output {path} is a folder; name a file in it.")
    if isinstance(path, Path) and not path.absolute().parent.is_dir():
        raise ShoalError(f"--output {path} is in a folder that does not exist; make {path.absolute().parent} first.")


@contextmanager
def moved_file(path: Place) -> Iterator[Callable[[pa.Table], None]]:
    """What takes rows of MOVED. A file that is there is replaced when all went well, and else left as it was."""
    check_output(path)
    if isinstance(path, Path):
        scratch = path.with_name(f"{path.name}.{uuid4().hex}")
        try:
            with _writer(scratch, path.name) as write:
                yield write
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder, path.name)
        with _writer(scratch, path.name) as write:
            yield write
        filesystem, target = open_filesystem(str(path))
        pafs.copy_files(str(scratch), target, pafs.LocalFileSystem(), filesystem)


@contextmanager
def _writer(scratch: Path, name: str) -> Iterator[Callable[[pa.Table], None]]:
    if name.lower().endswith(".csv"):
        with pyarrow.csv.CSVWriter(scratch, MOVED) as csv:
            yield csv.write_table
    else:
        with pq.ParquetWriter(scratch, MOVED, compression="zstd") as parquet:
            yield parquet.write_table
