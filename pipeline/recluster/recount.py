"""Counting by a pass over all rows: what an earlier shoal clustered, and where rows cannot be taken out singly."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from models.gmm import GMM
from pipeline.cluster.cluster import Again, cluster
from pipeline.cluster.config import ClusterConfig, digest, with_resources
from pipeline.cluster.fitted import Fitted, Labeller
from pipeline.cluster.label import Against, Gathered, Labelled, label_files, read_rows
from pipeline.cluster.memory import Facts, Memory, Part, read_memory, reference_of, remember
from pipeline.cluster.publish import cluster_table, events_between, move_table
from pipeline.progress import Progress
from pipeline.recluster.delta import Delta
from pipeline.recluster.publisher import ReclusterSummary
from pipeline.recluster.rows import index_of, only
from pipeline.tables.clusterings import Generation, Publication
from pipeline.tables.samples import SampleFile

PROTOTYPES = "prototypes"  # learned with a backbone: they do not change with a table


_NO_ROW = 1e-6  # what rounding leaves of a count


def recollected(delta: Delta, labeller: Labeller, memory: Memory, on_progress: Progress) -> tuple[Labeller, Memory]:
    """What is remembered, counted anew over the rows that are left of those before; kept apart from what arrived.

    For rows that are shared among components, and for files that are no longer there to say what went. A component of
    a Gaussian mixture that is left without rows is left out: its mean may be a row that went.
    """
    part = _left(delta, labeller, on_progress)
    living = torch.nonzero(part.stats.tensors()["count_K"] > _NO_ROW).flatten()
    if isinstance(labeller.model, GMM) and len(living) < len(labeller.model.id_K):
        labeller = replace(labeller, model=labeller.model.kept(living))
        part = _left(delta, labeller, on_progress)
    facts = Facts(labeller.artifact.digest, part.rows, memory.rows_at_fit, memory.made)
    digest_ = remember(memory.store, replace(part, arrivals=memory.arrivals), memory.reference, facts, memory.below)
    return labeller, read_memory(memory.store, digest_, labeller.model)


def _left(delta: Delta, labeller: Labeller, on_progress: Progress) -> Part:
    """What rows leave behind that were there before and are there now, counted as they are labelled."""
    gathered, model = Gathered(labeller.model, None), labeller.model
    for done, file in enumerate(delta.files):
        old_N = np.ones(file.rows, bool) if file in delta.same else ~delta.fresh(file)
        if old_N.any():
            rows = only(read_rows(delta.table.samples, file, labeller), torch.from_numpy(old_N))
            gathered.count(rows, index_of(model.component_K, _components(delta, file)[old_N]))
        on_progress("count again", done + 1, len(delta.files))
    return gathered.part


def _components(delta: Delta, file: SampleFile) -> np.ndarray:
    if file not in delta.same:
        return delta.earlier(file, "component")
    found: np.ndarray = delta.clustering.read_assignments(delta.before, file, ["component"])["component"].to_numpy()
    return found


def refitted(
    delta: Delta, labeller: Labeller, on_progress: Progress, resources: ClusterConfig | None
) -> ReclusterSummary:
    """A full fit where nothing is remembered that could say what arrived."""
    began = time.perf_counter()
    why = "--mode refit"
    evidence = {"why": why, **_came_and_went(delta)}
    config = with_resources(labeller.config, resources)
    found = cluster(delta.table, config, delta.clustering.name, on_progress, again=Again("refit", evidence))
    events = Counter(delta.clustering.events(found.generation)["event"].to_pylist())
    return ReclusterSummary(
        name=delta.clustering.name,
        generation=found.generation,
        decision="refit",
        why=why,
        **_came_and_went(delta),
        rows=found.rows,
        clusters=found.clusters,
        events={event: count for event, count in sorted(events.items()) if event != "kept"},
        files_rewritten=len(delta.files),
        files_kept=0,
        bytes_read=2 * sum(file.bytes for file in delta.files),
        seconds=found.seconds | {"refit": time.perf_counter() - began},
    )


def recounted(
    delta: Delta, labeller: Labeller, on_progress: Progress, begun: tuple[int, float], decision: str
) -> ReclusterSummary:
    """Label every row of the newest version by the model, and publish that as the generation that was begun, when."""
    number, began = begun
    artifact, fitted = labeller.artifact, Fitted(labeller.reduction, labeller.model)
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
    why = "everything was labelled again: " + (
        "rows went, and prototypes keep no account of their rows" if delta.removed else "there are no statistics"
    )
    record = Publication(
        samples_version=delta.version,
        artifact=artifact.digest,
        statistics=remember(delta.table.artifacts, labelled.part, reference, facts),
        config_digest=digest(labeller.config),
        parent=delta.before.generation,
        decision=decision,
        evidence=json.dumps({"why": why, **_came_and_went(delta), "next_id": fitted.model.next_id}),
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
        bytes_read=sum(file.bytes for file in delta.files),
        seconds={"recount": seconds},
    )


def _came_and_went(delta: Delta) -> dict[str, int]:
    return {
        "arrived": sum(int(delta.fresh(file).sum()) for file in delta.added),
        "removed": sum(int(delta.gone(file).sum()) for file in delta.removed),
    }
