"""`shoal assign TABLE`: clusters for rows that came after the fit, by the model that was fitted."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.cluster import choose
from jobs.config import RunConfig
from jobs.figures import Figures
from jobs.steps import State, Step
from models.errors import ShoalError
from pipeline.cluster.assign import AssignSummary, assign
from pipeline.history.as_of import assign_as_of, found, moment, own_clustering
from pipeline.progress import Progress
from pipeline.recluster.config import ReclusterConfig
from pipeline.recluster.recount import PROTOTYPES
from pipeline.recluster.update import recluster
from pipeline.tables.clusterings import Generation
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place, place


@dataclass(frozen=True)
class Assign:
    """Label every row by an artifact, or by the model of the clustering's latest generation."""

    table: str
    artifact: str | Place | None
    name: str | None
    config: RunConfig
    as_of: str | None = None  # a generation's number, or a date

    def plan(self) -> list[Step]:
        """Counts the rows, and those that came after the latest generation."""
        table = Collection.open(self.table)
        if self.as_of is not None:
            return [self._plan_as_of(table, self.as_of)]
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
        summary = self._assigned(Collection.open(self.table), on_progress)
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

    def _assigned(self, table: Collection, on_progress: Progress) -> AssignSummary:
        if self.as_of is not None:
            self._refuse_artifact()
            return assign_as_of(table, choose(table, self.name, self.config), moment(self.as_of), on_progress)
        if self.artifact is None:
            name = choose(table, self.name, self.config)
            latest = table.clustering(name).latest()
            if latest is not None and _takes_account(table, latest):
                return _followed(table, name, on_progress)
            return assign(table, None, name, on_progress)
        _require_folder(self.artifact)
        return assign(table, self.artifact, self.name, on_progress)

    def _plan_as_of(self, table: Collection, as_of: str) -> Step:
        self._refuse_artifact()
        name = choose(table, self.name, self.config)
        generation = found(table.clustering(name), moment(as_of))
        target = own_clustering(table, name, generation)
        latest = target.latest()
        rows = table.samples.count()
        new = rows - table.samples.count(version=(latest or generation).samples_version)
        what = f"{new:,} new rows of {rows:,} as by generation {generation.generation} of {name}: {target.name}"
        return Step("assign", what, State.TO_DO if new or latest is None else State.DONE)

    def _refuse_artifact(self) -> None:
        if self.artifact is not None:
            raise ShoalError(
                "--as-of takes the model of a generation, so there can be no --artifact; give one of them."
            )


def _takes_account(table: Collection, latest: Generation) -> bool:
    """Whether rows went since, of a clustering that keeps an account of its rows: it is to be without them."""
    if latest.statistics is None or not table.samples.changes(latest.samples_version)[1]:
        return False
    return table.artifacts.read(latest.artifact, only=lambda _: False).kind != PROTOTYPES


def _followed(table: Collection, name: str, on_progress: Progress) -> AssignSummary:
    found = recluster(table, ReclusterConfig(mode="assign"), name, on_progress)
    seconds = sum(found.seconds.values())
    return AssignSummary(found.name, found.generation, found.arrived, found.rows, found.clusters, seconds)


def _require_folder(artifact: str | Place) -> None:
    if not place(artifact).exists():
        raise ShoalError(f"There is no artifact at {artifact}; `shoal show TABLE` names those of a table.")
