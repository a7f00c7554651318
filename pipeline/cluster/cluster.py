"""Cluster a table: reduce, fit, store the artifact, assign every row, publish one generation."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from models.registry import ALGORITHMS
from pipeline.cluster.config import ClusterConfig, digest
from pipeline.cluster.fit import Fit, blocks, fit_rows
from pipeline.cluster.fitted import Labeller, reduction_of, write_fit
from pipeline.cluster.publish import cluster_table, label_files, move_table
from pipeline.cluster.source import TableRows
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
    table: Collection, config: ClusterConfig, name: str | None = None, on_progress: Progress = silent
) -> ClusterSummary:
    """Fit and publish, unless this version of the table is clustered with these settings already.

    `name` of the clustering defaults to the algorithm's. Killed at any point, the last published generation stands and
    the same call continues: a finished reduction is not fitted again, and a fit goes on from its last checkpoint.
    Several workers (`config.workers`) need a Ray session. Raises ShoalError for a table without embeddings.
    """
    clustering = table.clustering(name or config.algorithm.kind)
    version = table.samples.version
    latest = clustering.latest()
    if latest is not None and (latest.samples_version, latest.config_digest) == (version, digest(config)):
        return _summary(table, clustering, latest, skipped=True)
    clock = [time.perf_counter()]
    reduction = reduction_of(table, config, version, on_progress)
    clock.append(time.perf_counter())
    source = TableRows(table.path, version, reduction.digest, config.memory_ceiling_bytes)
    unfinished = table.path / _UNFINISHED / clustering.name
    fitted = _fit(config, source, on_progress, unfinished)
    artifact = write_fit(table, config, version, reduction, fitted)
    clock.append(time.perf_counter())
    labeller = Labeller(artifact, reduction, fitted.model)
    generation = _publish(table, clustering, labeller, fitted, _Context(version, digest(config), clock, on_progress))
    remove_tree(unfinished)  # with what other settings may have left there
    with suppress(OSError):  # another clustering's fit may be under way
        unfinished.parent.rmdir()
    return _summary(table, clustering, generation, skipped=False)


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
    return train_rows(objective(config.algorithm), source, config.train, on_progress, store)


@dataclass(frozen=True)
class _Context:
    version: int
    config_digest: str
    clock: list[float]
    on_progress: Progress


def _publish(
    table: Collection, clustering: Clustering, labeller: Labeller, fitted: Fit, context: _Context
) -> Generation:
    number = clustering.begin()
    samples = table.samples
    files = samples.files(version=context.version)
    written, tally = label_files(samples, files, clustering, labeller, context.on_progress)
    context.clock.append(time.perf_counter())
    begin, reduced, fit_end, end = context.clock
    seconds = {"reduce": reduced - begin, "fit": fit_end - reduced, "assign": end - fit_end}
    record = Publication(
        samples_version=context.version,
        artifact=labeller.artifact.digest,
        config_digest=context.config_digest,
        decision="fit",
        evidence=json.dumps({"seconds": {step: round(value, 3) for step, value in seconds.items()}}),
    )
    clusters = cluster_table(number, tally, fitted.moves, kept=set())
    return clustering.publish(number, written, clusters, move_table(number, fitted.moves), record)


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
