"""What a generation of a clustering says to Prometheus: gauges of size, change and drift.

A reclustering is over before anyone could ask it for metrics, so they are a file for node exporter's textfile
collector; under Ray they are also gauges of the session, exported as `ray_shoal_recluster_…`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.metrics import Gauge, ray_is_up
from pipeline.recluster.evidence import ClusterDrift, Drift, Evidence
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.place import Place, write_whole

PREFIX = "shoal_recluster_"
WORST = 20  # clusters with a series of their own; which they are changes from generation to generation
EVENTS = ("born", "died", "kept", "merged", "split")

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Family:
    """One metric: a gauge with a series for each set of labels."""

    name: str  # without the prefix
    what: str
    series: tuple[tuple[Labels, float], ...]


def families(name: str, generation: Generation, clusters: pa.Table) -> list[Family]:
    """The metrics of a generation of clustering `name`; what it does not tell has no series.

    `clusters` are its rows of the clusters table, those that died included. Raises ValueError for evidence that no
    shoal wrote.
    """
    own, evidence = {"clustering": name}, Evidence.of(generation)
    rows = [row for row in clusters.select(_COLUMNS).to_pylist() if row["cluster"] >= 0]
    events = Counter(row["event"] for row in rows)
    found = [
        Family(key, what, ((own, float(value)),))
        for key, what, value in (*_sizes(generation, clusters, rows), *_changes(evidence, rows))
        if value is not None
    ]
    found += [
        Family("events", "Clusters by what became of them.", _by("event", own, {e: events[e] for e in EVENTS})),
        Family("seconds", "Wall time, by step.", _by("step", own, evidence.seconds)),
        *_of_clusters(own, (evidence.drift or Drift()).worst_first()[:WORST]),
    ]
    return [family for family in found if family.series]


def exposition(name: str, generation: Generation, clusters: pa.Table) -> str:
    """The metrics in Prometheus' text format, version 0.0.4."""
    return "".join(_lines(families(name, generation, clusters)))


def write_metrics(path: Place, clustering: Clustering, generation: Generation) -> None:
    """Write a file for the textfile collector, which reads `*.prom`; it sees the old file or the whole new one.

    Give each clustering a file of its own. Raises OSError when `path` cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = exposition(clustering.name, generation, clustering.events(generation))
    write_whole(path, text.encode("utf-8", errors="backslashreplace"))


def publish_gauges(clustering: Clustering, generation: Generation) -> bool:
    """Set the same metrics as gauges where this process is in a Ray session; says whether it is."""
    if not ray_is_up():
        return False
    for family in families(clustering.name, generation, clustering.events(generation)):
        gauge = Gauge(PREFIX + family.name, family.what, tuple(family.series[0][0]))
        for labels, value in family.series:
            gauge.set(value, **labels)
    return True


_COLUMNS = ["cluster", "size", "event", "parents"]
_LOW = "Share of arrivals that score below all but 1 % of what the model was made of; 0.01 is expected."
_SHIFT = "Change of arrivals' mean log density, in standard deviations of what the model was made of."

Single = Iterator[tuple[str, str, float | None]]


def _sizes(generation: Generation, clusters: pa.Table, rows: Sequence[Mapping[str, Any]]) -> Single:
    yield "generation", "Number of the newest generation.", generation.generation
    yield "published_timestamp_seconds", "When it was published, Unix time.", generation.created_at.timestamp()
    yield "rows", "Images that it labels, those in noise included.", sum(clusters["size"].to_pylist())
    yield "clusters", "Clusters that have images.", sum(row["event"] != "died" for row in rows)


def _changes(evidence: Evidence, rows: Sequence[Mapping[str, Any]]) -> Single:
    overall, arrived = (evidence.drift or Drift()).overall, evidence.arrived
    new = sum(row["event"] != "died" and row["cluster"] not in (row["parents"] or ()) for row in rows)
    yield "arrived", "Images that arrived since its parent.", arrived
    yield "removed", "Images that were removed since its parent.", evidence.removed
    yield (
        "new_cluster_rate",
        "New clusters per image that arrived.",
        new / arrived if arrived else None,
    )
    yield "low_probability_fraction", _LOW, overall.low_fraction
    yield "log_density_shift", _SHIFT, overall.log_density_shift


def _of_clusters(own: Labels, worst: Sequence[ClusterDrift]) -> Iterator[Family]:
    measures: dict[str, tuple[str, Callable[[ClusterDrift], float | None]]] = {
        "low_probability_fraction": (_LOW, lambda each: each.low_fraction),
        "log_density_shift": (_SHIFT, lambda each: each.log_density_shift),
        "arrived": ("Images that arrived since the model last changed.", lambda each: each.rows),
    }
    for name, (what, measure) in measures.items():
        known = {str(each.cluster): value for each in worst if (value := measure(each)) is not None}
        which = f"{what} Only the {WORST} clusters that changed most surely."
        yield Family(f"cluster_{name}", which, _by("cluster", own, known))


def _by(label: str, own: Labels, values: Mapping[str, float]) -> tuple[tuple[Labels, float], ...]:
    return tuple(({**own, label: key}, float(value)) for key, value in values.items())


def _lines(made: Sequence[Family]) -> Iterator[str]:
    for family in made:
        name = PREFIX + family.name
        yield f"# HELP {name} {_escaped(family.what)}\n# TYPE {name} gauge\n"
        for labels, value in family.series:
            pairs = ",".join(f'{label}="{_escaped(text, quoted=True)}"' for label, text in labels.items())
            yield f"{name}{{{pairs}}} {value!r}\n"


def _escaped(text: str, *, quoted: bool = False) -> str:
    """As the text format wants it; in a label's value quotes too."""
    text = text.replace("\\", r"\\").replace("\n", r"\n")
    return text.replace('"', r"\"") if quoted else text
