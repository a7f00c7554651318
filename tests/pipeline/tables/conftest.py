"""Real tables in a temporary folder, and rows to put into them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.tables.clusterings import Clustering, Generation, Publication
from pipeline.tables.collection import Collection
from pipeline.tables.samples import SampleFile, SamplesTable, TableProperties, embedding_array
from pipeline.tables.schema import ASSIGNMENTS, CLUSTERS, MOVES

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


Publish = Callable[..., Generation]


@pytest.fixture
def publish(samples: SamplesTable, publisher: Callable[[SamplesTable], Publish]) -> Publish:
    """`publish(clustering, cluster, shards, parent)`: rows of the shards in one cluster; the medoid is the first."""
    return publisher(samples)


@pytest.fixture
def publisher() -> Callable[[SamplesTable], Publish]:
    """`publish` of any samples table."""
    return lambda samples: partial(_publish, samples)


def _publish(
    samples: SamplesTable,
    clustering: Clustering,
    cluster: int,
    shards: str = "ab",
    parent: int | None = None,
    **record: str,
) -> Generation:
    number = clustering.begin()
    given = [file for file in samples.files() if file.shard in shards]
    written = [clustering.write_assignments(_assigned(samples, file, cluster), file) for file in given]
    clusters = {"generation": number, "cluster": cluster, "size": 2, "parents": [], "event": "born"}
    medoid = {"medoid_key": given[0].first_key, "medoid_shard": given[0].shard, "medoid_score": -1.0}
    move = {"generation": number, "sweep": 0, "kind": "split", "clusters": [0, 1], "accepted": True}
    named = {"artifact": "d" * 64, "config_digest": "c" * 64, "decision": "refit"} | record
    return clustering.publish(
        number,
        written,
        pa.Table.from_pylist([clusters | medoid], schema=CLUSTERS),
        pa.Table.from_pylist([move], schema=MOVES),
        Publication(samples_version=samples.version, parent=parent, **named),
        covering=samples.files(),
    )


def _assigned(samples: SamplesTable, file: SampleFile, cluster: int) -> pa.Table:
    rows = samples.read(file, ["key", "shard"]).to_pylist()
    values = {"cluster": cluster, "component": 0, "probability": 0.5, "runner_up": None, "score": -1.0}
    return pa.Table.from_pylist([{**row, **values} for row in rows], schema=ASSIGNMENTS)
