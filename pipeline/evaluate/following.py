"""Streams through real tables: batches become shards, and clusters are followed from one generation to the next.

Shapes: N rows, B labels of clusters that are expected to be born.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.clusterer import NOISE
from pipeline.evaluate.streams import Batch, Drift
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.samples import TableProperties, embedding_array

_FOUND = 0.9  # of a class in one cluster, and of that cluster's rows of the class


def begun(path: str | Path, dim: int) -> Collection:
    """A new collection for generated embeddings."""
    table = Collection.create(path)
    properties = TableProperties(
        dimension=dim, backbone="generated", backbone_digest="", l2_normalised=False, preprocessing={}
    )
    table.create_samples(properties)
    return table


def arrive(table: Collection, batches: Iterable[Batch], leaving: int = 0) -> int:
    """Add each batch as one shard, which is one data file, and remove the oldest `leaving` shards, in one commit.

    Returns the version of the samples table. Keys and shards are numbered in the order of arrival, and no number is
    given twice as long as the newest shard stays. Memory: one batch.
    """
    samples = table.samples
    present = samples.files()
    first = int(present[-1].shard) + 1 if present else 0
    written = []
    for number, batch in enumerate(batches, start=first):
        keys = [f"{number:06d}-{row:06d}" for row in range(len(batch))]
        columns = {
            "key": keys,
            "shard": [f"{number:06d}"] * len(batch),
            "label": pa.array(map(str, batch.label_N.tolist()), pa.string()),
            "embedding": embedding_array(batch.x_ND),
        }
        written.append(samples.write(pa.table(columns)))
    if leaving:
        return samples.replace(present[:leaving], written, {})
    return samples.commit(written)


@dataclass(frozen=True)
class Seen:
    """Every row of one generation, in canonical order, which is that of arrival."""

    key_N: pa.ChunkedArray
    label_N: np.ndarray  # int64, the truth
    cluster_N: np.ndarray  # int64

    @property
    def ids(self) -> set[int]:
        """Clusters with rows."""
        return set(np.unique(self.cluster_N).tolist()) - {NOISE}

    def cluster_of(self, label: int) -> int:
        """The cluster with most rows of a label; NOISE where there are none."""
        ids, count = np.unique(self.cluster_N[self.label_N == label], return_counts=True)
        return int(ids[np.argmax(count)]) if len(ids) else NOISE


def seen(table: Collection, clustering: Clustering, generation: Generation) -> Seen:
    """Truth and cluster of every row of a generation. Reads no embedding."""
    parts = []
    for file in table.samples.files(version=generation.samples_version):
        rows = table.samples.read(file, columns=["key", "label"])
        cluster = clustering.read_assignments(generation, file, columns=["cluster"])["cluster"]
        parts.append(rows.append_column("cluster", cluster))
    rows = pa.concat_tables(parts)
    return Seen(rows["key"], rows["label"].cast(pa.int64()).to_numpy(), rows["cluster"].to_numpy())


def kept_share(before: Seen, after: Seen, labels: Sequence[int] | None = None) -> float:
    """Of the rows in both generations, of these labels or all: the share with the same cluster; 1 of no rows."""
    place_N = pc.index_in(before.key_N, after.key_N.combine_chunks()).to_numpy(zero_copy_only=False)
    here_N = ~np.isnan(place_N.astype(np.float64))
    if labels is not None:
        here_N &= np.isin(before.label_N, labels)
    after_N = after.cluster_N[place_N[here_N].astype(np.int64)]
    return float((after_N == before.cluster_N[here_N]).mean()) if here_N.any() else 1.0


def owned(found: Seen, labels: Sequence[int]) -> dict[int, int]:
    """Which of these labels have a cluster of their own, and that cluster.

    At least 90 % of a label's rows are in it, and of its rows of the label.
    """
    own = {}
    for label in labels:
        cluster = found.cluster_of(label)
        of_label, of_cluster = found.label_N == label, found.cluster_N == cluster
        both = int((of_label & of_cluster).sum())
        if cluster != NOISE and both >= _FOUND * max(of_label.sum(), of_cluster.sum()):
            own[label] = cluster
    return own


def born(before: Seen, after: Seen, labels: Sequence[int]) -> dict[int, int]:
    """Those of `owned` whose cluster has an id that is new."""
    return {label: cluster for label, cluster in owned(after, labels).items() if cluster not in before.ids}


def joined(given: Seen, latest: Seen) -> Seen:
    """`given`, and the rows of `latest` that came after it; for tables that only grow."""
    old = len(given.label_N)
    parts = (np.concatenate([getattr(given, name), getattr(latest, name)[old:]]) for name in ("label_N", "cluster_N"))
    return Seen(latest.key_N, *parts)


def events(clustering: Clustering) -> list[dict[str, Any]]:
    """What became of clusters in the latest generation, but those that were simply kept; of the died, too."""
    rows: list[dict[str, Any]] = clustering.events(clustering.generations()[-1]).to_pylist()
    return [row for row in rows if row["event"] != "kept"]


@dataclass
class Story:
    """What is recorded of a drifting stream, beside the truth."""

    law: Drift
    names: dict[int, int]  # the cluster of each Gaussian; of the two that met, from their merge on, the one that stays
    merges: int = 0  # of those two, in time
    deaths: int = 0  # of the one that ended, in time
    others: list[str] = field(default_factory=list)  # events that did not happen, or not then
    followed: int = 0
    lost: int = 0

    @property
    def share(self) -> float:
        """Of Gaussians and increments: how many found the Gaussian's rows under its id."""
        return self.followed / max(self.followed + self.lost, 1)

    def take(self, time: int, found: Seen, rows: Sequence[dict[str, Any]]) -> float:
        """Compare an increment's rows and events with the truth; the share of ids that followed."""
        absorbed: set[int] = set()
        for row in rows:
            if row["event"] == "merged":
                absorbed |= set(row["parents"]) - {row["cluster"]}
                self._merge(time, row)
        for row in rows:
            if row["event"] == "died" and row["cluster"] not in absorbed:
                self._death(time, row)
            elif row["event"] not in ("merged", "died"):
                self._other(time, row)
        living = self.law.living(time)
        right = sum(found.cluster_of(gaussian) == self.names[gaussian] for gaussian in living)
        self.followed, self.lost = self.followed + right, self.lost + len(living) - right
        return right / len(living)

    def _merge(self, time: int, row: dict[str, Any]) -> None:
        first, last = self.law.merging
        if set(row["parents"]) == {self.names[0], self.names[1]} and first <= time <= last:
            self.merges += 1
            self.names[0] = self.names[1] = row["cluster"]
        else:
            self._other(time, row)

    def _death(self, time: int, row: dict[str, Any]) -> None:
        first, last = self.law.dying
        if row["cluster"] == self.names[self.law.clusters - 1] and first <= time <= last:
            self.deaths += 1
        else:
            self._other(time, row)

    def _other(self, time: int, row: dict[str, Any]) -> None:
        self.others.append(f"{time}: {row['event']} {row['cluster']} of {row['parents']}")
