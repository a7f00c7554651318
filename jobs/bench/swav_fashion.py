"""Benchmark `swav-fashion`: a backbone that learns from 20,000 images of Fashion-MNIST in 20 minutes, and its probes.

`shoal train` with the config swav_fashion_cpu sees the first 20,000 training images without their labels; `shoal probe`
fits on the same images and tests on the first 5,000 test images, beside the network untrained and raw pixels. Bars:
weighted k-NN at least .835, linear .875, k-means NMI .63 and ACC .64, training at most 20 minutes on 2 cores. Clusters
found without K are shown beside k-means. Needs 2 free cores, and takes 25 minutes on them.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.backbone import with_backbone
from jobs.bench.bars import Bar, Result, judged
from jobs.bench.images import Size, fashion, fashion_test, folder_for
from jobs.bench.speeds import outputs
from jobs.config import resolve
from jobs.figures import Figures, Value
from jobs.probe import GIVEN, Probe
from pipeline.progress import Progress

CONFIG = "swav_fashion_cpu"
TRAIN, TEST = Size(shards=4, images=5_000), Size(shards=1, images=5_000)
MINUTES = 20
_BARS = {"knn": 0.835, "linear": 0.875, "kmeans_nmi": 0.63, "kmeans_acc": 0.64}
_TRAINING = ("epochs", "loss", "loss_of_guessing", "prototypes", "prototypes_used", "images_per_second")


def run(
    data: Path | None,
    on_progress: Progress,
    train: Size = TRAIN,
    test: Size = TEST,
    settings: Sequence[str] = (),
) -> Result:
    """`data`: a folder where shards are made and kept; `settings`: more of the training's, as after --set.

    Training always begins anew, so that its time is that of all of it. Raises ShoalError where it fails.
    """
    with folder_for(data) as folder, tempfile.TemporaryDirectory(prefix="shoal-bench-") as made:
        shards, asked = fashion(folder, train), fashion_test(folder, test)
        on_progress("bench, train", 0, None)
        trained, seconds = _train(shards, Path(made), settings)
        config = resolve(None, with_backbone(trained["backbone"], ["ray.address=local"]))
        probed = Probe(tuple(shards), tuple(asked), f"{made}/probe", config).run(on_progress)
    values: dict[str, Value] = {name: trained[name] for name in _TRAINING}
    values |= {"train_seconds": seconds} | {name: probed.values[name] for name in ("train_images", "test_images")}
    return judged("swav-fashion", [*_quality(probed), _time(seconds)], values, probed.tables)


def _train(shards: Sequence[str], folder: Path, settings: Sequence[str]) -> tuple[dict[str, Any], float]:
    """What `shoal train` says at its end, and the wall seconds from the command to there."""
    figures = folder / "figures.json"
    command = [sys.executable, "-m", "jobs", "train", *shards, "--output", str(folder / "run"), "--config", CONFIG]
    options = [part for each in ("ray.address=local", *settings) for part in ("--set", each)]
    began = time.monotonic()
    outputs([[*command, *options, "--json", str(figures)]])
    seconds = time.monotonic() - began
    return json.loads(figures.read_text()), seconds


def _quality(probed: Figures) -> list[Bar]:
    """Bars of the trained backbone's line."""
    line = next(row for row in probed.tables["probes"] if row["features"] == GIVEN)
    return [Bar(name, float(line[name] or 0), least=least) for name, least in _BARS.items()]


def _time(seconds: float) -> Bar:
    return Bar("minutes of training", seconds / 60, most=MINUTES)
