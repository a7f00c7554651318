"""What readers of a generation see."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from models.kmeans import KMeansConfig
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.published import published
from pipeline.tables.clusterings import Publication
from pipeline.tables.collection import Collection
from pipeline.tables.imports import import_files


def test_a_cluster_that_ended_is_nobodys_runner_up(tmp_path: Path) -> None:
    """Files of labels that stay name clusters that have ended since."""
    x_ND = np.repeat(np.float32([[0, 0], [9, 0], [30, 0]]), 4, axis=0)
    np.savez(tmp_path / "rows.npz", embedding=x_ND, key=np.array([f"row-{row:02}" for row in range(12)]))
    import_files([tmp_path / "rows.npz"], tmp_path / "table")
    table = Collection.open(tmp_path / "table")
    first = cluster(table, ClusterConfig(algorithm=KMeansConfig(clusters=3))).generation
    before = published(table).assigned()
    near, middle = before["cluster"].to_pylist()[:8:4]
    assert before["runner_up"].to_pylist() == [middle] * 4 + [near] * 4 + [middle] * 4

    clustering = table.clustering("kmeans")
    number, died = clustering.begin(), {"event": "died", "size": 0}
    rows = [
        row | {"generation": number} | (died if row["cluster"] == near else {})
        for row in clustering.clusters(first).to_pylist()
    ]
    carried = first.model_dump(include=set(Publication.model_fields)) | {
        "parent": first.generation,
        "decision": "refine",
        "evidence": json.dumps({}),
    }
    clusters = pa.Table.from_pylist(rows, schema=clustering.clusters(first).schema)
    clustering.publish(number, [], clusters, clustering.moves(first).slice(0, 0), Publication(**carried))

    after = published(table).assigned()
    assert after["runner_up"].to_pylist() == [middle] * 4 + [None] * 4 + [middle] * 4
    assert after.drop_columns(["runner_up"]).equals(before.drop_columns(["runner_up"]))
    assert after.schema == before.schema
