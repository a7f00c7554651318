"""What a generation's tables of clusters and moves say.

Shapes: O clusters before, C clusters now, K components.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from models.clusterer import Clusterer, Move
from models.identity import Event, Overlap, events, summed
from pipeline.cluster.tally import Tally
from pipeline.tables.schema import CLUSTERS, MOVES


def cluster_table(
    generation: int, tally: Tally, happened: Sequence[Event], log_hastings: Mapping[int, float] | None = None
) -> pa.Table:
    """Rows of CLUSTERS: every cluster with rows, and, of size 0, those that ended."""
    rows = []
    for event in happened:
        score, key, shard = tally.medoids.get(event.cluster, (None, None, None))
        rows.append(
            {
                "generation": generation,
                "cluster": event.cluster,
                "size": tally.sizes.get(event.cluster, 0),
                "parents": list(event.parents),
                "event": event.event,
                "log_hastings": None if event.event == "kept" else (log_hastings or {}).get(event.cluster),
                "medoid_key": key,
                "medoid_shard": shard,
                "medoid_score": score,
            }
        )
    return pa.Table.from_pylist(rows, schema=CLUSTERS)


def first_events(tally: Tally, moves: Iterable[tuple[int, Move]]) -> list[Event]:
    """Of a clustering's first fit: every cluster was born, from the one it left during the fit by split or birth."""
    origin = {move.clusters[1]: move for _, move in moves if move.kind in ("split", "birth") and move.accepted}
    return [
        Event(cluster, "born", (origin[cluster].clusters[0],) if cluster in origin else ())
        for cluster in sorted(tally.sizes)
    ]


def events_between(old: Iterable[int], new: Mapping[int, int], overlap: Overlap) -> list[Event]:
    """What became of these clusters, given the sizes of the later ones and the rows that each two share."""
    old_ids, new_ids, count_OC = among(old, new, overlap)
    there_O = count_OC.sum(axis=1)  # rows of each that went since say nothing of what became of it
    size_C = np.array([new.get(int(each), 0) for each in new_ids], np.int64)
    return events(old_ids, new_ids, count_OC, there_O, size_C)


def among(old: Iterable[int], new: Iterable[int], overlap: Overlap) -> Overlap:
    """The same overlap with all these clusters in it, also those that share no row."""
    ids = [np.array(sorted(each), np.int64) for each in (old, new)]
    return summed([(ids[0], ids[1], np.zeros((len(ids[0]), len(ids[1])), np.int64)), overlap])


def nothing_happened(sizes: Mapping[int, int], before: Iterable[int]) -> list[Event]:
    """Of rows that only joined: every cluster is kept, or born where it had no row before."""
    old = set(before)
    return [Event(each, "kept", (each,)) if each in old else Event(each, "born", ()) for each in sorted(sizes)]


def ratios(moves: Iterable[tuple[int, Move]], model: Clusterer) -> dict[int, float]:
    """The log Hastings ratio of the last accepted move that made each cluster what it is, where there was one."""
    cluster = dict(zip(model.component_K.tolist(), model.id_K.tolist(), strict=True))
    found: dict[int, float] = {}
    for _, move in moves:
        if move.accepted and math.isfinite(move.log_ratio):
            made = move.clusters[:1] if move.kind == "merge" else move.clusters[1:]
            found |= {cluster.get(each, each): move.log_ratio for each in made}
    return found


def move_table(generation: int, moves: Iterable[tuple[int, Move]]) -> pa.Table:
    """Rows of MOVES: every proposal of the fit; a ratio that is not finite is null."""
    rows = [
        {
            "generation": generation,
            "sweep": sweep,
            "kind": move.kind,
            "clusters": list(move.clusters),
            "log_ratio": move.log_ratio if math.isfinite(move.log_ratio) else None,
            "accepted": move.accepted,
            "why": move.why,
        }
        for sweep, move in moves
    ]
    return pa.Table.from_pylist(rows, schema=MOVES)
