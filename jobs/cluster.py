"""`shoal cluster TABLE`: find clusters, and how many there are."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

from jobs.config import RunConfig
from jobs.context import RayConfig, local_ray
from jobs.figures import Figures, Value
from jobs.room import bundles
from jobs.steps import State, Step
from models.errors import ShoalError
from pipeline.cluster.cluster import ClusterSummary, cluster
from pipeline.cluster.config import ClusterConfig, digest
from pipeline.progress import Progress
from pipeline.tables.collection import Collection


@dataclass(frozen=True)
class Cluster:
    """Fit the configured algorithm, unless this version of the table is clustered so already."""

    table: str
    name: str | None
    config: RunConfig

    def plan(self) -> list[Step]:
        """Compares the table's version and the settings with the last generation's."""
        return [plan_of("cluster", Collection.open(self.table), self.name, self.config.cluster)]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError for a table without embeddings."""
        began = time.perf_counter()
        with ray_for(self.config.cluster, self.config.ray, on_progress):
            summary = cluster(Collection.open(self.table), self.config.cluster, self.name, on_progress)
        return figures_of("cluster", summary, time.perf_counter() - began)


def ray_for(settings: ClusterConfig, ray: RayConfig, on_progress: Progress) -> AbstractContextManager[None]:
    """The Ray session of a fit: one worker needs none, and only tells a cluster that is named of itself."""
    several = settings.workers > 1
    fit, train = settings.fit, settings.train
    each = (train.cpus_per_worker, train.gpus_per_worker or 0) if settings.trained else (fit.threads, 0)
    room = bundles(settings.workers, *each) if several else ()
    return local_ray(ray, needed=several, room=room, on_progress=on_progress)


def plan_of(step: str, table: Collection, name: str | None, config: ClusterConfig) -> Step:
    """Whether the latest generation is this clustering of this version of the table."""
    samples = table.samples
    clustering = table.clustering(name or config.algorithm.kind)
    latest = clustering.latest()
    same = latest is not None and (latest.samples_version, latest.config_digest) == (samples.version, digest(config))
    reduction = config.reduction(samples.properties.dimension).kind
    what = (
        f"{samples.count():,} embeddings, reduction {reduction}, algorithm {config.algorithm.kind}: {clustering.name}"
    )
    return Step(step, what, State.DONE if same else State.TO_DO)


def figures_of(title: str, summary: ClusterSummary, seconds: float) -> Figures:
    """A clustering in figures."""
    values: dict[str, Value] = {
        "clustering": summary.name,
        "generation": summary.generation.generation,
        "skipped": summary.skipped,
        "rows": summary.rows,
        "clusters": summary.clusters,
        "passes": summary.passes,
        "settled": summary.settled,
        "artifact": summary.generation.artifact[:12],
    }
    values |= {f"fidelity_{name}": value for name, value in summary.fidelity.items()}
    values |= {f"seconds_{step}": value for step, value in summary.seconds.items()}
    return Figures(title, values | {"seconds": seconds})


def choose(table: Collection, name: str | None, config: RunConfig) -> str:
    """The clustering that is meant: the one named, or that of the configured algorithm, or the only one.

    Raises ShoalError when there is none, or several and none of them is meant more than others.
    """
    there = table.clusterings()
    if name is None:
        kind = config.cluster.algorithm.kind
        name = kind if kind in there else there[0] if len(there) == 1 else None
    if name is None or name not in there:
        wanted = "needs --name" if name is None else f"has no clustering named {name!r}"
        raise ShoalError(
            f"The table at {table.path} {wanted}; it has {', '.join(there) or 'none'}: run `shoal cluster` to make one."
        )
    return name
