"""Samples, embeddings and rejects as rows of the samples table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.ingest.shards import Reject, Sample
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SamplesTable, embedding_array
from pipeline.tables.schema import OK, REJECTED, SAMPLES, Reason

_PLACE = ("key", "shard", "offset", "size", "label")


def rejected(sample: Sample, reason: Reason, detail: str) -> Reject:
    """The sample as a reject."""
    return Reject(sample.key, sample.shard, sample.offset, sample.size, sample.label, reason, detail)


def ok_rows(samples: Sequence[Sample], x_ND: np.ndarray) -> pa.Table:
    """Rows of `status = ok`; the embedding column is a view of `x_ND`."""
    return _rows(samples, _PLACE).append_column("embedding", embedding_array(x_ND))


def rejected_rows(rejects: Sequence[Reject]) -> pa.Table:
    """Rows of `status = rejected`."""
    return _rows(rejects, (*_PLACE, "reason", "detail"))


def _rows(rows: Sequence[Sample] | Sequence[Reject], names: tuple[str, ...]) -> pa.Table:
    schema = pa.schema([SAMPLES.field(name) for name in names])
    return pa.table({name: [getattr(row, name) for row in rows] for name in names}, schema=schema)


class ShardFiles:
    """Rows of one shard on their way to Parquet files that nobody sees before the driver commits them.

    Memory: `rows_per_file` embeddings, twice while they are written, and all rejects of the shard.
    """

    def __init__(self, table: SamplesTable, rows_per_file: int) -> None:
        self._table = table
        self._rows_per_file = rows_per_file
        self._samples: list[Sample] = []
        self._blocks: list[np.ndarray] = []
        self.written: list[WrittenFile] = []

    def add(self, samples: Sequence[Sample], x_ND: np.ndarray) -> None:
        """Take in embedded samples, in the shard's order; a file ends where the next block would overfill it."""
        if self._samples and len(self._samples) + len(samples) > self._rows_per_file:
            self._flush()
        self._samples += samples
        self._blocks.append(x_ND)

    def finish(self, rejects: Sequence[Reject]) -> tuple[WrittenFile, ...]:
        """Write what is left."""
        if self._samples:
            self._flush()
        if rejects:
            self.written.append(self._table.write(rejected_rows(rejects), REJECTED))
        return tuple(self.written)

    def discard(self) -> None:
        """Remove what was written."""
        self._table.discard(self.written)

    def _flush(self) -> None:
        self.written.append(self._table.write(ok_rows(self._samples, np.concatenate(self._blocks)), OK))
        self._samples, self._blocks = [], []
