"""From shards of images to a trained backbone: index them, train, and publish what extracts and labels from then on."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, cast

from models.backbone import Backbone
from models.backbone_config import BackboneConfig
from models.errors import ShoalError
from models.objective import ImageObjective
from models.reduce import NoReduction
from models.swav.config import PrototypesConfig
from models.swav.health import doubts
from models.swav.objective import SwAVObjective
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.tensors import to_numpy
from pipeline.extract.backbone import publish_backbone
from pipeline.extract.shard import table_properties
from pipeline.ingest.decode import DecodeConfig
from pipeline.ingest.shards import list_shards
from pipeline.progress import Progress, silent
from pipeline.tables.artifacts import MANIFEST, Artifact, ArtifactStore
from pipeline.train.checkpoints import CheckpointStore, fingerprint
from pipeline.train.config import TrainConfig
from pipeline.train.images.feed import ImageSource
from pipeline.train.images.index import ImageIndex, index_shards, resized
from pipeline.train.images.index_table import file_name
from pipeline.train.images.order import lanes_of, require_lanes
from pipeline.train.images.read import streaming_advice
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


def learn(  # noqa: PLR0913 - the last two are told of it, and change nothing
    inputs: Sequence[str],
    folder: LearnFolder,
    config: LearnConfig,
    backbone: BackboneConfig,
    decode: DecodeConfig | None = None,
    on_progress: Progress = silent,
    *,
    on_index: Callable[[ImageIndex], None] = lambda index: None,
) -> LearnSummary:
    """Train `backbone` on the images of all shards behind `inputs`, and publish it and its prototypes in `folder`.

    A run that was stopped goes on from its last checkpoint; one that is over is not trained again, and needs no shards
    any more. More than one worker, and remote producers, need a Ray session and a folder that all machines see. Weights
    that are `default` mean random ones here. `on_index` is told of the images before training begins. Raises ShoalError
    for a folder of other settings or images, and what training raises.
    """
    decode = decode or DecodeConfig()
    settings = required(inputs, folder, config, backbone, decode)
    if (done := finished(folder)) is not None:
        return replace(done, skipped=True)
    objective = SwAVObjective(config.objective, begun_from(backbone), config.views)
    folder.mark()
    index = index_shards(list_shards(inputs), folder.index, decode, on_progress, config.loop.cpus_per_worker)
    on_index(index)
    source = ImageSource.of(index, config.images, config.views, objective.pixels, config.loop.seed, decode)
    source.require_lanes(config.loop)
    folder.claim(settings, index.digest)
    for sentence in _foreseen(index, config):
        warnings.warn(sentence, stacklevel=2)
    began = time.perf_counter()
    run = _train(objective, source, folder, config.loop, on_progress)
    summary = _publish(run, index, folder, config, time.perf_counter() - began)
    folder.finish(asdict(summary))
    return summary


def required(
    inputs: Sequence[str], folder: LearnFolder, config: LearnConfig, backbone: BackboneConfig, decode: DecodeConfig
) -> dict[str, Any]:
    """The settings of a run on `inputs`; nothing is written. Of a run that is over the shards may be gone.

    Raises ShoalError if `folder` has a run of other settings or shards, and where workers are more than lanes.
    """
    over = finished(folder) is not None
    shards = _listed(inputs, over)
    settings = outcome(shards or (), config, backbone, decode)
    if shards is None:
        settings["input"] = folder.settings["input"]
    folder.require(settings, outcome((), LearnConfig(), BackboneConfig(), DecodeConfig()))
    if not over:
        require_lanes(None, config.images.lanes, config.loop)
    elif shards and (changed := resized(folder.index, shards)):
        raise folder.other_images(f"{changed} has another size")
    return settings


def _listed(inputs: Sequence[str], over: bool) -> list[str] | None:
    """The shards behind `inputs`; None if they are gone, and the run that read them is over."""
    try:
        return list_shards(inputs)
    except ShoalError:
        if not over:
            raise
        return None


def outcome(
    shards: Sequence[str], config: LearnConfig, backbone: BackboneConfig, decode: DecodeConfig
) -> dict[str, Any]:
    """What a run's result depends on, by the keys that users give. Shards go by their names, in whatever folder."""
    names = sorted(file_name(shard) for shard in shards)
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


def _foreseen(index: ImageIndex, config: LearnConfig) -> list[str]:
    """What a user should hear before training, which may take days."""
    batch_rows, epochs = config.loop.batch_rows, config.loop.epochs
    advice = streaming_advice(index, lanes_of(len(index), batch_rows, config.images.lanes))
    swav = config.objective.resolved(len(index), batch_rows, epochs)
    return [*([advice] if advice else []), *doubts(swav, batch_rows, epochs)]


def _train(
    objective: ImageObjective, source: ImageSource, folder: LearnFolder, loop: TrainConfig, on_progress: Progress
) -> Run:
    # By the settings as the run began with them: a key that a later shoal adds leaves its checkpoints its own.
    run = fingerprint(settings=folder.settings, images=source.digest)
    every = loop.keep_every and loop.keep_every * plan_of(source.rows, loop).steps
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


def finished(folder: LearnFolder) -> LearnSummary | None:
    """What a run that is over came to, if its artifacts are still there; another shoal may have kept more of it."""
    kept = folder.summary() or {}
    names = {each.name for each in fields(LearnSummary)}
    try:
        found = LearnSummary(**{name: value for name, value in kept.items() if name in names})
    except TypeError:  # it kept less: the run is published again from its last checkpoint
        return None
    needed = (found.backbone_artifact, found.prototypes_artifact)
    there = all((folder.artifacts.root / name / MANIFEST).is_file() for name in needed)
    return replace(found, warnings=tuple(found.warnings)) if there else None


def _finite(scalars: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in scalars.items()}
