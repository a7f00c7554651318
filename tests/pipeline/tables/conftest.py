"""Real tables in a temporary folder, and rows to put into them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.tables.collection import Collection
from pipeline.tables.samples import SamplesTable, TableProperties, embedding_array

Rows = Callable[..., pa.Table]


@pytest.fixture
def properties() -> TableProperties:
    return TableProperties(
        dimension=3, backbone="pixels", backbone_digest="ab" * 32, l2_normalised=False, preprocessing={"size": 8}
    )


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection.create(tmp_path / "run" / "table")


@pytest.fixture
def samples(collection: Collection, properties: TableProperties) -> SamplesTable:
    return collection.create_samples(properties)


@pytest.fixture
def rows() -> Rows:
    """`rows(shard, numbers)`: one sample per number n, with key kn, offset 512 n, embedding (n, n + .5, -n)."""

    def make(shard: str, numbers: range, dimension: int = 3) -> pa.Table:
        n_N = np.array(numbers, dtype=np.float32)
        x_ND = np.stack([n_N, n_N + 0.5, -n_N], axis=1)[:, :dimension]
        return pa.table(
            {
                "key": [f"k{number:03d}" for number in numbers],
                "shard": pa.array([shard] * len(numbers), pa.string()),
                "offset": pa.array([512 * number for number in numbers], pa.int64()),
                "size": pa.array([100] * len(numbers), pa.int64()),
                "label": pa.array([str(number % 2) for number in numbers], pa.string()),
                "embedding": embedding_array(x_ND),
            }
        )

    return make


@pytest.fixture
def reject() -> Rows:
    def make(shard: str, key: str, reason: str = "no_image") -> pa.Table:
        return pa.table({"key": [key], "shard": [shard], "reason": [reason], "detail": ["why"]})

    return make
