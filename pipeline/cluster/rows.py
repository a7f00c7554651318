"""All embeddings of a table version as one matrix, in an order that neither commits nor workers decide.

Shapes: N rows, D dimensions as stored, d after `transform`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.progress import Progress, silent
from pipeline.tables.samples import SampleFile, SamplesTable, embedding_matrix
from pipeline.train.rows import Rows, as_tensor

__all__ = ["Rows", "as_tensor", "load_rows", "row_hashes"]


def load_rows(
    samples: SamplesTable,
    version: int,
    ceiling_bytes: int,
    transform: tuple[int, Callable[[Tensor], Tensor]] | None = None,
    on_progress: Progress = silent,
    span: tuple[int, int] | None = None,
) -> Rows:
    """Read every embedding once, or those of `span` (first row, row after the last) in canonical order.

    `transform` is (d, map) applied file by file. Memory is N d float32, in an unnamed memory-mapped file beyond
    `ceiling_bytes`, and one data file beside it. Raises OSError where the disk has no room for that file.
    """
    files = list(_cut(samples.files(version=version), span))
    count = sum(last - first for _, first, last in files)
    dim = samples.properties.dimension if transform is None else transform[0]
    x_ND = _matrix(count, dim, ceiling_bytes)
    row_N = np.empty(count, np.int64)
    begin = 0
    for done, (file, first, last) in enumerate(files):
        table = samples.read(file, columns=["shard", "key", "embedding"])[first:last]
        end = begin + table.num_rows
        x_ND[begin:end] = _mapped(embedding_matrix(table), transform)
        row_N[begin:end] = row_hashes(table)
        begin = end
        on_progress("read embeddings", done + 1, len(files))
    return Rows(x_ND, row_N)


def row_hashes(table: pa.Table) -> np.ndarray:
    """A stable int64 per row from its shard's name and its key; the folder is left out, so that data may move."""
    prefix = {shard: PurePosixPath(shard).name for shard in table["shard"].unique().to_pylist()}
    hashes = [
        hashlib.blake2b(f"{prefix[shard]}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        for shard, key in zip(table["shard"].to_pylist(), table["key"].to_pylist(), strict=True)
    ]
    return np.frombuffer(b"".join(hashes), dtype="<i8")


def _cut(files: Iterable[SampleFile], span: tuple[int, int] | None) -> Iterator[tuple[SampleFile, int, int]]:
    """The files that hold rows of `span`, with the first of their rows and the one after the last."""
    begin = 0
    for file in files:
        low, high = span or (begin, begin + file.rows)
        first, last = max(low - begin, 0), min(high - begin, file.rows)
        if first < last:
            yield file, first, last
        begin += file.rows


def _mapped(x_nD: np.ndarray, transform: tuple[int, Callable[[Tensor], Tensor]] | None) -> np.ndarray:
    return x_nD if transform is None or not len(x_nD) else transform[1](as_tensor(x_nD)).numpy()


def _matrix(count: int, dim: int, ceiling_bytes: int) -> np.ndarray:
    if count * dim * 4 <= ceiling_bytes:
        return np.empty((count, dim), np.float32)
    with tempfile.TemporaryFile() as file:  # already unlinked: nothing is left behind however the process ends
        reserve(file.fileno(), count * dim * 4)
        return np.memmap(file, np.float32, "w+", shape=(count, dim))


def reserve(file: int, size: int) -> None:
    """Have the disk give an open file its room now. A full disk is an OSError here; to a memory map it is a SIGBUS.

    macOS has no such call: there nothing is reserved.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
