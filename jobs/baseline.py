"""The k-means row beside every result: k-means with K given, on the same reduced embeddings."""

from __future__ import annotations

import time
from dataclasses import dataclass

from jobs.cluster import choose, figures_of, plan_of, ray_for
from jobs.config import RunConfig
from jobs.figures import Figures
from jobs.steps import Step
from models.kmeans import KMeansConfig
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.progress import Progress
from pipeline.tables.collection import Collection
from pipeline.tables.samples import SamplesTable

NAME = "kmeans"


@dataclass(frozen=True)
class Baseline:
    """K-means given the true number of labels, or the K that was found where there are no labels."""

    table: str
    config: RunConfig

    def plan(self) -> list[Step]:
        """As of `shoal cluster`; K is known once the table is clustered."""
        table = Collection.open(self.table)
        if not table.clusterings():
            return [Step("baseline", "k-means given the number of labels, or else the K found")]
        return [plan_of("baseline", table, NAME, self._settings(table))]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError if the table is not clustered yet."""
        began = time.perf_counter()
        table = Collection.open(self.table)
        settings = self._settings(table)
        with ray_for(settings, self.config.ray, on_progress):
            summary = cluster(table, settings, NAME, on_progress)
        return figures_of("baseline", summary, time.perf_counter() - began)

    def _settings(self, table: Collection) -> ClusterConfig:
        clusters = count_labels(table.samples) or _clusters_found(table, self.config)
        return self.config.cluster.model_copy(update={"algorithm": KMeansConfig(clusters=clusters)})


def count_labels(samples: SamplesTable) -> int:
    """Different labels of a table's images; reads one column."""
    labels: set[str | None] = set()
    for file in samples.files():
        labels |= set(samples.read(file, ["label"])["label"].unique().to_pylist())
    return len(labels - {None})


def _clusters_found(table: Collection, config: RunConfig) -> int:
    clustering = table.clustering(choose(table, None, config))
    latest = clustering.latest()
    return max(1, clustering.counts(latest)["clusters"]) if latest is not None else 1
