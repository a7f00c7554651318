"""From shards of images to a trained backbone: index them, train, and publish what extracts and labels from then on."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from models.backbone_config import BackboneConfig
from models.objective import ImageObjective
from models.reduce import NoReduction
from models.swav.objective import SwAVObjective
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fitted import to_numpy
from pipeline.extract.backbone import publish_backbone
from pipeline.extract.shard import table_properties
from pipeline.ingest.decode import DecodeConfig
from pipeline.ingest.shards import list_shards
from pipeline.progress import Progress, silent
from pipeline.tables.artifacts import MANIFEST, Artifact
from pipeline.tables.place import Place
from pipeline.train.checkpoints import CheckpointStore, fingerprint
from pipeline.train.images.index import Index, build_index
from pipeline.train.images.source import ImageSource
from pipeline.train.learn_config import LearnConfig
from pipeline.train.learn_folder import LearnFolder
from pipeline.train.metrics import read_lines
from pipeline.train.trainer import Trained, train_source

__all__ = ["LearnSummary", "learn", "outcome"]


@dataclass(frozen=True)
class LearnSummary:
    """How a training run ended; plain values, which the run's folder keeps."""

    images: int
    rejects: Mapping[str, int]  # by reason
    epochs: int
    steps: int
    figures: Mapping[str, float | None]  # means over the last epoch, the loss among them
    images_per_second: float | None  # the median of what was logged
    seconds: float  # of this call's training
    warnings: tuple[str, ...]
    backbone: str  # where the artifact is
    prototypes: str  # where the artifact is
    skipped: bool = False  # it was over before this call


def learn(
    inputs: Sequence[str],
    folder: str | Place,
    config: LearnConfig,
    decode: DecodeConfig,
    backbone: BackboneConfig,
    on_progress: Progress = silent,
) -> LearnSummary:
    """Train `backbone` on the images of all shards behind `inputs`, and publish it with its prototypes in `folder`.

    A run that was stopped goes on from its last checkpoint; one that is over is not trained again. More than one
    worker needs a Ray session, and a folder that all machines see. A backbone whose weights are `default` begins from
    random ones. Raises ShoalError for a folder of other settings or images, and what training raises.
    """
    shards = list_shards(inputs)
    home = LearnFolder(folder)
    settings = outcome(shards, config, decode, backbone)
    home.require(settings)
    if (done := _finished(home)) is not None:
        return done
    objective = SwAVObjective(config.objective, from_random(backbone), config.views)
    home.claim(settings)
    index = build_index(shards, home.index, decode, on_progress)
    source = ImageSource(index, config.images, config.views, decode, objective.pixels, config.loop.seed)
    run = fingerprint(settings=settings, images=source.fingerprint())
    store = CheckpointStore(home.checkpoints, run, config.loop.keep, config.loop.keep_every)
    began = time.perf_counter()
    trained = train_source(objective, source, config.loop, on_progress, store, home.path)
    summary = _publish(home, trained, index, decode, time.perf_counter() - began)
    home.finish(asdict(summary))
    return summary


def outcome(
    shards: Sequence[str], config: LearnConfig, decode: DecodeConfig, backbone: BackboneConfig
) -> dict[str, Any]:
    """What a run's result depends on, by the keys that users give. Shards are named without their folder."""
    names = sorted(PurePosixPath(shard.partition("?")[0]).name for shard in shards)
    return {
        "input": {"shards": len(names), "names": fingerprint(names=names)[:12]},
        "train": {
            "objective": config.objective.model_dump(mode="json"),
            "views": config.views.model_dump(mode="json"),
            "images": config.images.outcome,
            "loop": config.loop.outcome,
        },
        "backbone": backbone.model_dump(mode="json", exclude={"compile", "precision"}),
        "decode": decode.model_dump(mode="json"),
    }


def from_random(backbone: BackboneConfig) -> BackboneConfig:
    """Training begins from random weights, unless weights are named."""
    return backbone.model_copy(update={"weights": "random"}) if backbone.weights == "default" else backbone


def _finished(home: LearnFolder) -> LearnSummary | None:
    """What a run that is over came to, if its artifacts are still there."""
    kept = home.summary()
    if kept is None:
        return None
    found = LearnSummary(**{**kept, "warnings": tuple(kept["warnings"]), "skipped": True})
    there = all((home.artifacts.root / PurePosixPath(each).name / MANIFEST).is_file() for each in (found.backbone, found.prototypes))
    return found if there else None
