"""Return to an earlier generation, by publishing it once more: nothing in between is lost."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pyarrow as pa

from pipeline.cluster.cluster import ids_used
from pipeline.cluster.fitted import read_labeller
from pipeline.history.lineage import KEPT, published
from pipeline.tables.clusterings import Clustering, Generation, Publication
from pipeline.tables.collection import Collection
from pipeline.tables.schema import CLUSTERS, MOVES, TableError


def rollback(table: Collection, name: str, number: int) -> Generation:
    """Publish generation `number` again as the newest; the one that stands is returned if it is that already.

    No image is read and no assignment written: the new generation names the same files and the same model. Clusters
    that came in between stay in the lineage, and the evidence has an id above all of them, so that nobody gives them
    again. Raises ShoalError if the generation never was or has ended, TableError if another writer publishes meanwhile.
    """
    clustering = table.clustering(name)
    target = published(clustering, number)
    new = clustering.begin()  # before the latest is looked at: whoever publishes from now on makes this fail
    latest = clustering.generations()[-1]
    if _is_again(latest, number):
        return latest
    why = f"rolled back from generation {latest.generation} to {number}"
    record = Publication(
        samples_version=target.samples_version,
        artifact=target.artifact,
        config_digest=target.config_digest,
        parent=number,
        decision=_decision(number),
        evidence=json.dumps({"why": why, "next_id": _next_id(table, clustering, (target, latest))}),
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


def _next_id(table: Collection, clustering: Clustering, ends: Sequence[Generation]) -> int:
    """Above every id that a generation had, or its model counts as given: some never had a row in any generation.

    Of the generations between the `ends` of a rollback what they recorded is enough.
    """
    recorded = (_recorded(each) or 0 for each in clustering.generations())
    return max(ids_used(clustering), *recorded, *(_counted(table, each) for each in ends if _recorded(each) is None))


def _recorded(generation: Generation) -> int | None:
    """What a fit says of its counter of ids; labels by a model that was there say nothing, nor do older tables."""
    found = json.loads(generation.evidence).get("next_id")
    return None if found is None else int(found)


def _counted(table: Collection, generation: Generation) -> int:
    try:
        return read_labeller(table.artifacts, generation.artifact).model.next_id
    except TableError:
        return 0  # nobody goes on from a model that is lost


def as_kept(clusters: pa.Table, number: int) -> pa.Table:
    """The same clusters, each its own parent."""
    rows = [
        {**row, "generation": number, "event": KEPT, "parents": [row["cluster"]], "log_hastings": None}
        for row in clusters.to_pylist()
    ]
    return pa.Table.from_pylist(rows, schema=CLUSTERS)
