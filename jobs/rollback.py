"""`shoal rollback TABLE G`: an earlier generation, published once more as the newest."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.cluster import choose
from jobs.config import RunConfig
from jobs.figures import Figures, Value
from jobs.steps import State, Step
from pipeline.history.lineage import published
from pipeline.history.rollback import rollback, stands
from pipeline.progress import Progress
from pipeline.tables.collection import Collection


@dataclass(frozen=True)
class Rollback:
    """Return to a generation; those in between stay, and can be returned to."""

    table: str
    generation: int
    name: str | None
    config: RunConfig

    def plan(self) -> list[Step]:
        """Says what would be published."""
        table = Collection.open(self.table)
        name = choose(table, self.name, self.config)
        clustering = table.clustering(name)
        target = published(clustering, self.generation)
        rows = table.samples.count(version=target.samples_version)
        clusters = clustering.clusters(target).num_rows
        what = f"generation {self.generation} of {name} again: {rows:,} rows, {clusters:,} clusters"
        return [Step("rollback", what, State.DONE if stands(clustering, self.generation) else State.TO_DO)]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError if the generation never was or has ended."""
        table = Collection.open(self.table)
        name = choose(table, self.name, self.config)
        clustering = table.clustering(name)
        done = stands(clustering, self.generation)
        generation = rollback(table, name, self.generation)
        rows, newest = (table.samples.count(version=each) for each in (generation.samples_version, None))
        values: dict[str, Value] = {
            "clustering": name,
            "generation": generation.generation,
            "skipped": done,
            "rows": rows,
            "clusters": clustering.clusters(generation).num_rows,
            "rows_without_label": max(newest - rows, 0),
        }
        if done:
            values["note"] = f"nothing to do: generation {self.generation} is what the clustering says already"
        elif newest > rows:
            values["note"] = "`shoal assign` labels the rows that came later, `shoal recluster` also learns from them"
        return Figures("rollback", values)
