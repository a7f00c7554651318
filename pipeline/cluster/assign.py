"""Label rows with a model that is already there: new rows of its own table, or any table of the same backbone."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

from pipeline.cluster.config import digest
from pipeline.cluster.fitted import Labeller, read_labeller
from pipeline.cluster.label import Against, Labelled, label_files
from pipeline.cluster.memory import Facts, Memory, read_memory, reference_of, remember, remember_more
from pipeline.cluster.publish import cluster_table, move_table, nothing_happened
from pipeline.cluster.published import latest_of
from pipeline.cluster.tally import Tally, counted
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
    if artifact is None:
        clustering = latest_of(table, name)[0]
        number = clustering.begin()  # first: whoever publishes from now on makes this fail
        latest: Generation | None = latest_of(table, clustering.name)[1]
        labeller = _labeller(table, None, clustering.name)
        labeller.require(table.samples.properties)
    else:
        labeller = _labeller(table, artifact, name)
        labeller.require(table.samples.properties)  # before there is anything to be left behind
        clustering = table.clustering(name or labeller.artifact.kind)
        number, latest = clustering.begin(), clustering.latest()
    parent = latest if latest is not None and latest.artifact == labeller.artifact.digest else None
    work = _work(table, parent)
    if not work.new and parent is not None:
        return _summary(clustering, parent, 0, began)
    _adopt(table, labeller)
    generation = _publish((table, clustering, number), labeller, parent, work, on_progress)
    return _summary(clustering, generation, work.rows, began)


@dataclass(frozen=True)
class _Work:
    """The files of a table version: those that the parent generation covers, and the others."""

    version: int
    old: list[SampleFile]
    new: list[SampleFile]
    gone: bool  # whether the parent covers more than `old`

    @property
    def rows(self) -> int:
        """To be labelled."""
        return sum(file.rows for file in self.new)


def _work(table: Collection, parent: Generation | None) -> _Work:
    samples = table.samples
    version = samples.version
    now = samples.files(version=version)
    covered = set() if parent is None else set(samples.files(version=parent.samples_version))
    old = [file for file in now if file in covered]
    return _Work(version, old, [file for file in now if file not in covered], len(old) < len(covered))


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
            table.artifacts.keep(each)


def _publish(
    where: tuple[Collection, Clustering, int],
    labeller: Labeller,
    parent: Generation | None,
    work: _Work,
    on_progress: Progress,
) -> Generation:
    table, clustering, number = where
    memory = None
    if parent is not None and parent.statistics is not None and not work.gone:
        memory = read_memory(table.artifacts, parent.statistics, labeller.model)
    labelled = label_files(table.samples, work.new, clustering, labeller, on_progress, Against(memory))
    before = [] if parent is None else clustering.clusters(parent).to_pylist()
    tally = counted(clustering, parent, work.old) if parent and work.gone else Tally.of_clusters(before)
    tally.merge(labelled.tally)
    record = Publication(
        samples_version=work.version,
        artifact=labeller.artifact.digest,
        statistics=_remembered(table, labeller, memory, labelled, work) if memory or parent is None else None,
        config_digest=digest(labeller.config),
        parent=None if parent is None else parent.generation,
        decision="assign only",
        evidence=json.dumps({"labelled": work.rows}),
    )
    happened = nothing_happened(tally.sizes, [row["cluster"] for row in before])
    clusters = cluster_table(number, tally, happened)
    covering = [*work.old, *work.new]
    files = [file for _, file in labelled.files]
    return clustering.publish(number, files, clusters, move_table(number, ()), record, covering=covering)


def _remembered(table: Collection, labeller: Labeller, memory: Memory | None, labelled: Labelled, work: _Work) -> str:
    part = labelled.part
    if memory is None:  # these are all rows there are
        facts = Facts(labeller.artifact.digest, part.rows, rows_at_fit=part.rows, made=work.version)
        return remember(table.artifacts, part, reference_of(labeller.model, part.sample, labelled.tally.sizes), facts)
    facts = Facts(labeller.artifact.digest, memory.rows + part.rows, memory.rows_at_fit, memory.made, memory.folds)
    return remember_more(memory, replace(part, arrivals=memory.arrivals + part.arrivals), facts)


def _summary(clustering: Clustering, generation: Generation, labelled: int, began: float) -> AssignSummary:
    sizes = clustering.clusters(generation)["size"].to_pylist()
    return AssignSummary(clustering.name, generation, labelled, sum(sizes), len(sizes), time.perf_counter() - began)
