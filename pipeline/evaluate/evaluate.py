"""Score a published clustering: with its table's labels when there are any, by geometry always."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.cluster.published import published
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.metrics import GeometryScores, LabelScores, score_geometry, score_labels
from pipeline.progress import Progress, silent
from pipeline.tables.collection import Collection

__all__ = ["EvaluateConfig", "Evaluation", "evaluate"]


@dataclass(frozen=True)
class Evaluation:
    """The scores of one generation."""

    name: str
    algorithm: str
    generation: int
    objective: float  # of the last pass: log marginal likelihood (dpm), log likelihood (gmm), - inertia (kmeans)
    geometry: GeometryScores
    labels: LabelScores | None  # None when no row has a label


def evaluate(table: Collection, name: str | None, config: EvaluateConfig, on_progress: Progress = silent) -> Evaluation:
    """Score the latest generation of clustering `name`; geometry is that of the space it was clustered in.

    Memory is the reduced rows. Raises ShoalError when there is no such clustering.
    """
    found = published(table, name)
    assigned = found.assigned()
    rows = found.rows(on_progress)
    cluster_N = assigned["cluster"].to_numpy()
    labels = score_labels(assigned["label"].to_pylist(), cluster_N)
    geometry = score_geometry(rows.x_ND, cluster_N, config.sample_rows, config.seed, rows.row_N)
    manifest = found.labeller.artifact.manifest
    return Evaluation(
        name=found.clustering.name,
        algorithm=found.labeller.artifact.kind,
        generation=found.generation.generation,
        objective=manifest["history"][-1][0],
        geometry=geometry,
        labels=labels if labels.rows else None,
    )
