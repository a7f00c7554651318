"""Fold what changed in a table into a clustering: labels, a refined model, or a full fit; one generation, at once.

Killed at any moment the last generation stands, and the same call starts again from it. Of two at once one publishes.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

import torch

from models.errors import ShoalError
from models.increment import Refinable
from pipeline.cluster.cluster import ids_used
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
from pipeline.recluster.recount import PROTOTYPES, recounted
from pipeline.recluster.refine import TooMuchError, refine
from pipeline.recluster.work import Work
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.schema import TableError

__all__ = ["ReclusterSummary", "forget", "recluster"]


def recluster(
    table: Collection, config: ReclusterConfig, name: str | None = None, on_progress: Progress = silent
) -> ReclusterSummary:
    """Bring the latest generation of a clustering up to the newest version of its table.

    Raises ShoalError when there is no such clustering, when the embeddings are of another kind than those it was
    fitted on, or when somebody else published meanwhile (then nothing has changed).
    """
    began = time.perf_counter()
    clustering, latest = latest_of(table, name)
    with threads(1):
        return _recluster(table, clustering, latest, config, (on_progress, began))


def forget(table: Collection, name: str, before: Generation, on_progress: Progress = silent) -> Generation:
    """Publish a generation without the rows that the samples table no longer has, and a model without their weight.

    Rows that are in other files now keep their labels. Raises TableError when somebody else published meanwhile.
    """
    config = ReclusterConfig(mode="refine", reread_rows=0, reread_fraction=0.0)
    began = time.perf_counter()
    clustering = table.clustering(name)
    with threads(1):
        found = _recluster(table, clustering, before, config, (on_progress, began), decision="removal")
    return found.generation


def _recluster(
    table: Collection,
    clustering: Clustering,
    latest: Generation,
    config: ReclusterConfig,
    asked: tuple[Progress, float],
    decision: str | None = None,
) -> ReclusterSummary:
    on_progress, began = asked
    labeller = read_labeller(table.artifacts, latest.artifact)
    labeller.require(table.samples.properties)
    delta = Delta.since(table, clustering, latest)
    if delta.is_empty and config.mode in ("auto", "assign"):
        return _unchanged(clustering, latest, began)
    if decision is None:
        _require_learner(labeller)
    labeller = _numbered(clustering, labeller)
    if latest.statistics is None or _must_recount(labeller, delta):
        return recounted(delta, labeller, on_progress, began, decision or "assign")
    memory = read_memory(table.artifacts, latest.statistics, labeller.model)
    work = Work(config, labeller, memory, delta, on_progress)
    number = clustering.begin()
    read = time.perf_counter()
    arrived = arrive(work)
    chosen = decide(work, arrived)
    seconds = {"read": read - began, "assign": time.perf_counter() - read}
    publisher = Publisher(work, number, arrived, chosen, decision or chosen.mode, seconds)
    return _followed(publisher)


def _followed(publisher: Publisher) -> ReclusterSummary:
    """What the decision says, and a full fit where it turns out to be too little."""
    work, chosen = publisher.work, publisher.chosen
    model = work.labeller.model
    if chosen.mode == "assign":
        return publisher.labels()
    if chosen.mode == "refine" and work.labeller.config.trained:
        return publisher.tuned()
    if chosen.mode == "refine" and isinstance(model, Refinable):
        try:
            began, rng = time.perf_counter(), torch.Generator().manual_seed(publisher.number)
            refined = refine(work, publisher.arrived, chosen, rng)
            publisher.seconds["refine"] = time.perf_counter() - began
            return publisher.refined(refined)
        except TooMuchError as error:
            publisher = replace(publisher, decision="refit", chosen=replace(chosen, mode="refit", why=str(error)))
    return publisher.refit()


def _must_recount(labeller: Labeller, delta: Delta) -> bool:
    """Whether rows went that cannot be taken out one by one: they are shared, or their files are not on disk."""
    if not delta.removed:
        return False
    if not labeller.model.hard or labeller.config.algorithm.kind == PROTOTYPES:
        return True
    try:
        for file in delta.removed:
            delta.table.samples.read(file, columns=["key"])
    except TableError:
        return True
    return False


def _require_learner(labeller: Labeller) -> None:
    if labeller.config.algorithm.kind == PROTOTYPES:
        raise ShoalError(
            "Prototypes are learned together with a backbone and do not change with a table; label new rows with "
            "`shoal assign`, or cluster the table with another algorithm."
        )


def _numbered(clustering: Clustering, labeller: Labeller) -> Labeller:
    """The same with a counter of ids above every id that was given since, also by generations rolled back."""
    model = labeller.model
    told = [json.loads(each.evidence).get("next_id", 0) for each in clustering.generations()]  # by roll-backs
    floor = max(model.next_id, ids_used(clustering), *told)
    return labeller if floor == model.next_id else replace(labeller, model=model.renamed(model.id_K, floor))


def _unchanged(clustering: Clustering, latest: Generation, began: float) -> ReclusterSummary:
    sizes = clustering.clusters(latest)["size"].to_pylist()
    why = "nothing arrived and nothing went since this generation"
    seconds = {"read": time.perf_counter() - began}
    return ReclusterSummary(
        clustering.name, latest, "nothing", why, 0, 0, sum(sizes), len(sizes), {}, 0, len(sizes), 0, seconds
    )
