"""Label rows with a model that is already there: new rows of its own table, or any table of the same backbone."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from pipeline.cluster.config import digest
from pipeline.cluster.fitted import Labeller, read_labeller
from pipeline.cluster.publish import Tally, cluster_table, label_files, move_table
from pipeline.cluster.published import latest_of
from pipeline.progress import Progress, silent
from pipeline.tables.artifacts import MANIFEST, ArtifactStore
from pipeline.tables.clusterings import Clustering, Generation, Publication
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place, place
from pipeline.tables.samples import SampleFile


@dataclass(frozen=True)
class AssignSummary:
    """What was labelled."""

    name: str
    generation: Generation
    labelled: int  # rows that had no assignment from this model before
    rows: int
    clusters: int
    seconds: float


def assign(
    table: Collection, artifact: str | Place | None = None, name: str | None = None, on_progress: Progress = silent
) -> AssignSummary:
    """Give every row a cluster by `artifact`, or by the model of the clustering's latest generation.

    Rows that this model labelled before are not read again. Publishes nothing when there is nothing new.
    Raises ShoalError when there is no model, or when it was fitted on embeddings of another kind.
    """
    began = time.perf_counter()
    labeller = _labeller(table, artifact, name)
    labeller.require(table.samples.properties)
    clustering = table.clustering(name or (labeller.artifact.kind if artifact else latest_of(table, None)[0].name))
    latest = clustering.latest()
    parent = latest if latest is not None and latest.artifact == labeller.artifact.digest else None
    work = _work(table, parent)
    if not work.new and parent is not None:
        return _summary(clustering, parent, 0, began)
    _adopt(table, labeller)
    generation = _publish(table, clustering, labeller, parent, work, on_progress)
    return _summary(clustering, generation, work.rows, began)


@dataclass(frozen=True)
class _Work:
    """The files of a table version: those that the parent generation covers, and the others."""

    version: int
    old: list[SampleFile]
    new: list[SampleFile]

    @property
    def rows(self) -> int:
        """To be labelled."""
        return sum(file.rows for file in self.new)


def _work(table: Collection, parent: Generation | None) -> _Work:
    samples = table.samples
    version = samples.version
    old = [] if parent is None else samples.files(version=parent.samples_version)
    covered = set(old)
    return _Work(version, old, [file for file in samples.files(version=version) if file not in covered])


def _labeller(table: Collection, artifact: str | Place | None, name: str | None) -> Labeller:
    if artifact is not None:
        folder = place(artifact).absolute()
        folder = folder.parent if folder.name == MANIFEST else folder
        return read_labeller(ArtifactStore(folder.parent), folder)
    return read_labeller(table.artifacts, latest_of(table, name)[1].artifact)


def _adopt(table: Collection, labeller: Labeller) -> None:
    """Keep the labeller's artifacts with the table, so that its generations resolve; those that are there stay."""
    for each in (labeller.artifact, labeller.reduction.artifact):
        if each is not None:
            table.artifacts.write(each.kind, each.manifest, each.tensors)


def _publish(
    table: Collection,
    clustering: Clustering,
    labeller: Labeller,
    parent: Generation | None,
    work: _Work,
    on_progress: Progress,
) -> Generation:
    number = clustering.begin()
    written, tally = label_files(table.samples, work.new, clustering, labeller, on_progress)
    whole, kept = Tally(), set()
    if parent is not None:
        kept = set(clustering.clusters(parent)["cluster"].to_pylist())
        for file in work.old:
            whole.add(clustering.read_assignments(parent, file, columns=["key", "shard", "cluster", "score"]))
    whole.merge(tally)
    record = Publication(
        samples_version=work.version,
        artifact=labeller.artifact.digest,
        config_digest=digest(labeller.config),
        parent=None if parent is None else parent.generation,
        decision="assign only",
        evidence=json.dumps({"labelled": work.rows}),
    )
    return clustering.publish(
        number, written, cluster_table(number, whole, (), kept=kept), move_table(number, ()), record
    )


def _summary(clustering: Clustering, generation: Generation, labelled: int, began: float) -> AssignSummary:
    sizes = clustering.clusters(generation)["size"].to_pylist()
    return AssignSummary(clustering.name, generation, labelled, sum(sizes), len(sizes), time.perf_counter() - began)
