"""From a labeller to a published generation: assignments per samples file, the clusters table, medoids.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from models.clusterer import NOISE, Assignment, Move
from pipeline.cluster.fitted import Labeller
from pipeline.cluster.rows import as_tensor
from pipeline.progress import Progress
from pipeline.tables.clusterings import Clustering
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SampleFile, SamplesTable, embedding_matrix
from pipeline.tables.schema import ASSIGNMENTS, CLUSTERS, MOVES


@dataclass
class Tally:
    """Size and medoid of each cluster over the assignments seen so far.

    The medoid is the row of largest score: nearest to the centre in the model's own metric, hence the row with the
    least summed squared distance to all others in that metric. Ties go to the row that comes first.
    """

    sizes: dict[int, int] = field(default_factory=dict)
    medoids: dict[int, tuple[float, str, str]] = field(default_factory=dict)  # score, key, shard

    def add(self, assignments: pa.Table) -> None:
        """Count rows of an assignments table (columns key, shard, cluster, score)."""
        cluster_N, score_N = assignments["cluster"].to_numpy(), assignments["score"].to_numpy()
        for cluster, count in zip(*np.unique(cluster_N, return_counts=True), strict=True):
            self.sizes[int(cluster)] = self.sizes.get(int(cluster), 0) + int(count)
            members = np.flatnonzero(cluster_N == cluster)
            best = int(members[np.argmax(score_N[members])])
            score = float(score_N[best])
            self._propose(int(cluster), (score, assignments["key"][best].as_py(), assignments["shard"][best].as_py()))

    def merge(self, later: Tally) -> None:
        """Add what was counted over rows that come after these."""
        for cluster, size in later.sizes.items():
            self.sizes[cluster] = self.sizes.get(cluster, 0) + size
            self._propose(cluster, later.medoids[cluster])

    def _propose(self, cluster: int, medoid: tuple[float, str, str]) -> None:
        if cluster not in self.medoids or medoid[0] > self.medoids[cluster][0]:
            self.medoids[cluster] = medoid


def label_files(
    samples: SamplesTable,
    files: Sequence[SampleFile],
    clustering: Clustering,
    labeller: Labeller,
    on_progress: Progress,
) -> tuple[list[WrittenFile], Tally]:
    """Write assignments of `files`, unseen until published. Memory is one data file."""
    written, tally = [], Tally()
    for done, file in enumerate(files):
        rows = samples.read(file, columns=["key", "shard", "embedding"])
        assignments = assignment_table(rows, labeller.label(as_tensor(embedding_matrix(rows))))
        tally.add(assignments)
        written.append(clustering.write_assignments(assignments, file))
        on_progress("assign", done + 1, len(files))
    return written, tally


def assignment_table(rows: pa.Table, assignment: Assignment) -> pa.Table:
    """Rows of ASSIGNMENTS in the order of `rows`; no runner-up is null."""
    runner_up_N = assignment.runner_up_N.numpy()
    columns = {
        "key": rows["key"],
        "shard": rows["shard"],
        "cluster": assignment.cluster_N.numpy(),
        "component": assignment.component_N.numpy(),
        "probability": assignment.probability_N.numpy(),
        "runner_up": pa.array(runner_up_N, pa.int64(), mask=runner_up_N == NOISE),
        "score": assignment.score_N.numpy(),
    }
    return pa.table({name: columns[name] for name in ASSIGNMENTS.names}, schema=ASSIGNMENTS)


def cluster_table(generation: int, tally: Tally, moves: Iterable[tuple[int, Move]], *, kept: set[int]) -> pa.Table:
    """Rows of CLUSTERS: every cluster with rows. One that `kept` names was there before; others were born.

    A born cluster's parent is the one it left during the fit, by split or birth, with that move's log Hastings ratio.
    """
    origin = {move.clusters[1]: move for _, move in moves if move.kind in ("split", "birth") and move.accepted}
    rows = []
    for cluster in sorted(tally.sizes):
        split = origin.get(cluster)
        _, medoid_key, medoid_shard = tally.medoids[cluster]
        rows.append(
            {
                "generation": generation,
                "cluster": cluster,
                "size": tally.sizes[cluster],
                "parents": [cluster] if cluster in kept else [split.clusters[0]] if split else [],
                "event": "kept" if cluster in kept else "born",
                "log_hastings": split.log_ratio if split else None,
                "medoid_key": medoid_key,
                "medoid_shard": medoid_shard,
            }
        )
    return pa.Table.from_pylist(rows, schema=CLUSTERS)


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
