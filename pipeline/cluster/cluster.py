"""Cluster a table: reduce, fit, store the artifact, assign every row, publish one generation."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from models.identity import Event, matched
from models.registry import ALGORITHMS
from pipeline.cluster.config import ClusterConfig, digest
from pipeline.cluster.fit import Fit, blocks, fit_rows
from pipeline.cluster.fitted import Fitted, Reduction, reduction_of, write_fit
from pipeline.cluster.label import Against, Labelled, label_files, renamed_files
from pipeline.cluster.memory import Facts, reference_of, remember, without_trials
from pipeline.cluster.metrics import FitMeter
from pipeline.cluster.publish import among, cluster_table, events_between, first_events, move_table, ratios
from pipeline.cluster.source import TableRows
from pipeline.metrics import under_way
from pipeline.progress import Progress, silent
from pipeline.tables.clusterings import Clustering, Generation, Publication
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place, remove_tree
from pipeline.train.checkpoints import CheckpointStore, fingerprint
from pipeline.train.rows import HeldRows, RowSource
from pipeline.train.trainer import train_rows

_UNFINISHED = "unfinished"  # a table's folder for the checkpoints of fits that were stopped


@dataclass(frozen=True)
class ClusterSummary:
    """What a clustering came to."""

    name: str
    generation: Generation
    skipped: bool  # the same clustering of the same rows was there already
    clusters: int
    rows: int
    passes: int
    settled: bool
    fidelity: dict[str, float]  # of the reduction; empty when there is none
    seconds: dict[str, float]  # reduce, fit, assign


def cluster(
    table: Collection,
    config: ClusterConfig,
    name: str | None = None,
    on_progress: Progress = silent,
    *,
    again: Again | None = None,
) -> ClusterSummary:
    """Fit and publish, unless this version of the table is clustered with these settings already (or `again`).

    `name` of the clustering defaults to the algorithm's. Where it has a generation, clusters of the new fit that share
    most rows with one of its clusters keep that one's id (`models.identity`). Killed at any point, the last published
    generation stands and the same call continues: a finished reduction is not fitted again, and a fit goes on from its
    last checkpoint. Several workers (`config.workers`) need a Ray session. Raises ShoalError for a table without
    embeddings.
    """
    clustering = table.clustering(name or config.algorithm.kind)
    version = table.samples.version
    latest = clustering.latest()
    done = latest is not None and (latest.samples_version, latest.config_digest) == (version, digest(config))
    if latest is not None and done and again is None:
        return _summary(table, clustering, latest, skipped=True)
    with under_way("cluster"):
        generation = _made(table, clustering, config, on_progress, again)
    return _summary(table, clustering, generation, skipped=False)


def _made(
    table: Collection,
    clustering: Clustering,
    config: ClusterConfig,
    on_progress: Progress,
    again: Again | None,
) -> Generation:
    number, version = clustering.begin(), table.samples.version
    latest = clustering.latest()
    clock = [time.perf_counter()]
    reduction = reduction_of(table, config, version, on_progress)
    clock.append(time.perf_counter())
    source = TableRows(table.path, version, reduction.digest, config.memory_ceiling_bytes)
    unfinished = table.path / _UNFINISHED / clustering.name
    fitted = _fit(config, source, on_progress, unfinished)
    clock.append(time.perf_counter())
    context = _Context(table, clustering, config, (number, version), latest, clock, on_progress, again)
    generation = _publish(context, reduction, fitted)
    remove_tree(unfinished)  # with what other settings may have left there
    with suppress(OSError):  # another clustering's fit may be under way
        unfinished.parent.rmdir()
    return generation


def _fit(config: ClusterConfig, source: TableRows, on_progress: Progress, unfinished: Place) -> Fit:
    """Fit or train, with checkpoints in a folder of `unfinished` that settings and rows name."""
    settings = config.train.outcome if config.trained else config.fit.outcome
    algorithm = config.algorithm.model_dump(mode="json")
    run = fingerprint(algorithm=algorithm, settings=settings, rows=source.fingerprint())
    store = CheckpointStore(unfinished / run[:16], run)
    if config.workers > 1:
        return _fit_rows(config, source, on_progress, store)
    rows = source.read(0, source.rows, on_progress)
    return _fit_rows(config, HeldRows(rows.x_ND, rows.row_N), on_progress, store)


def _fit_rows(config: ClusterConfig, source: RowSource, on_progress: Progress, store: CheckpointStore | None) -> Fit:
    objective = ALGORITHMS[config.algorithm.kind].objective
    if objective is None:
        return fit_rows(config.algorithm, source, config.fit, on_progress, store)
    meter = FitMeter(config.algorithm.kind)
    return train_rows(objective(config.algorithm), source, config.train, on_progress, store, meter)


@dataclass(frozen=True)
class Again:
    """Why rows that are clustered are clustered again, for the generation's record."""

    decision: str
    evidence: Mapping[str, Any]


