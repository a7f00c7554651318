"""Sizes and medoids of clusters over assignments, and what changes them without reading the others again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.samples import SampleFile

TALLIED = ["key", "shard", "cluster", "score"]  # columns of assignments that sizes and medoids follow from


@dataclass
class Tally:
    """Size and medoid of each cluster over the assignments seen so far.

    The medoid is the row of largest score: nearest to the centre in the model's own metric, hence the row with the
    least summed squared distance to all others in that metric. Ties go to the row that comes first.
    """

    sizes: dict[int, int] = field(default_factory=dict)
    medoids: dict[int, tuple[float, str, str]] = field(default_factory=dict)  # score, key, shard

    @staticmethod
    def of_clusters(rows: Iterable[dict[str, object]]) -> Tally:
        """From published rows of CLUSTERS; a medoid without a score (of an earlier shoal) gives way to any other."""
        tally = Tally()
        for row in rows:
            cluster, score = int(str(row["cluster"])), row["medoid_score"]
            tally.sizes[cluster] = int(str(row["size"]))
            if row["medoid_key"] is not None:
                worth = -np.inf if score is None else float(str(score))
                tally.medoids[cluster] = (worth, str(row["medoid_key"]), str(row["medoid_shard"]))
        return tally

    def add(self, assignments: pa.Table) -> None:
        """Count rows of an assignments table (columns key, shard, cluster, score)."""
        cluster_N, score_N = assignments["cluster"].to_numpy(), assignments["score"].to_numpy()
        order_N = np.argsort(cluster_N, kind="stable")
        clusters, begins = np.unique(cluster_N[order_N], return_index=True)
        for cluster, members in zip(clusters.tolist(), np.split(order_N, begins[1:]), strict=True):
            self.sizes[cluster] = self.sizes.get(cluster, 0) + len(members)
            best = int(members[np.argmax(score_N[members])])
            names = (assignments["key"][best].as_py(), assignments["shard"][best].as_py())
            self.propose(cluster, (float(score_N[best]), *names))

    def renamed(self, names: Mapping[int, int]) -> Tally:
        """The same with clusters named anew, one to one."""
        new = {old: names.get(old, old) for old in self.sizes}
        sizes = {new[old]: size for old, size in self.sizes.items()}
        return Tally(sizes, {new[old]: medoid for old, medoid in self.medoids.items()})

    def merge(self, later: Tally) -> None:
        """Add what was counted over rows that come after these."""
        for cluster, size in later.sizes.items():
            self.sizes[cluster] = self.sizes.get(cluster, 0) + size
            if cluster in later.medoids:
                self.propose(cluster, later.medoids[cluster])

    def propose(self, cluster: int, medoid: tuple[float, str, str]) -> None:
        """The medoid, where it scores higher than the one so far: score, key, shard."""
        if cluster not in self.medoids or medoid[0] > self.medoids[cluster][0]:
            self.medoids[cluster] = medoid


def counted(clustering: Clustering, generation: Generation, files: Iterable[SampleFile]) -> Tally:
    """Of the rows of these files as a generation labels them, which is read for it."""
    tally = Tally()
    for file in files:
        tally.add(clustering.read_assignments(generation, file, columns=TALLIED))
    return tally
