"""The columns of every table, the reasons a sample is rejected for, and the error that users see.

The on-disk format is a type: these Arrow schemas are the only place that names columns. Delta Lake knows neither
fixed-size lists nor float16, so an embedding is `list<float32>`.
"""

from __future__ import annotations

from enum import StrEnum

import pyarrow as pa

OK, REJECTED = "ok", "rejected"  # values of the partition column of `samples`
REMOVED = "removed"  # a third: what `shoal remove` left in place of a row, so that its shard stays done
STATUS = pa.field("status", pa.string(), nullable=False)
MAX_DIMENSION = 65_536  # wider rows are a damaged header or a mistake, and one block of them would fill memory


class TableError(ValueError):
    """What the user can put right about a table, an artifact or a file to import, in one sentence."""


class Reason(StrEnum):
    """Why a row is in the `rejected` part of `samples`; `detail` says more."""

    unreadable_shard = "unreadable_shard"
    empty_shard = "empty_shard"
    truncated_shard = "truncated_shard"
    damaged_header = "damaged_header"  # a gap in mid-shard; detail has its byte range
    not_a_tar = "not_a_tar"
    unsafe_member = "unsafe_member"
    no_image = "no_image"  # a sample without an image member
    duplicate_key = "duplicate_key"
    empty_image = "empty_image"  # zero bytes
    corrupt_image = "corrupt_image"
    truncated_image = "truncated_image"
    image_too_large = "image_too_large"  # decompression bomb or forged header
    unsupported_image = "unsupported_image"
    kills_decoder = "kills_decoder"
    non_finite_embedding = "non_finite_embedding"
    removed = "removed"  # taken down by `shoal remove`; the row holds a digest in place of the key, and nothing else


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind))  # the name Parquet and Delta give to a list's child


EMBEDDING = _list_of(pa.float32())

SAMPLES = pa.schema(  # of a data file; the table adds STATUS, which lives in the file's path
    [
        _required("key", pa.string()),
        _required("shard", pa.string()),
        pa.field("offset", pa.int64()),  # of the image member's bytes; null for imported embeddings
        pa.field("size", pa.int64()),
        pa.field("label", pa.string()),
        pa.field("embedding", EMBEDDING),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
    ]
)

SHARDS = pa.schema(
    [
        _required("shard", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("checksum", pa.string()),
        pa.field("samples", pa.int64()),
        pa.field("rejects", pa.int64()),
        pa.field("modified", pa.int64()),  # ns since 1970, by the store's clock; older tables lack this column
    ]
)

ASSIGNMENTS = pa.schema(
    [
        _required("key", pa.string()),
        _required("shard", pa.string()),
        _required("cluster", pa.int64()),  # stable id; -1 is noise
        _required("component", pa.int64()),
        _required("probability", pa.float32()),
        pa.field("runner_up", pa.int64()),
        _required("score", pa.float32()),  # log density or negative squared distance: larger is better
    ]
)

CLUSTERS = pa.schema(
    [
        _required("generation", pa.int64()),
        _required("cluster", pa.int64()),
        _required("size", pa.int64()),
        pa.field("parents", _list_of(pa.int64())),
        _required("event", pa.string()),  # born, kept, split, merged, died; what died has size 0
        pa.field("log_hastings", pa.float64()),
        pa.field("medoid_key", pa.string()),
        pa.field("medoid_shard", pa.string()),
        pa.field("medoid_score", pa.float64()),  # older tables lack this column
    ]
)

MOVES = pa.schema(
    [
        _required("generation", pa.int64()),
        _required("sweep", pa.int64()),
        _required("kind", pa.string()),  # split, merge, birth
        pa.field("clusters", _list_of(pa.int64())),
        pa.field("log_ratio", pa.float64()),
        _required("accepted", pa.bool_()),
        pa.field("why", pa.string()),
    ]
)

GENERATIONS = pa.schema(
    [
        _required("generation", pa.int64()),
        _required("samples_version", pa.int64()),
        _required("assignments_version", pa.int64()),
        _required("clusters_version", pa.int64()),
        _required("moves_version", pa.int64()),
        _required("artifact", pa.string()),
        _required("config_digest", pa.string()),
        pa.field("parent", pa.int64()),
        _required("decision", pa.string()),
        _required("evidence", pa.string()),  # JSON
        _required("created_at", pa.timestamp("us", tz="UTC")),
        pa.field("statistics", pa.string()),  # digest of what learning continues from; older tables lack this column
    ]
)
