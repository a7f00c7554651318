"""Fill a report from the tables: the only part of it that reads anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow as pa

from jobs.config import as_yaml
from jobs.report.collect_change import change, generation_lines
from jobs.report.data import (
    MapPoints,
    MoveRow,
    Pass,
    Picture,
    RejectRow,
    ReportConfig,
    ReportData,
    ScoreRow,
    Sheet,
    Summary,
    shown_clusters,
)
from models.errors import ShoalError
from pipeline.cluster.published import Published, published
from pipeline.evaluate.evaluate import EvaluateConfig, Evaluation, evaluate
from pipeline.evaluate.exemplars import Exemplars, exemplars, map_rows
from pipeline.history.lineage import Lineage
from pipeline.ingest.locate import read_range
from pipeline.progress import Progress, silent
from pipeline.tables.collection import Collection

_LIBRARIES = ("shoal", "ray", "torch", "torchvision", "deltalake", "faiss-gpu", "faiss-cpu", "umap-learn")
_READERS = 16  # a picture is three requests to an object store, each of tens of milliseconds


def collect(
    table: Collection,
    name: str,
    config: ReportConfig,
    scores: EvaluateConfig,
    on_progress: Progress = silent,
) -> ReportData:
    """The report of clustering `name`, with the table's other clusterings beside it in the table of scores.

    Reads sample and assignment columns of every row, and the images of exemplars only. Raises ShoalError when there is
    no such clustering.
    """
    found = published(table, name)
    others = [each for each in table.clusterings() if each != name]
    evaluations = [evaluate(table, each, scores, on_progress) for each in (name, *others)]
    main, assigned = evaluations[0], found.assigned()
    sizes, lineage = main.geometry.sizes, Lineage(found.clustering)
    changed = change(found, lineage, on_progress)
    return ReportData(
        title=f"{len(sizes)} clusters in {assigned.num_rows:,} images",
        created_at=found.generation.created_at,
        summary=_summary(found, main),
        sizes=sizes,
        sheets=_sheets(found, assigned, shown_clusters(sizes, config, changed), config, (lineage, on_progress)),
        scores=tuple(_score_row(each) for each in evaluations),
        history=_history(found),
        map=_map(found, assigned, config, on_progress),
        contingency=main.labels.contingency if main.labels else None,
        moves=_moves(found),
        change=changed,
        generations=generation_lines(lineage),
        rejects=_rejects(table, config),
        provenance=_provenance(found),
        config_yaml=as_yaml(found.labeller.config),
    )


def _summary(found: Published, main: Evaluation) -> Summary:
    samples = found.table.samples
    properties = samples.properties
    manifest = found.labeller.artifact.manifest
    rejects = samples.rejects(found.generation.samples_version)["reason"].value_counts().to_pylist()
    return Summary(
        images=main.geometry.rows + main.geometry.noise,
        clusters=main.geometry.clusters,
        algorithm=main.algorithm,
        backbone=properties.backbone,
        weights=str(properties.preprocessing.get("weights", "")),
        dimension=properties.dimension,
        reduction=_reduction(found),
        fidelity=found.labeller.reduction.reducer.fidelity,
        passes=len(manifest["history"]),
        noise=main.geometry.noise,
        rejects={each["values"]: each["counts"] for each in rejects},
        seconds=json.loads(found.generation.evidence).get("seconds", {}),
    )


def _reduction(found: Published) -> str | None:
    artifact = found.labeller.reduction.artifact
    if artifact is None:
        return None
    kind = artifact.manifest["inputs"]["config"]["kind"]
    return f"{kind.upper()} to {artifact.manifest['dim']} dimensions"


def _score_row(evaluation: Evaluation) -> ScoreRow:
    return ScoreRow.of(evaluation.name, evaluation.geometry, evaluation.labels, evaluation.objective)


def _history(found: Published) -> tuple[Pass, ...]:
    history = found.labeller.artifact.manifest["history"]
    return tuple(Pass(number + 1, objective, clusters) for number, (objective, clusters) in enumerate(history))


def _sheets(
    found: Published,
    assigned: pa.Table,
    clusters: list[int],
    config: ReportConfig,
    asked: tuple[Lineage, Progress],
) -> tuple[Sheet, ...]:
    lineage, on_progress = asked
    born = {row["cluster"]: row for row in found.clustering.clusters(found.generation).to_pylist()}
    since = lineage.first_seen(found.generation.generation)
    sheets = []
    with ThreadPoolExecutor(_READERS) as readers:
        for done, each in enumerate(exemplars(assigned, clusters, config.typical, config.uncertain)):
            sheets.append(replace(_sheet(each, born[each.cluster], readers), since=since.get(each.cluster)))
            on_progress("contact sheets", done + 1, len(clusters))
    return tuple(sheets)


def _sheet(each: Exemplars, row: Mapping[str, Any], readers: Executor) -> Sheet:
    return Sheet(
        cluster=each.cluster,
        size=each.size,
        typical=tuple(readers.map(_picture, each.typical)),
        uncertain=tuple(readers.map(_picture, each.uncertain)),
        mean_probability=each.mean_probability,
        event=row["event"],
        parents=tuple(row["parents"] or ()),
        majority_label=each.majority_label,
        purity=each.purity,
    )


def _picture(row: Mapping[str, Any]) -> Picture:
    return Picture(
        key=row["key"],
        shard=row["shard"],
        image=_image(row),
        probability=row["probability"],
        label=row["label"],
        runner_up=row["runner_up"],
    )


def _image(row: Mapping[str, Any]) -> bytes | None:
    """None for imported embeddings, and for shards that are gone: the report then says that it has no picture."""
    if row["offset"] is None:
        return None
    try:
        return read_range(row["shard"], row["offset"], row["size"])
    except ShoalError:
        return None


def _map(found: Published, assigned: pa.Table, config: ReportConfig, on_progress: Progress) -> MapPoints | None:
    if config.map_rows == 0:
        return None
    on_progress("map", 0, None)
    rows = found.rows()
    chosen_M, place_M2 = map_rows(rows, config.map_rows, seed=0)
    cluster_M = assigned["cluster"].to_numpy()[chosen_M]
    return MapPoints(place_M2[:, 0], place_M2[:, 1], cluster_M, "t-SNE")


def _moves(found: Published) -> tuple[MoveRow, ...]:
    rows = found.clustering.moves(found.generation).to_pylist()
    return tuple(
        MoveRow(row["sweep"], row["kind"], tuple(row["clusters"]), row["log_ratio"], row["accepted"], row["why"])
        for row in rows
    )


def _rejects(table: Collection, config: ReportConfig) -> tuple[RejectRow, ...]:
    rows = table.samples.rejects().slice(0, config.max_rejects).to_pylist()
    return tuple(
        RejectRow(
            shard=row["shard"],
            reason=row["reason"],
            key=row["key"] or None,
            start=row["offset"],
            end=None if row["offset"] is None or row["size"] is None else row["offset"] + row["size"],
            detail=row["detail"],
        )
        for row in rows
    )


def _provenance(found: Published) -> dict[str, str]:
    generation, properties = found.generation, found.table.samples.properties
    facts = {
        "table": str(found.table.path),
        "samples version": str(generation.samples_version),
        "clustering": f"{found.clustering.name}, generation {generation.generation}",
        "clusterer artifact": generation.artifact,
        "reduction artifact": found.labeller.reduction.digest or "none",
        "backbone digest": properties.backbone_digest,
        "config digest": generation.config_digest,
        "preprocessing": json.dumps(properties.preprocessing),
    }
    for library in _LIBRARIES:
        try:
            facts[library] = version(library)
        except PackageNotFoundError:
            continue  # faiss comes as one of two distributions
    return facts
