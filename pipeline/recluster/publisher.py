"""From a decision and what it led to, to a published generation and a summary."""

from __future__ import annotations

import json
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from models.clusterer import Clusterer, Move
from models.deepdpm.model import DeepDPM
from models.drift import Arrivals
from models.identity import Event
from models.increment import Held
from pipeline.cluster.cluster import Again, cluster
from pipeline.cluster.config import ClusterConfig, digest, with_resources
from pipeline.cluster.fitted import Fitted, write_model
from pipeline.cluster.label import Against, label_files
from pipeline.cluster.memory import Facts, Part, reference_of, remember, remember_more
from pipeline.cluster.publish import cluster_table, events_between, move_table, nothing_happened, ratios
from pipeline.cluster.tally import Tally
from pipeline.recluster.hold import hold
from pipeline.recluster.relabel import Refined
from pipeline.recluster.tune import tuned
from pipeline.recluster.work import Arrived, Decision, Work
from pipeline.tables.clusterings import Generation, Publication
from pipeline.tables.delta import WrittenFile
from pipeline.tables.schema import TableError

_CLUSTERS_TOLD = 200  # whose drift is stored with a generation


@dataclass(frozen=True)
class ReclusterSummary:
    """What became of a clustering."""

    name: str
    generation: Generation
    decision: str  # assign, refine, refit, or nothing
    why: str
    arrived: int
    removed: int
    rows: int
    clusters: int
    events: dict[str, int]
    files_rewritten: int
    files_kept: int
    bytes_read: int  # of data files of samples
    seconds: dict[str, float]


@dataclass(frozen=True)
class _Published:
    """What a generation is made of."""

    files: Sequence[WrittenFile]
    tally: Tally
    events: Sequence[Event]
    moves: Sequence[Move]
    model: Clusterer
    artifact: str
    statistics: str


