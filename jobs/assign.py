"""`shoal assign TABLE`: clusters for rows that came after the fit, by the model that was fitted."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.cluster import choose
from jobs.config import RunConfig
from jobs.figures import Figures
from jobs.steps import State, Step
from models.errors import ShoalError
from pipeline.cluster.assign import assign
from pipeline.progress import Progress
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place, place


@dataclass(frozen=True)
class Assign:
    """Label every row by an artifact, or by the model of the clustering's latest generation."""

    table: str
    artifact: str | Place | None
    name: str | None
    config: RunConfig

    def plan(self) -> list[Step]:
        """Counts the rows, and those that came after the latest generation."""
        table = Collection.open(self.table)
        rows = table.samples.count()
        if self.artifact is not None:
            _require_folder(self.artifact)
            return [Step("assign", f"{rows:,} rows by {self.artifact}")]
        name = choose(table, self.name, self.config)
        latest = table.clustering(name).latest()
        new = rows - (table.samples.count(version=latest.samples_version) if latest else 0)
        return [Step("assign", f"{new:,} new rows of {rows:,} by {name}", State.TO_DO if new else State.DONE)]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError if there is no model, or it was fitted on other embeddings."""
        table = Collection.open(self.table)
        name = self.name
        if self.artifact is None:
            name = choose(table, self.name, self.config)
        else:
            _require_folder(self.artifact)
        summary = assign(table, self.artifact, name, on_progress)
        return Figures(
            "assign",
            {
                "clustering": summary.name,
                "generation": summary.generation.generation,
                "new_rows": summary.labelled,
                "rows": summary.rows,
                "clusters": summary.clusters,
                "seconds": summary.seconds,
            },
        )


def _require_folder(artifact: str | Place) -> None:
    if not place(artifact).exists():
        raise ShoalError(f"There is no artifact at {artifact}; `shoal show TABLE` names those of a table.")
