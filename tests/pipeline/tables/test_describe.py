"""`describe` tells what is there from the logs, without opening a data file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.tables.clusterings import Publication
from pipeline.tables.collection import Collection
from pipeline.tables.describe import describe
from pipeline.tables.samples import SamplesTable
from pipeline.tables.schema import CLUSTERS, MOVES, SHARDS

Rows = Callable[..., pa.Table]


def test_a_new_collection_is_described(collection: Collection) -> None:
    assert describe(collection.path) == {
        "path": str(collection.path),
        "format_version": 1,
        "samples": None,
        "shards": {"version": None, "rows": 0},
        "clusterings": {},
        "artifacts": [],
    }


def test_everything_is_described_without_the_data(
    collection: Collection, samples: SamplesTable, rows: Rows, reject: Rows
) -> None:
    written = [
        samples.write(rows("a", range(5))),
        samples.write(rows("b", range(3))),
        samples.write(reject("b", "x"), "rejected"),
    ]
    samples.commit(written)
    collection.shards.upsert(pa.Table.from_pylist([{"shard": "a"}, {"shard": "b"}], schema=SHARDS))
    artifact = collection.artifacts.write("dpm", {}, {"x": np.zeros(3)})
    clustering = collection.clustering("dpm")
    record = Publication(samples_version=1, artifact=artifact.digest, config_digest="c", decision="fit")
    generation = clustering.publish(clustering.begin(), [], CLUSTERS.empty_table(), MOVES.empty_table(), record)
    for file in Path(samples.path).glob("status=*/*.parquet"):
        file.unlink()  # so nothing can have been read from it
    found = describe(collection.path.parent)
    assert found["samples"] == {
        "version": 1,
        "dimension": 3,
        "backbone": "pixels",
        "backbone_digest": "ab" * 32,
        "l2_normalised": False,
        "preprocessing": {"size": 8},
        "rows": {"ok": 8, "rejected": 1},
        "files": 3,
        "bytes": sum(file.size for file in written),
        "shards": 2,
    }
    assert found["shards"] == {"version": 1, "rows": 2}
    ((name, (described,)),) = found["clusterings"].items()
    assert name == "dpm"
    assert described["rows"] == {"assignments": 0, "clusters": 0, "moves": 0}
    assert (described["generation"], described["artifact"]) == (generation.generation, artifact.digest)
    (listed,) = found["artifacts"]
    assert listed["name"] == f"dpm-{artifact.digest[:12]}"
    assert json.loads(json.dumps(found)) == found