@dataclass(frozen=True)
class Publisher:
    """Ends a reclustering."""

    work: Work
    number: int
    arrived: Arrived
    chosen: Decision
    decision: str
    seconds: dict[str, float]
    resources: ClusterConfig | None = None  # workers, threads and memory of a full fit

    def labels(self) -> ReclusterSummary:
        """The model as it is: labels of what arrived, and what these rows leave behind."""
        work, memory, part = self.work, self.work.memory, self.arrived.part
        facts = self._facts(memory.artifact.manifest["model"], memory.made)
        statistics = remember_more(memory, part, facts, work.decay, work.config.fold_after)
        sizes = work.clustering.clusters(work.before)["cluster"].to_pylist()
        happened = nothing_happened(self.arrived.tally.sizes, sizes)
        files = [written for _, written in self.arrived.written]
        return self._publish(
            _Published(
                files, self.arrived.tally, happened, (), work.labeller.model, work.labeller.artifact.digest, statistics
            )
        )

    def refined(self, refined: Refined, folds: Sequence[tuple[int, float]] | None = None) -> ReclusterSummary:
        """Another model, and the labels that it changes."""
        work, version = self.work, self.work.delta.version
        rows = sum(refined.tally.sizes.values())
        changed = {"samples_version": version, "rows": rows}
        artifact = write_model(work.table, work.labeller.artifact, refined.model, changed)
        part = Part(refined.stats, work.memory.sample_with(self.arrived.part), Arrivals.none(), rows)
        reference = reference_of(refined.model, part.sample, refined.tally.sizes)
        facts = self._facts(artifact.digest, version)
        facts = facts if folds is None else replace(facts, folds=folds)
        statistics = remember(work.memory.store, part, reference, facts, work.memory.bound)
        sizes = {row["cluster"]: row["size"] for row in work.clustering.clusters(work.before).to_pylist()}
        happened = events_between(sizes, refined.tally.sizes, refined.overlap)
        return self._publish(
            _Published(
                refined.files, refined.tally, happened, refined.moves, refined.model, artifact.digest, statistics
            )
        )

    def tuned(self) -> ReclusterSummary:
        """Networks that were trained on the arrivals and the sample of older rows; all rows are labelled by them."""
        work, model = self.work, self.work.labeller.model
        assert isinstance(model, DeepDPM)  # noqa: S101  the only kind that is trained and stays in a table
        began = time.perf_counter()
        replayed = self._replayed(model)
        work.clustering.discard_assignments([written for _, written in self.arrived.written])
        fit = tuned(work.labeller.config, model, replayed, work.config.epochs, work.on_progress)
        before = Against(generation=work.before, named=True)
        fitted = Fitted(work.labeller.reduction, fit.model)
        files, samples = work.delta.files, work.table.samples
        labelled = label_files(samples, files, work.clustering, fitted, work.on_progress, before)
        refined = Refined(
            fit.model,
            labelled.part.stats,
            tuple(move for _, move in fit.moves),
            [file for _, file in labelled.files],
            len(files) - len(labelled.files),
            labelled.tally,
            [labelled.overlap],
        )
        self.seconds["tune"] = time.perf_counter() - began
        return self.refined(refined, folds=())  # all rows were counted anew, and whole

    def _replayed(self, model: Clusterer) -> Held:
        """What arrived, and of older rows the uniform sample that is remembered, each for all that it stands for."""
        work = self.work
        at_hand = hold(work, self.arrived, self.chosen).held
        new = at_hand[torch.nonzero(at_hand.new_N).flatten()]
        sample = work.memory.sample().without(torch.cat([self.arrived.part.gone_N, new.row_N]))
        x_ND, row_N = torch.cat([new.x_ND, sample.x_MD]), torch.cat([new.row_N, sample.row_M])
        new_N = torch.arange(len(x_ND)) < len(new)
        older = work.memory.rows + self.arrived.part.rows - len(new)
        stands_for = older / max(len(sample), 1)
        weight_N = torch.where(new_N, 1.0, stands_for).double()
        return Held(x_ND, row_N, model.assign(x_ND).component_N, weight_N, new_N)

    def refit(self) -> ReclusterSummary:
        """A full fit with the settings of the first one; clusters that live on keep their ids."""
        work = self.work
        work.clustering.discard_assignments([written for _, written in self.arrived.written])
        began = time.perf_counter()
        again = Again("refit", self._evidence({}))
        config = with_resources(work.labeller.config, self.resources)
        found = cluster(work.table, config, work.clustering.name, work.on_progress, again=again)
        seconds = self.seconds | found.seconds | {"refit": time.perf_counter() - began}
        events = Counter(work.clustering.events(found.generation)["event"].to_pylist())
        self._retain()
        return self._summary(found.generation, events, seconds=seconds, rewritten=len(work.delta.files))

    def _facts(self, model: str, made: int) -> Facts:
        memory = self.work.memory
        return Facts(model, memory.rows + self.arrived.part.rows, memory.rows_at_fit, made, self.work.folds)

    def _publish(self, found: _Published) -> ReclusterSummary:
        work = self.work
        began = time.perf_counter()
        moves = [(0, move) for move in found.moves]
        events = Counter(str(event.event) for event in found.events)
        record = Publication(
            samples_version=work.delta.version,
            artifact=found.artifact,
            statistics=found.statistics,
            config_digest=digest(work.labeller.config),
            parent=work.before.generation,
            decision=self.decision,
            evidence=json.dumps(self._evidence(events, found.model.next_id)),
        )
        clusters = cluster_table(self.number, found.tally, found.events, ratios(moves, found.model))
        generation = work.clustering.publish(
            self.number, found.files, clusters, move_table(self.number, moves), record, covering=work.delta.files
        )
        self._retain()
        seconds = self.seconds | {"publish": time.perf_counter() - began}
        return self._summary(generation, events, seconds=seconds, rewritten=len(found.files))

    def _retain(self) -> None:
        keep = self.work.config.keep_generations
        if keep is not None:
            try:
                self.work.clustering.retain(keep)
                self.work.table.sweep_artifacts()
            except TableError as error:  # the generation is there; the next recluster ends what is too old
                warnings.warn(f"Older generations were not ended: {error}", stacklevel=2)

    def _evidence(self, events: Mapping[str, int], next_id: int | None = None) -> dict[str, Any]:
        drift = self.chosen.drift.as_json()
        worst = sorted(drift["clusters"], key=lambda each: 1.0 if each["p"] is None else each["p"])
        drift |= {"clusters": worst[:_CLUSTERS_TOLD], "born": events.get("born", 0)}
        return {
            "why": self.chosen.why,
            "arrived": self.arrived.rows,
            "removed": self.arrived.gone,
            "drift": drift,
            "tests": self.chosen.tests,
            "seconds": {step: round(value, 3) for step, value in self.seconds.items()},
            "read": vars(self.work.reading),
            **({} if next_id is None else {"next_id": next_id}),
        }

    def _summary(
        self, generation: Generation, events: Mapping[str, int], *, seconds: dict[str, float], rewritten: int
    ) -> ReclusterSummary:
        sizes = self.work.clustering.clusters(generation)["size"].to_pylist()
        return ReclusterSummary(
            name=self.work.clustering.name,
            generation=generation,
            decision=self.chosen.mode,
            why=self.chosen.why,
            arrived=self.arrived.rows,
            removed=self.arrived.gone,
            rows=sum(sizes),
            clusters=len(sizes),
            events={event: count for event, count in sorted(events.items()) if event != "kept"},
            files_rewritten=rewritten,
            files_kept=len(self.work.delta.files) - rewritten,
            bytes_read=self.work.reading.bytes,
            seconds=seconds,
        )
