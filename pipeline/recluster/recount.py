"""Everything is counted again: what an earlier shoal clustered, and rows that went from algorithms which share rows.

Costs a pass over all rows; two where the model is to be without rows that went.
"""

from __future__ import annotations

import json
import time
from collections import Counter

import torch

from models.clusterer import Clusterer, Stats
from models.dpm.mixture import DPM
from models.gmm import GMM
from models.kmeans import KMeans
from pipeline.cluster.config import digest
from pipeline.cluster.fitted import Fitted, Labeller, write_model
from pipeline.cluster.label import Against, Labelled, label_files, read_rows
from pipeline.cluster.memory import Facts, nothing, reference_of, remember
from pipeline.cluster.publish import cluster_table, events_between, move_table
from pipeline.progress import Progress
from pipeline.recluster.delta import Delta
from pipeline.recluster.publisher import ReclusterSummary
from pipeline.tables.clusterings import Generation, Publication
from pipeline.tables.schema import TableError

PROTOTYPES = "prototypes"  # learned with a backbone: they do not change with a table


_NO_ROW = 1e-6  # what rounding leaves of a count


def recounted(delta: Delta, labeller: Labeller, on_progress: Progress, began: float, decision: str) -> ReclusterSummary:
    """Label every row of the newest version by the model, without the weight of rows that went, and publish that."""
    number = delta.clustering.begin()
    artifact, fitted = labeller.artifact, Fitted(labeller.reduction, labeller.model)
    if delta.removed and labeller.config.algorithm.kind != PROTOTYPES:
        model = _stepped(labeller.model, _stats(delta, fitted, on_progress))
        changed = {"samples_version": delta.version, "rows": sum(file.rows for file in delta.files)}
        artifact, fitted = write_model(delta.table, artifact, model, changed), Fitted(labeller.reduction, model)
    labelled = label_files(
        delta.table.samples,
        delta.files,
        delta.clustering,
        fitted,
        on_progress,
        Against(generation=delta.before, named=True),
    )
    facts = Facts(artifact.digest, labelled.part.rows, labelled.part.rows, delta.version)
    reference = reference_of(fitted.model, labelled.part.sample, labelled.tally.sizes)
    old = {row["cluster"]: row["size"] for row in delta.clustering.clusters(delta.before).to_pylist()}
    happened = events_between(old, labelled.tally.sizes, labelled.overlap)
    shared = "rows went, and the algorithm shares rows among components"
    hidden = "rows went whose files are no longer there to be taken out one by one"
    unknown = "the generation before has no statistics"
    reason = (hidden if fitted.model.hard else shared) if delta.removed else unknown
    why = f"everything was counted again: {reason}"
    record = Publication(
        samples_version=delta.version,
        artifact=artifact.digest,
        statistics=remember(delta.table.artifacts, labelled.part, reference, facts),
        config_digest=digest(labeller.config),
        parent=delta.before.generation,
        decision=decision,
        evidence=json.dumps({"why": why, **_came_and_went(delta)}),
    )
    clusters = cluster_table(number, labelled.tally, happened)
    generation = delta.clustering.publish(
        number, [file for _, file in labelled.files], clusters, move_table(number, ()), record, covering=delta.files
    )
    events = Counter(str(event.event) for event in happened if event.event != "kept")
    return _summary(delta, generation, labelled, (why, dict(events), time.perf_counter() - began))


def _summary(
    delta: Delta, generation: Generation, labelled: Labelled, told: tuple[str, dict[str, int], float]
) -> ReclusterSummary:
    why, events, seconds = told
    return ReclusterSummary(
        name=delta.clustering.name,
        generation=generation,
        decision="assign",
        why=why,
        **_came_and_went(delta),
        rows=labelled.part.rows,
        clusters=len(labelled.tally.sizes),
        events=events,
        files_rewritten=len(labelled.files),
        files_kept=len(delta.files) - len(labelled.files),
        bytes_read=sum(file.bytes for file in delta.files) * (2 if delta.removed else 1),
        seconds={"recount": seconds},
    )


def _came_and_went(delta: Delta) -> dict[str, int]:
    try:
        arrived = sum(sum(label is None for label in delta.carried(file)) for file in delta.added)
        return {"arrived": arrived, "removed": sum(int(delta.gone(file).sum()) for file in delta.removed)}
    except TableError:  # the files are no longer there: nobody knows which of their rows are in others now
        arrived, removed = (sum(file.rows for file in files) for files in (delta.added, delta.removed))
        return {"arrived": arrived, "removed": removed}


def _stats(delta: Delta, fitted: Fitted, on_progress: Progress) -> Stats:
    stats = nothing(fitted.model)
    for done, file in enumerate(delta.files):
        rows = read_rows(delta.table.samples, file, fitted)
        stats += fitted.model.expect(rows.x_ND, rows.row_N)
        on_progress("count again", done + 1, len(delta.files))
    return stats


def _stepped(model: Clusterer, stats: Stats) -> Clusterer:
    """One M-step, after which what has no row left is no component: its mean may be a row that was taken out."""
    if isinstance(model, DPM):
        return model.mstep(stats)
    model = model.maximize(stats, torch.Generator()).model
    living = torch.nonzero(stats.tensors()["count_K"] > _NO_ROW).flatten()
    return model.kept(living) if isinstance(model, (KMeans, GMM)) else model
