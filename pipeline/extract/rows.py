"""Samples, embeddings and rejects as rows of the samples table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from torch import Tensor

from pipeline.ingest.shards import Reject, Sample
from pipeline.tables.schema import EMBEDDING, SAMPLES, Reason

PLACE = ("key", "shard", "offset", "size", "label")  # what samples and rejects have in common


@dataclass(frozen=True)
class Prepared:
    """A sample whose bytes have become the pixels that the backbone takes."""

    key: str
    shard: str
    offset: int
    size: int
    label: str | None
    pixels_CHW: Tensor  # uint8


def prepared(sample: Sample, pixels_CHW: Tensor) -> Prepared:
    """The sample, with pixels for bytes."""
    return Prepared(sample.key, sample.shard, sample.offset, sample.size, sample.label, pixels_CHW)


def rejected(sample: Sample | Prepared, reason: Reason, detail: str) -> Reject:
    """The sample as a reject."""
    return Reject(sample.key, sample.shard, sample.offset, sample.size, sample.label, reason, detail)


def ok_table(samples: Sequence[Prepared], x_ND: np.ndarray) -> pa.Table:
    """Rows of `status = ok`; the embedding column is a view of `x_ND` (float32), so N D must stay below 2**31."""
    flat = pa.array(np.ascontiguousarray(x_ND, dtype=np.float32).reshape(-1))
    starts = pa.array(np.arange(len(samples) + 1, dtype=np.int32) * np.int32(x_ND.shape[1]))
    return _table(samples, {"embedding": pa.ListArray.from_arrays(starts, flat, type=EMBEDDING)})


def rejected_table(rejects: Sequence[Reject]) -> pa.Table:
    """Rows of `status = rejected`."""
    return _table(rejects, {name: [getattr(reject, name) for reject in rejects] for name in ("reason", "detail")})


def _table(rows: Sequence[Prepared] | Sequence[Reject], more: dict[str, object]) -> pa.Table:
    columns = {name: [getattr(row, name) for row in rows] for name in PLACE} | more
    nothing = pa.nulls(len(rows))
    return pa.table([pa.array(columns[f.name], f.type) if ... else nothing.cast(f.type) for f in SAMPLES], schema=SAMPLES)
