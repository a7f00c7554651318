"""Benchmark `recluster-stream`: ids and scores through many increments, and statistics beside one pass over all rows.

- *Unseen classes.* MNIST (N2D): a first fit on eight digits, 20 increments of 700 rows (1 %) of those, and 20 that
  bring the two others. Bars: both become clusters; at least 99.5 % of the rows of the eight have at the end the id that
  they were first given; NMI at most .01 below that of a full refit.
- *Drift.* 12 generated clusters over 50 increments, seen through a window: means move, two meet, one ends. Bars: a
  cluster's id follows it, and what is recorded is one merge and one death, each in its time, and no other event.
- *Statistics.* Ten increments of random size, three of which also take a file away, the model held fixed: statistics
  equal those of one pass over all rows to 1e-9, with the DPM, k-means and a Gaussian mixture.

Takes two minutes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.data import MNIST, USUAL, read
from jobs.bench.sides import algorithm, timed
from jobs.figures import Row, Value
from models.reduce import NoReduction
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.evaluate.following import Seen, Story, arrive, begun, born, events, joined, kept_share, owned, seen
from pipeline.evaluate.metrics import score_labels
from pipeline.evaluate.streams import Batch, Drift, Mixture, Unseen
from pipeline.progress import Progress
from pipeline.recluster.config import ReclusterConfig
from pipeline.recluster.update import recluster
from pipeline.recluster.verify import against_one_pass
from pipeline.tables.collection import Collection

UNSEEN = (8, 9)
DRIFT = Drift()
FIXED: dict[str, dict[str, Any]] = {"dpm": {}, "kmeans": {"clusters": 20}, "gmm": {"clusters": 20}}


@dataclass(frozen=True)
class Outcome:
    """What one of the three streams came to."""

    bars: list[Bar]
    rows: list[Row]
    values: dict[str, Value]


def run(
    data: Path | None,
    on_progress: Progress,
    unseen: tuple[int, ...] = UNSEEN,
    increments: int = 20,
    drift: Drift = DRIFT,
) -> Result:
    """`data`: the .npz file of MNIST's embeddings. Raises ShoalError where it is missing."""
    digits = read(data or USUAL / MNIST)
    stream = Unseen(digits.x_ND, digits.label_N, unseen, increments, rows=round(len(digits.x_ND) / 100))
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        folder = Path(name)
        new = arrivals(folder / "unseen", stream, on_progress)
        moved = drifting(folder / "drift", drift, on_progress)
        errors = {kind: fixed(folder / kind, kind, on_progress) for kind in FIXED}
    statistics = [Bar(f"error of statistics, {kind}", error, most=1e-9) for kind, error in errors.items()]
    law: dict[str, Value] = {"rows": len(digits.x_ND), "unseen": ", ".join(map(str, unseen))}
    tables = {"unseen": new.rows, "drift": moved.rows}
    return judged("recluster-stream", [*new.bars, *moved.bars, *statistics], law | new.values | moved.values, tables)


def arrivals(path: Path, stream: Unseen, on_progress: Progress) -> Outcome:
    """A stream that brings classes which the first fit did not see."""
    table = _fitted(path, stream.base(), ClusterConfig(reduce=NoReduction()))
    given = base = latest = _latest(table)  # what rows were first given; of the first fit; of the newest generation
    rows: list[Row] = []
    for number, batch in enumerate(stream.later(), start=1):
        on_progress("bench, unseen classes", number, 2 * stream.increments)
        arrive(table, [batch])
        before, (latest, row) = latest, _reclustered(table)
        given = joined(given, latest)
        rows.append({"increment": number, **row, "rows_that_keep_their_id": kept_share(before, latest)})
    refit, row = _reclustered(table, "refit")
    rows.append({"increment": "refit", **row, "rows_that_keep_their_id": kept_share(latest, refit)})
    others = sorted(set(np.unique(stream.label_N).tolist()) - set(stream.unseen))
    bars = [
        Bar("unseen classes that became clusters", len(owned(latest, stream.unseen)), least=len(stream.unseen)),
        Bar("rows of the others that keep their id", kept_share(given, latest, others), least=0.995),
        Bar("nmi below a full refit's", _nmi(refit) - _nmi(latest), most=0.01),
    ]
    new = len(born(base, latest, stream.unseen))  # the others took over a small cluster of stray rows
    return Outcome(
        bars, rows, {"unseen_classes_under_new_ids": new, "nmi": _nmi(latest), "nmi_of_a_refit": _nmi(refit)}
    )


def drifting(path: Path, law: Drift, on_progress: Progress) -> Outcome:
    """A stream whose clusters move, meet and end."""
    table = _fitted(path, law.base(), ClusterConfig(reduce=NoReduction()))
    start = _latest(table)
    story = Story(law, {gaussian: start.cluster_of(gaussian) for gaussian in range(law.clusters)})
    rows: list[Row] = []
    for time, batch in enumerate(law.later(), start=1):
        on_progress("bench, drift", time, law.increments)
        arrive(table, [batch], leaving=1)
        found, row = _reclustered(table)
        share = story.take(time, found, events(table.clustering("dpm")))
        rows.append({"increment": time, **row, "ids_that_follow": share})
    bars = [
        Bar("ids that follow their cluster", story.share, least=0.99),
        Bar("merges of the two that met, in time", story.merges, 1, 1),
        Bar("deaths of the one that ended, in time", story.deaths, 1, 1),
        Bar("events that did not happen", len(story.others), most=0),
    ]
    return Outcome(bars, rows, {"events_that_did_not_happen": "; ".join(story.others)})


def fixed(path: Path, kind: str, on_progress: Progress, rows: int = 5_000, increments: int = 10) -> float:
    """The largest relative error of statistics after increments of random size, the model held fixed."""
    on_progress(f"bench, statistics of {kind}", 0, None)
    rng = np.random.default_rng(0)
    mixture = Mixture.drawn(20, 16, 1.2, rng)
    batches = [mixture.draw(rows, rng) for _ in range(4)]
    table = _fitted(path, batches, ClusterConfig(algorithm=algorithm(kind, **FIXED[kind]), reduce=NoReduction()))
    for number, size in enumerate(rng.integers(1, rows, increments)):
        arrive(table, [mixture.draw(size, rng)], leaving=int(number in (2, 5, 8)))
        recluster(table, ReclusterConfig(mode="assign"), kind)
    return against_one_pass(table, kind)


def _fitted(path: Path, batches: Iterable[Batch], config: ClusterConfig) -> Collection:
    """A new table with these rows, clustered."""
    batches = list(batches)
    table = begun(path, batches[0].x_ND.shape[1])
    arrive(table, batches)
    cluster(table, config)
    return table


def _latest(table: Collection) -> Seen:
    clustering = table.clustering("dpm")
    return seen(table, clustering, clustering.generations()[-1])


def _reclustered(table: Collection, mode: Literal["auto", "refit"] = "auto") -> tuple[Seen, Row]:
    """What became of the rows, and what is told of it."""
    with timed() as clock:
        summary = recluster(table, ReclusterConfig(mode=mode), "dpm")
    found = _latest(table)
    events_of_it = ", ".join(f"{count} {event}" for event, count in sorted(summary.events.items()) if event != "kept")
    row: Row = {
        "decision": summary.decision,
        "why": summary.why,
        "clusters": summary.clusters,
        "events": events_of_it,
        "nmi": _nmi(found),
        "cpu_seconds": clock.cpu_seconds,
    }
    return found, row


def _nmi(found: Seen) -> float:
    return score_labels(found.label_N, found.cluster_N).nmi or 0.0
