"""The rows of a table version as any worker reads them by itself: each only what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.cluster.fitted import Reduction, read_reduction
from pipeline.cluster.rows import load_rows, reserve
from pipeline.progress import Progress, silent
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place
from pipeline.tables.samples import SampleFile
from pipeline.train.checkpoints import fingerprint
from pipeline.train.rows import Rows, SavedRows


@dataclass(frozen=True)
class TableRows:
    """A `RowSource`: where a table is, and what its embeddings go through. The rows themselves travel nowhere."""

    table: Place
    version: int
    reduction: str | None  # digest of the artifact
    ceiling_bytes: int  # of rows in one worker's memory; beyond, they are memory-mapped

    @property
    def rows(self) -> int:
        """N, from the log alone."""
        return sum(file.rows for file in self._files)

    @property
    def dim(self) -> int:
        """D after the reduction."""
        transform = self._reduction.transform
        return self._collection.samples.properties.dimension if transform is None else transform[0]

    def fingerprint(self) -> str:
        """Of the names of data files, which are unique and never written again, and of the reduction."""
        files = [(file.path, file.rows) for file in self._files]
        return fingerprint(files=files, reduction=self.reduction)

    def read(self, begin: int, end: int, on_progress: Progress = silent) -> Rows:
        """Reads the files that hold these rows, and no others."""
        transform = self._reduction.transform
        return load_rows(
            self._collection.samples, self.version, self.ceiling_bytes, transform, on_progress, span=(begin, end)
        )

    def saved(self, folder: Path) -> SavedRows:
        """File by file, so that memory is one data file. Raises OSError where the disk has no room for them."""
        folder.mkdir(parents=True, exist_ok=True)
        found = SavedRows(folder)
        x_ND = np.lib.format.open_memmap(found.x_ND, "w+", np.float32, (self.rows, self.dim))
        row_N = np.lib.format.open_memmap(found.row_N, "w+", np.int64, (self.rows,))
        for path in (found.x_ND, found.row_N):
            with path.open("r+b") as empty:
                reserve(empty.fileno(), path.stat().st_size)
        begin = 0
        for file in self._files:
            part = self.read(begin, begin + file.rows)
            x_ND[begin : begin + file.rows], row_N[begin : begin + file.rows] = part.x_ND, part.row_N
            begin += file.rows
        x_ND.flush()
        row_N.flush()
        return found

    @property
    def _collection(self) -> Collection:
        return Collection.open(self.table)

    @cached_property
    def _files(self) -> list[SampleFile]:
        return self._collection.samples.files(version=self.version)

    @cached_property
    def _reduction(self) -> Reduction:
        return read_reduction(self._collection, self.reduction)