@dataclass(frozen=True)
class _Context:
    table: Collection
    clustering: Clustering
    config: ClusterConfig
    begun: tuple[int, int]  # number of the generation, version of the samples
    latest: Generation | None
    clock: list[float]
    on_progress: Progress
    again: Again | None


def _publish(context: _Context, reduction: Reduction, fit: Fit) -> Generation:
    clustering, latest, samples = context.clustering, context.latest, context.table.samples
    number, version = context.begun
    files = samples.files(version=version)
    fit = replace(fit, model=without_trials(fit.model))
    fitted = Fitted(reduction, fit.model)
    labelled = label_files(samples, files, clustering, fitted, context.on_progress, Against(generation=latest))
    happened, written = first_events(labelled.tally, fit.moves), [file for _, file in labelled.files]
    if latest is not None:
        fit, labelled, happened = _named(context, fit, labelled, latest)
        written = renamed_files(clustering, labelled.files, fitted.model, fit.model)
    artifact = write_fit(context.table, context.config, version, reduction, fit)
    rows = labelled.part.rows
    facts = Facts(artifact.digest, rows, rows_at_fit=rows, made=version)
    reference = reference_of(fit.model, labelled.part.sample, labelled.tally.sizes)
    context.clock.append(time.perf_counter())
    begin, reduced, fit_end, end = context.clock
    seconds = {"reduce": reduced - begin, "fit": fit_end - reduced, "assign": end - fit_end}
    evidence: dict[str, Any] = {"next_id": fit.model.next_id}
    evidence |= {"seconds": {step: round(value, 3) for step, value in seconds.items()}}
    record = Publication(
        samples_version=version,
        artifact=artifact.digest,
        statistics=remember(context.table.artifacts, labelled.part, reference, facts),
        config_digest=digest(context.config),
        parent=None if latest is None else latest.generation,
        decision=context.again.decision if context.again else "fit",
        evidence=json.dumps(evidence | dict(context.again.evidence if context.again else {})),
    )
    clusters = cluster_table(number, labelled.tally, happened, ratios(fit.moves, fit.model))
    moves = move_table(number, fit.moves)
    return clustering.publish(number, written, clusters, moves, record, covering=files)


def _named(context: _Context, fit: Fit, labelled: Labelled, latest: Generation) -> tuple[Fit, Labelled, list[Event]]:
    """The same fit with the ids of the generation before wherever its clusters live on; what became of those."""
    sizes = {row["cluster"]: row["size"] for row in context.clustering.clusters(latest).to_pylist()}
    old_ids, tentative, count_OC = among(sizes, fit.model.id_K.unique().tolist(), labelled.overlap)
    new_ids, next_id = matched(count_OC, old_ids, max(fit.model.next_id, ids_used(context.clustering)))
    names = dict(zip(tentative.tolist(), new_ids.tolist(), strict=True))
    cluster_K = torch.tensor([names[each] for each in fit.model.id_K.tolist()])
    fit = replace(fit, model=fit.model.renamed(cluster_K, next_id))
    shared = (labelled.overlap[0], np.array([names[each] for each in labelled.overlap[1].tolist()], np.int64))
    labelled = replace(labelled, tally=labelled.tally.renamed(names), overlap=(*shared, labelled.overlap[2]))
    return fit, labelled, events_between(sizes, labelled.tally.sizes, labelled.overlap)


def ids_used(clustering: Clustering) -> int:
    """Above every id that a cluster of any generation had, and those that models of generations still there gave."""
    told = [int(json.loads(each.evidence).get("next_id", 0)) for each in clustering.generations()]
    return max(max(clustering.lineage()["cluster"].to_pylist(), default=-1) + 1, *told, 0)


def _summary(table: Collection, clustering: Clustering, generation: Generation, *, skipped: bool) -> ClusterSummary:
    manifest = table.artifacts.read(generation.artifact).manifest
    reduction = manifest["reduction"]
    sizes = clustering.clusters(generation)["size"].to_pylist()
    return ClusterSummary(
        name=clustering.name,
        generation=generation,
        skipped=skipped,
        clusters=len(sizes),
        rows=sum(sizes),
        passes=len(manifest["history"]),
        settled=manifest["settled"],
        fidelity={} if reduction is None else table.artifacts.read(reduction).manifest["fidelity"],
        seconds=json.loads(generation.evidence).get("seconds", {}),
    )


def fit_array(x_ND: np.ndarray, config: ClusterConfig, on_progress: Progress = silent) -> tuple[np.ndarray, Fit]:
    """Cluster a matrix in memory, without a table or a reduction: the label of each row, and the fit.

    Row n's hash is n, so the order of rows matters where an algorithm samples them.
    """
    x_ND, row_N = np.ascontiguousarray(x_ND, np.float32), np.arange(len(x_ND), dtype=np.int64)
    fitted = _fit_rows(config, HeldRows(x_ND, row_N), on_progress, store=None)
    parts = [fitted.model.assign(x_nD).cluster_N.numpy() for x_nD, _ in blocks(x_ND, row_N, config.fit.block_rows)]
    return np.concatenate(parts), fitted
