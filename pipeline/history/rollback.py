"""Return to an earlier generation, by publishing it once more: nothing in between is lost."""

from __future__ import annotations

import json

import pyarrow as pa

from pipeline.history.lineage import KEPT, published
from pipeline.tables.clusterings import Clustering, Generation, Publication
from pipeline.tables.collection import Collection
from pipeline.tables.schema import CLUSTERS, MOVES


def rollback(table: Collection, name: str, number: int) -> Generation:
    """Publish generation `number` again as the newest; the one that stands is returned if it is that already.

    No image is read and no assignment written: the new generation names the same files and the same model. Clusters
    that came in between stay in the lineage, so that nobody gives their ids again.
    Raises ShoalError if the generation never was or has ended, TableError if another writer publishes meanwhile.
    """
    clustering = table.clustering(name)
    target = published(clustering, number)
    latest = clustering.generations()[-1]
    if _is_again(latest, number):
        return latest
    new = clustering.begin()
    record = Publication(
        samples_version=target.samples_version,
        artifact=target.artifact,
        config_digest=target.config_digest,
        parent=number,
        decision=_decision(number),
        evidence=json.dumps({"why": f"rolled back from generation {latest.generation} to {number}"}),
        statistics=target.statistics,
    )
    return clustering.publish(new, [], as_kept(clustering.clusters(target), new), MOVES.empty_table(), record)


def stands(clustering: Clustering, number: int) -> bool:
    """Whether the newest generation is `number`, or is it again."""
    latest = clustering.latest()
    return latest is not None and _is_again(latest, number)


def _is_again(latest: Generation, number: int) -> bool:
    return latest.generation == number or latest.decision == _decision(number)


def _decision(number: int) -> str:
    return f"rollback to {number}"


def as_kept(clusters: pa.Table, number: int) -> pa.Table:
    """The same clusters, each its own parent."""
    rows = [
        {**row, "generation": number, "event": KEPT, "parents": [row["cluster"]], "log_hastings": None}
        for row in clusters.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=CLUSTERS)
