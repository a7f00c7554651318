"""`shoal train INPUT... --output DIR`: a backbone learned from one's own images, and prototypes that label them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from jobs.config import RunConfig
from jobs.context import local_ray
from jobs.figures import Figures, Row, Value
from jobs.folder import on_disk
from jobs.rejects import reject_values, shortfall
from jobs.shards import Shards, count_shards
from jobs.steps import State, Step
from pipeline.ingest.shards import list_shards
from pipeline.progress import Progress
from pipeline.tables.place import Place
from pipeline.train.learn import LearnSummary, learn, outcome
from pipeline.train.learn_folder import LearnFolder


@dataclass(frozen=True)
class Train:
    """Train the configured backbone by the configured objective; the same command goes on after an interruption."""

    inputs: tuple[str, ...]
    output: str
    config: RunConfig

    def plan(self) -> list[Step]:
        """Raises ShoalError, as `run`, for a folder of other settings or images."""
        folder = LearnFolder(self.output)
        settings, loop = self.config.train, self.config.train.loop
        steps = self._pack.plan() if self._pack else []
        what = f"{self.config.backbone.name} by {settings.objective.kind}, {loop.epochs:,} epochs, into {folder.path}"
        if self._pack is not None:
            folder.require_packed(self._pack.fingerprint())
            return [*steps, Step("train", f"these shards: {what}", _state(folder))]
        shards = list_shards(self.inputs)
        folder.require(outcome(shards, settings, self.config.backbone, self.config.decode))
        return [Step("train", f"{len(shards):,} shards: {what}", _state(folder))]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError, and touches nothing, if the output belongs to something else, or to other settings."""
        folder = LearnFolder(self.output)
        settings = self.config.train
        if self._pack is not None:
            folder.mark(self._pack.fingerprint())
            self._pack.run(on_progress)
        distributed = settings.loop.workers > 1 or settings.images.feed == "remote"
        with local_ray(self.config.ray, needed=distributed):
            summary = learn(self._shards, folder, settings, self.config.backbone, self.config.decode, on_progress)
        for sentence in summary.warnings:
            warnings.warn(sentence, stacklevel=1)
        return figures_of(summary, folder, self._shards, self.config.max_reject_fraction)

    @cached_property
    def _pack(self) -> Shards | None:
        """The job that packs a folder of images; None where shards are there before."""
        source = Path(self.inputs[0]).expanduser()
        if len(self.inputs) > 1 or not source.is_dir() or count_shards(source):
            return None
        return Shards(self.inputs[0], str(on_disk(self.output) / "shards"), self.config)

    @property
    def _shards(self) -> tuple[str, ...]:
        return self.inputs if self._pack is None else (self._pack.output,)


def figures_of(summary: LearnSummary, folder: LearnFolder, inputs: Sequence[str], allowed: float) -> Figures:
    """How a run ended, where what it made is, and what to do with it."""
    rejects = sum(summary.rejects.values())
    backbone = folder.artifacts.root / summary.backbone_artifact
    prototypes = folder.artifacts.root / summary.prototypes_artifact
    values: dict[str, Value] = {
        **reject_values(summary.images, rejects),
        "epochs": summary.epochs,
        "steps": summary.steps,
        "skipped_steps": summary.skipped_steps,
        "loss": summary.figures.get("loss"),
        "loss_of_guessing": math.log(summary.prototypes),
        "prototypes": summary.prototypes,
        "prototypes_used": summary.prototypes_used,
        "images_per_second": summary.images_per_second,
        "seconds": summary.seconds,
        "skipped": summary.skipped,
        "backbone": str(backbone),
        "prototypes_artifact": str(prototypes),
    }
    reasons: list[Row] = [{"reason": reason, "samples": count} for reason, count in summary.rejects.items()]
    last: list[Row] = [{"figure": name, "mean": value} for name, value in summary.figures.items() if name != "loss"]
    tables = {"rejects_by_reason": reasons, "last_epoch": last, "what_to_do_next": _next(inputs, backbone, prototypes)}
    return Figures("train", values, tables, shortfall(summary.images, rejects, allowed))


def _next(inputs: Sequence[str], backbone: Place, prototypes: Place) -> list[Row]:
    table = "TABLE"
    return [
        {"to": "embed images", "command": f"shoal extract {' '.join(inputs)} --output {table} --backbone {backbone}"},
        {"to": "label them by prototype", "command": f"shoal assign {table} --artifact {prototypes}"},
        {"to": "find clusters, and how many", "command": f"shoal cluster {table}"},
    ]


def _state(folder: LearnFolder) -> State:
    if folder.summary() is not None:
        return State.DONE
    return State.PARTLY if folder.checkpoints.exists() else State.TO_DO
