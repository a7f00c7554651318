"""`shoal recluster TABLE`: fold what came and went since the last generation into it; same clusters, same ids."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from jobs.cluster import Cluster, choose, ray_for
from jobs.config import RunConfig
from jobs.figures import Figures, Row, Value
from jobs.steps import Job, State, Step
from pipeline.cluster.config import digest
from pipeline.progress import Progress
from pipeline.recluster.evidence import Evidence
from pipeline.recluster.metrics import publish_gauges, write_metrics
from pipeline.recluster.update import ReclusterSummary, recluster
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place, place


@dataclass(frozen=True)
class Recluster:
    """Bring a clustering up to the newest version of its table."""

    table: str
    name: str | None
    metrics: str | Place | None  # file for Prometheus
    config: RunConfig

    def plan(self) -> list[Step]:
        """Counts what came and went; what is due is decided when the arrivals have been read."""
        table = Collection.open(self.table)
        clustering = table.clustering(choose(table, self.name, self.config))
        latest = clustering.latest()
        since = latest.samples_version if latest else 0
        added, removed = table.samples.changes(since, None)
        arrived, gone = (sum(file.rows for file in files) for files in (added, removed))
        mode = self.config.recluster.mode
        what = f"{arrived:,} rows of {len(added):,} new files, {gone:,} of removed ones: {clustering.name}, mode {mode}"
        to_do = bool(added or removed) or mode in ("refine", "refit")
        return [Step("recluster", what, State.TO_DO if to_do else State.DONE)]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError if there is no such clustering, or somebody else published meanwhile."""
        began = time.perf_counter()
        table = Collection.open(self.table)
        name = choose(table, self.name, self.config)
        with ray_for(self.config.cluster, self.config.ray, on_progress):
            summary = recluster(table, self.config.recluster, name, on_progress, self.config.cluster)
            clustering = table.clustering(summary.name)
            publish_gauges(clustering, summary.generation)
        if self.metrics is not None:
            write_metrics(place(self.metrics), clustering, summary.generation)
        return _figures(table, summary, time.perf_counter() - began)


@dataclass(frozen=True)
class Follow:
    """Cluster a table that is not clustered with these settings; fold into its clustering what came and went since."""

    table: str
    config: RunConfig

    def plan(self) -> list[Step]:
        """That of the job which is due, under the name of the step."""
        return [replace(step, step="cluster") for step in self._job().plan()]

    def run(self, on_progress: Progress) -> Figures:
        """As the job which is due."""
        return self._job().run(on_progress)

    def _job(self) -> Job:
        name = self.config.cluster.algorithm.kind
        latest = Collection.open(self.table).clustering(name).latest()
        if latest is None or latest.config_digest != digest(self.config.cluster):
            return Cluster(self.table, None, self.config)
        return Recluster(self.table, name, None, self.config)


def _figures(table: Collection, summary: ReclusterSummary, seconds: float) -> Figures:
    values: dict[str, Value] = {
        "clustering": summary.name,
        "generation": summary.generation.generation,
        "decision": summary.decision,
        "why": summary.why,
        "arrived": summary.arrived,
        "removed": summary.removed,
        "rows": summary.rows,
        "clusters": summary.clusters,
        **_drift(summary),
        **summary.events,
        "files_rewritten": summary.files_rewritten,
        "files_kept": summary.files_kept,
        "bytes_read": summary.bytes_read,
        **{f"seconds_{step}": value for step, value in summary.seconds.items()},
        "seconds": seconds,
    }
    return Figures("recluster", values, {"events": _events(table, summary)})


def _drift(summary: ReclusterSummary) -> dict[str, Value]:
    """How the arrivals since the model last changed compare with what it was made of."""
    drift = Evidence.of(summary.generation).drift
    if drift is None or summary.decision == "nothing":
        return {}
    return {
        "low_scores": drift.overall.low_fraction,
        "low_scores_expected": drift.overall.expected_fraction,
        "log_density_shift": drift.overall.log_density_shift,
    }


def _events(table: Collection, summary: ReclusterSummary) -> list[Row]:
    """What became of clusters that were not just kept."""
    if summary.decision == "nothing":
        return []
    rows = table.clustering(summary.name).events(summary.generation).to_pylist()
    return [
        {
            "cluster": row["cluster"],
            "event": row["event"],
            "parents": ", ".join(map(str, row["parents"])),
            "size": row["size"],
            "log_hastings": row["log_hastings"],
        }
        for row in rows
        if row["event"] != "kept"
    ]
