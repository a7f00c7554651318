"""From shards of images to a trained backbone: index them, train, and publish what extracts and labels from then on."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any, cast

from models.backbone import Backbone
from models.backbone_config import BackboneConfig
from models.errors import ShoalError
from models.objective import ImageObjective
from models.reduce import NoReduction
from models.swav.config import PrototypesConfig
from models.swav.objective import SwAVObjective
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fitted import to_numpy
from pipeline.extract.backbone import publish_backbone
from pipeline.extract.shard import table_properties
from pipeline.ingest.decode import DecodeConfig
from pipeline.ingest.shards import list_shards
from pipeline.progress import Progress, silent
from pipeline.tables.artifacts import MANIFEST, Artifact, ArtifactStore
from pipeline.train.checkpoints import CheckpointStore, fingerprint
from pipeline.train.images.feed import ImageSource
from pipeline.train.images.index import ImageIndex, index_shards
from pipeline.train.learn_config import LearnConfig
from pipeline.train.learn_folder import LearnFolder
from pipeline.train.loop import Run, plan_of
from pipeline.train.metrics import read_lines
from pipeline.train.result import Fit
from pipeline.train.trainer import fit_of, train_source


@dataclass(frozen=True)
class LearnSummary:
    """How a training run ended; plain values, which the run's folder keeps."""

    images: int
    rejects: Mapping[str, int]  # by reason
    epochs: int
    steps: int
    skipped_steps: int  # loss or gradient was not finite
    prototypes: int
    prototypes_used: int  # the nearest of any image in the last epoch
    figures: Mapping[str, float | None]  # means over the last epoch, the loss among them; not finite: None
    images_per_second: float | None  # the median of what was logged
    seconds: float  # of the training in the call that ended it
    warnings: tuple[str, ...]
    backbone_artifact: str  # name of the folder in `artifacts`
    prototypes_artifact: str
    skipped: bool = False  # it was over before this call


def learn(
    inputs: Sequence[str],
    folder: LearnFolder,
    config: LearnConfig,
    backbone: BackboneConfig,
    decode: DecodeConfig | None = None,
    on_progress: Progress = silent,
) -> LearnSummary:
    """Train `backbone` on the images of all shards behind `inputs`, and publish it and its prototypes in `folder`.

    A run that was stopped goes on from its last checkpoint; one that is over is not trained again. More than one
    worker, and remote producers, need a Ray session and a folder that all machines see. Weights that are `default`
    mean random ones here. Raises ShoalError for a folder of other settings or images, and what training raises.
    """
    decode = decode or DecodeConfig()
    shards = list_shards(inputs)
    settings = outcome(shards, config, backbone, decode)
    folder.require(settings)
    objective = SwAVObjective(config.objective, begun_from(backbone), config.views)
    folder.mark()
    index = index_shards(shards, folder.index, decode, on_progress, config.loop.cpus_per_worker)
    folder.claim(settings, index.digest)
    if (done := _finished(folder)) is not None:
        return done
    began = time.perf_counter()
    run = _train(objective, index, folder, config, decode, on_progress)
    summary = _publish(run, index, folder, config, time.perf_counter() - began)
    folder.finish(asdict(summary))
    return summary


def outcome(
    shards: Sequence[str], config: LearnConfig, backbone: BackboneConfig, decode: DecodeConfig
) -> dict[str, Any]:
    """What a run's result depends on, by the keys that users give. Shards go by their names, in whatever folder."""
    names = sorted(PurePosixPath(shard.partition("?")[0]).name for shard in shards)
    return {
        "input": {"shards": len(names), "names": fingerprint(names=names)[:12]},
        "train": {
            "objective": config.objective.model_dump(mode="json"),
            "views": config.views.model_dump(mode="json"),
            "images": config.images.outcome,
            "loop": config.loop.outcome,
        },
        "backbone": backbone.model_dump(mode="json", exclude={"compile"}),
        "decode": decode.model_dump(mode="json"),
    }


def begun_from(backbone: BackboneConfig) -> BackboneConfig:
    """What training begins from: random weights, unless weights are named.

    Raises ShoalError for features of length 1: prototypes lie behind a projection of the features as they are.
    """
    if backbone.l2_normalise:
        raise ShoalError(
            "backbone.l2_normalise is true, but features are trained, and prototypes label them, as the backbone gives "
            "them; leave it out, and set it for `shoal extract` where clusters need it."
        )
    return backbone.model_copy(update={"weights": "random"}) if backbone.weights == "default" else backbone


def _train(
    objective: ImageObjective,
    index: ImageIndex,
    folder: LearnFolder,
    config: LearnConfig,
    decode: DecodeConfig,
    on_progress: Progress,
) -> Run:
    loop = config.loop
    source = ImageSource.of(index, config.images, config.views, objective.pixels, loop.seed, decode)
    run = fingerprint(settings=folder.settings, images=source.fingerprint())
    every = loop.keep_every and loop.keep_every * plan_of(len(index), loop).steps
    store = CheckpointStore(folder.checkpoints, run, loop.keep, every)
    return train_source(objective, source, loop, store, on_progress, folder.path)


def _publish(run: Run, index: ImageIndex, folder: LearnFolder, config: LearnConfig, seconds: float) -> LearnSummary:
    fit = fit_of(run)
    backbone = cast(ImageObjective, run.objective).backbone(run.net)
    stored = publish_backbone(folder.artifacts, backbone)
    prototypes = publish_prototypes(folder.artifacts, backbone, fit, config, len(index))
    rates = [line["rows_per_second"] for line in read_lines(folder.path) if line.get("rows_per_second")]
    return LearnSummary(
        images=len(index),
        rejects=index.rejects,
        epochs=run.epoch,
        steps=run.steps,
        skipped_steps=run.skipped,
        prototypes=prototypes.manifest["clusters"],
        prototypes_used=fit.history[-1].clusters,
        figures=_finite(fit.scalars[-1]),
        images_per_second=statistics.median(rates) if rates else None,
        seconds=seconds,
        warnings=fit.warnings,
        backbone_artifact=folder.artifacts.path(stored.kind, stored.digest).name,
        prototypes_artifact=folder.artifacts.path(prototypes.kind, prototypes.digest).name,
    )


def publish_prototypes(store: ArtifactStore, backbone: Backbone, fit: Fit, config: LearnConfig, rows: int) -> Artifact:
    """Store prototypes as what `shoal cluster` writes: a fitted model that labels tables of this backbone."""
    algorithm = PrototypesConfig(temperature=config.objective.temperature)
    manifest: dict[str, Any] = {
        "config": ClusterConfig(algorithm=algorithm, reduce=NoReduction()).model_dump(mode="json"),
        "table": table_properties(backbone).model_dump(mode="json"),
        "samples_version": None,
        "rows": rows,
        "reduction": None,
        "clusters": len(fit.model.id_K.unique()),
        "settled": True,
        "history": [[each.objective, each.clusters] for each in fit.history],
        "scalars": [_finite(each) for each in fit.scalars],
    }
    tensors = {f"model.{name}": value for name, value in fit.model.tensors().items()}
    return store.write(algorithm.kind, manifest, to_numpy(tensors))


def _finished(folder: LearnFolder) -> LearnSummary | None:
    """What a run that is over came to, if its artifacts are still there."""
    kept = folder.summary()
    if kept is None:
        return None
    found = LearnSummary(**{**kept, "warnings": tuple(kept["warnings"]), "skipped": True})
    needed = (found.backbone_artifact, found.prototypes_artifact)
    return found if all((folder.artifacts.root / name / MANIFEST).is_file() for name in needed) else None


def _finite(scalars: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in scalars.items()}
