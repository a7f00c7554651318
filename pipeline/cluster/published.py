"""Read a published generation back: what each row is, where its image is, and its place in the clustering's space."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ShoalError
from pipeline.cluster.fitted import Labeller, read_labeller
from pipeline.cluster.rows import Rows, load_rows
from pipeline.progress import Progress, silent
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection

_SAMPLE_COLUMNS = ("key", "shard", "offset", "size", "label")
_ASSIGNMENT_COLUMNS = ("cluster", "probability", "runner_up", "score")


@dataclass(frozen=True)
class Published:
    """One generation of one clustering, resolved."""

    table: Collection
    clustering: Clustering
    generation: Generation
    labeller: Labeller

    def assigned(self) -> pa.Table:
        """Sample and assignment columns of every row, in canonical order; about 100 bytes a row.

        `runner_up` is null where the cluster that a row was next to has ended since: such rows are not labelled again.
        """
        samples, living = self.table.samples, self.clustering.clusters(self.generation)["cluster"]
        parts = []
        for file in samples.files(version=self.generation.samples_version):
            rows = samples.read(file, columns=_SAMPLE_COLUMNS)
            assignments = self.clustering.read_assignments(self.generation, file, columns=_ASSIGNMENT_COLUMNS)
            for name in _ASSIGNMENT_COLUMNS:
                column = assignments[name]
                rows = rows.append_column(name, _among(living, column) if name == "runner_up" else column)
            parts.append(rows)
        return pa.concat_tables(parts)

    def rows(self, on_progress: Progress = silent) -> Rows:
        """The rows as the algorithm saw them (reduced), in the same order as `assigned`."""
        ceiling = self.labeller.config.memory_ceiling_bytes
        transform = self.labeller.reduction.transform
        return load_rows(self.table.samples, self.generation.samples_version, ceiling, transform, on_progress)


def published(table: Collection, name: str | None = None) -> Published:
    """The latest generation of a clustering: of `name`, of the only one there is, or of `dpm`.

    Raises ShoalError when there is none.
    """
    clustering, generation = latest_of(table, name)
    return Published(table, clustering, generation, read_labeller(table.artifacts, generation.artifact))


def latest_of(table: Collection, name: str | None) -> tuple[Clustering, Generation]:
    """As `published`, without reading the artifact."""
    names = table.clusterings()
    chosen = name or (names[0] if len(names) == 1 else "dpm")
    clustering = table.clustering(chosen)
    latest = clustering.latest()
    if latest is None:
        raise ShoalError(
            f"The table at {table.path} has no clustering named {chosen} (it has {', '.join(names) or 'none'}); "
            "run `shoal cluster` first, or give one of these with --name."
        )
    return clustering, latest


def _among(living: pa.ChunkedArray, cluster_N: pa.ChunkedArray) -> pa.ChunkedArray:
    """Clusters that live; null in place of others."""
    return pc.if_else(pc.is_in(cluster_N, value_set=living), cluster_N, pa.scalar(None, cluster_N.type))
