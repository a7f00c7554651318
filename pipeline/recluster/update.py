"""Fold what changed in a table into a clustering: labels, a refined model, or a full fit; one generation, at once.

Killed at any moment the last generation stands, and the same call starts again from it. Of two at once one publishes.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace

import torch

from models.errors import ShoalError
from models.increment import Refinable
from pipeline.cluster.cluster import ids_used
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fitted import Labeller, read_labeller
from pipeline.cluster.memory import read_memory
from pipeline.cluster.published import latest_of
from pipeline.cluster.threads import threads
from pipeline.progress import Progress, silent
from pipeline.recluster.arrive import arrive
from pipeline.recluster.config import ReclusterConfig
from pipeline.recluster.decide import decide
from pipeline.recluster.delta import Delta
from pipeline.recluster.publisher import Publisher, ReclusterSummary
from pipeline.recluster.recount import PROTOTYPES, recollected, recounted, refitted
from pipeline.recluster.refine import TooMuchError, refine, stepped
from pipeline.recluster.work import Work
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.schema import TableError

__all__ = ["ReclusterSummary", "forget", "recluster"]


def recluster(
    table: Collection,
    config: ReclusterConfig,
    name: str | None = None,
    on_progress: Progress = silent,
    resources: ClusterConfig | None = None,
) -> ReclusterSummary:
    """Bring the latest generation of a clustering up to the newest version of its table.

    A full fit has the settings of the clustering, but workers, threads and memory of `resources`.
    Raises ShoalError when there is no such clustering, when the embeddings are of another kind than those it was
    fitted on, or when somebody else published meanwhile (then nothing has changed).
    """
    began = time.perf_counter()
    clustering, _ = latest_of(table, name)
    with threads(1):
        return _recluster(table, clustering, None, config, _Asked(on_progress, began, resources))


def forget(table: Collection, name: str, before: Generation, on_progress: Progress = silent) -> Generation:
    """Publish a generation without the rows that the samples table no longer has, and a model without their weight.

    Rows that are in other files now keep their labels. Raises TableError when somebody else published meanwhile.
    """
    config = ReclusterConfig(mode="refine", reread_rows=0, reread_fraction=0.0)
    began = time.perf_counter()
    clustering = table.clustering(name)
    with threads(1):
        found = _recluster(table, clustering, before, config, _Asked(on_progress, began, None, removal=True))
    return found.generation


@dataclass(frozen=True)
class _Asked:
    """Who wants to know, and what for."""

    on_progress: Progress
    began: float
    resources: ClusterConfig | None
    removal: bool = False


def _recluster(
    table: Collection, clustering: Clustering, before: Generation | None, config: ReclusterConfig, asked: _Asked
) -> ReclusterSummary:
    on_progress, began = asked.on_progress, asked.began
    number = clustering.begin()  # first: whoever publishes from now on makes this fail
    latest = before or latest_of(table, clustering.name)[1]
    labeller = read_labeller(table.artifacts, latest.artifact)
    labeller.require(table.samples.properties)
    delta = Delta.since(table, clustering, latest)
    if delta.is_empty and config.mode in ("auto", "assign"):
        return _unchanged(delta, began)
    if not asked.removal:
        _require(labeller, delta, config)
    labeller = _numbered(clustering, labeller, latest)
    prototypes = labeller.config.algorithm.kind == PROTOTYPES
    if config.mode == "refit" and latest.statistics is None:
        return refitted(delta, labeller, on_progress, asked.resources)
    if latest.statistics is None or (prototypes and delta.removed):
        return recounted(delta, labeller, on_progress, (number, began), "removal" if asked.removal else "assign")
    memory, apart = read_memory(table.artifacts, latest.statistics, labeller.model), True
    if not _readable(delta):
        delta = replace(delta, blind=True)
    if delta.removed and (delta.blind or not labeller.model.hard):
        labeller, memory = recollected(delta, labeller, memory, on_progress)
        apart = False
    work = Work(config, labeller, memory, delta, on_progress, apart=apart)
    read = time.perf_counter()
    arrived = arrive(work)
    chosen = decide(work, arrived)
    seconds = {"read": read - began, "assign": time.perf_counter() - read}
    if asked.removal:
        chosen = replace(chosen, why="their share of the model was taken out")
    decision = "removal" if asked.removal else chosen.mode
    return _followed(Publisher(work, number, arrived, chosen, decision, seconds, asked.resources))


def _followed(publisher: Publisher) -> ReclusterSummary:
    """What the decision says, and a full fit where it turns out to be too little."""
    work, chosen = publisher.work, publisher.chosen
    model = work.labeller.model
    if chosen.mode == "assign":
        return publisher.labels()
    began, rng = time.perf_counter(), torch.Generator().manual_seed(publisher.number)
    if chosen.mode == "refine" and work.labeller.config.trained and publisher.decision == "removal":
        return publisher.refined(stepped(work, publisher.arrived, rng))
    if chosen.mode == "refine" and work.labeller.config.trained:
        return publisher.tuned()
    if chosen.mode == "refine" and isinstance(model, Refinable):
        try:
            refined = refine(work, publisher.arrived, chosen, rng)
            publisher.seconds["refine"] = time.perf_counter() - began
            return publisher.refined(refined)
        except TooMuchError as error:
            publisher = replace(publisher, decision="refit", chosen=replace(chosen, mode="refit", why=str(error)))
    return publisher.refit()


def _readable(delta: Delta) -> bool:
    """Whether the files that were removed are still on disk, so that their rows can be taken out one by one."""
    try:
        for file in delta.removed:
            delta.table.samples.read(file, columns=["key"])
    except TableError:
        return False
    return True


def _require(labeller: Labeller, delta: Delta, config: ReclusterConfig) -> None:
    """Raise ShoalError where there is nothing to be learned, or the algorithm cannot learn so."""
    if labeller.config.algorithm.kind == PROTOTYPES:
        raise ShoalError(
            "Prototypes are learned together with a backbone and do not change with a table; label new rows with "
            "`shoal assign`, or cluster the table with another algorithm."
        )
    if not delta.files:
        raise ShoalError(
            f"The table has 0 embeddings left of those that generation {delta.before.generation} describes; "
            "extract or import some, then run again."
        )
    if config.decay < 1 and labeller.config.trained:
        raise ShoalError(
            f"recluster.decay is {config.decay:g}, but {labeller.config.algorithm.kind} counts all rows anew whenever "
            "it is tuned, so none can fade; leave it at 1, or cluster with dpm, gmm or kmeans."
        )


def _numbered(clustering: Clustering, labeller: Labeller, latest: Generation) -> Labeller:
    """The same with a counter of ids above every id that was given since, also by generations rolled back."""
    model = labeller.model
    told = json.loads(latest.evidence).get("next_id")
    floor = max(model.next_id, ids_used(clustering) if told is None else int(told))
    return labeller if floor == model.next_id else replace(labeller, model=model.renamed(model.id_K, floor))


def _unchanged(delta: Delta, began: float) -> ReclusterSummary:
    clustering, latest = delta.clustering, delta.before
    sizes = clustering.clusters(latest)["size"].to_pylist()
    why = "nothing arrived and nothing went since this generation"
    seconds = {"read": time.perf_counter() - began}
    kept = len(delta.files)
    return ReclusterSummary(
        clustering.name, latest, "nothing", why, 0, 0, sum(sizes), len(sizes), {}, 0, kept, 0, seconds
    )
