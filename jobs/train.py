"""`shoal train INPUT... --output DIR`: a backbone learned from one's own images, and prototypes that label them."""

from __future__ import annotations

import math
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jobs.config import RunConfig
from jobs.context import local_ray
from jobs.figures import Figures, Row, Value
from jobs.folder import on_disk
from jobs.rejects import FIRST, fraction, reject_values, shortfall
from jobs.room import bundles
from jobs.shards import Shards, count_shards
from jobs.steps import State, Step
from models.errors import ShoalError
from pipeline.ingest.folder import scan_folder
from pipeline.progress import Progress
from pipeline.tables.place import Place
from pipeline.train.images.index import FILE as INDEX_FILE
from pipeline.train.images.index import ImageIndex
from pipeline.train.images.order import require_lanes
from pipeline.train.learn import LearnSummary, finished, learn, required
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
        loop = self.config.train.loop
        what = f"{self.config.backbone.name} by {self.config.train.objective.kind}, {loop.epochs:,} epochs"
        train = Step("train", f"these shards: {what}, into {folder.path}", _state(folder))
        if self._pack is not None:
            folder.require_packed(self._pack.fingerprint())
            if folder.is_bound:
                self._required(folder)
            else:
                require_lanes(None, self.config.train.images.lanes, loop)
            return [*self._pack.plan(), train]
        shards = self._required(folder)["input"]["shards"]
        return [Step("train", f"{shards:,} shards: {what}, into {folder.path}", train.state)]

    def run(self, on_progress: Progress) -> Figures:
        """Raises ShoalError, and touches nothing, if the output belongs to something else, or to other settings."""
        folder = LearnFolder(self.output)
        config = self.config
        if self._pack is not None:
            folder.require_packed(self._pack.fingerprint())
            if finished(folder) is None:
                require_lanes(None, config.train.images.lanes, config.train.loop)
                folder.mark(self._pack.fingerprint())
                self._pack.run(on_progress)
        distributed = config.train.loop.workers > 1 or config.train.images.feed == "remote"
        told = partial(_tell_rejects, allowed=config.max_reject_fraction)
        room = room_of(config)
        with local_ray(config.ray, needed=distributed, room=room if distributed else (), on_progress=on_progress):
            summary = learn(
                self._shards, folder, config.train, config.backbone, config.decode, on_progress, on_index=told
            )
        for sentence in summary.warnings if summary.skipped else ():  # others were told when they arose
            warnings.warn(sentence, stacklevel=1)
        return figures_of(summary, folder, self._shards, config.max_reject_fraction)

    def _required(self, folder: LearnFolder) -> dict[str, Any]:
        return required(self._shards, folder, self.config.train, self.config.backbone, self.config.decode)

    @cached_property
    def _pack(self) -> Shards | None:
        """The job that packs a folder of images; None where shards are there before."""
        source = Path(self.inputs[0]).expanduser()
        if len(self.inputs) > 1 or not source.is_dir():
            return None
        if count := count_shards(source):
            _tell_images_beside(source, count)
            return None
        return Shards(self.inputs[0], str(on_disk(self.output) / "shards"), self.config)

    @property
    def _shards(self) -> tuple[str, ...]:
        return self.inputs if self._pack is None else (self._pack.output,)


def room_of(config: RunConfig) -> list[dict[str, float]]:
    """What training wants of a cluster at once. Where GPUs are taken if there are any, `deploy` says if there will be.

    Least and most differ where it may begin with fewer workers: it is waited for the least.
    """
    loop, images = config.train.loop, config.train.images
    gpus = loop.gpus_per_worker
    if gpus is None:
        gpus = int(config.deploy.gpu.limit * config.deploy.gpu.gpus > 0)
    count = loop.min_workers or loop.workers
    producers = count * images.producers if images.feed == "remote" else 0
    return [*bundles(count, loop.cpus_per_worker, gpus), *bundles(producers, images.threads)]


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
    where = str(folder.index / INDEX_FILE)
    return Figures("train", values, tables, shortfall(summary.images, rejects, allowed, where))


def _tell_rejects(index: ImageIndex, allowed: float) -> None:
    """Before training, which may take days, what would be said after it."""
    rejects = sum(index.rejects.values())
    if fraction(len(index), rejects) <= allowed:
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in index.rejects.items())
    listed = index.reject_table().slice(0, FIRST).to_pylist()
    first = "; ".join(
        f"{each['key'] or 'all'} in {each['shard']} ({each['detail'] or each['reason']})" for each in listed
    )
    warnings.warn(
        f"{rejects:,} of {len(index) + rejects:,} samples were rejected ({fraction(len(index), rejects):.1%}, more "
        f"than the {allowed:.1%} of --max-reject-fraction): {reasons}. The first are {first}. Training goes on with "
        f"the others, and the command will exit with 1; {index.folder / INDEX_FILE} names every reject.",
        stacklevel=2,
    )


def _tell_images_beside(source: Path, shards: int) -> None:
    try:
        images = len(scan_folder(source).images)
    except ShoalError:
        return  # as it should be: nothing but shards
    warnings.warn(
        f"{source} holds {shards:,} shards (.tar) and {images:,} images beside them; only what is in the shards is "
        "trained on. Move the shards elsewhere to train on the images.",
        stacklevel=2,
    )


def _next(inputs: Sequence[str], backbone: Place, prototypes: Place) -> list[Row]:
    table = "TABLE"
    assign = ["shoal", "assign", table, "--artifact", str(prototypes)]
    extract = ["shoal", "extract", *inputs, "--output", table, "--backbone", str(backbone)]
    return [
        {"to": "embed images", "command": shlex.join(extract)},
        {
            "to": "label them by prototype",
            "command": shlex.join(assign),
        },
        {"to": "find clusters, and how many", "command": f"shoal cluster {table}"},
    ]


def _state(folder: LearnFolder) -> State:
    if folder.summary() is not None:
        return State.DONE
    return State.PARTLY if folder.checkpoints.exists() else State.TO_DO
