"""Benchmark `extract`: `shoal extract` against bare processes, one per core, that read, decode and embed as it does.

Two sets of images, each with two backbones in fp32. Bars: at least .95 of the bare rate on each; start-up, from Ray
being up to the first image embedded, at most 8 s. Sides take turns, and of each the best round counts, since other work
on the machine only ever slows a side. Shards hold 48 full batches, so that filling up the last batch of a shard, which
shoal does, costs it nothing. Needs 2 free cores, and takes 10 minutes on them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.images import SETS, Size, folder_for
from jobs.bench.speeds import BATCH, bare, best, shoal, table, take_turns
from jobs.figures import Row
from models.backbone_config import BackboneConfig
from pipeline.progress import Progress

BACKBONES = (
    BackboneConfig(name="pypi/efficientnet_lite0"),
    BackboneConfig(name="torchvision/resnet18", weights="random"),
)
SIZE = Size(shards=4, images=48 * BATCH)  # 20 to 30 s for a side


def run(
    data: Path | None,
    on_progress: Progress,
    size: Size = SIZE,
    backbones: Sequence[BackboneConfig] = BACKBONES,
    rounds: int = 2,
) -> Result:
    """`data`: a folder where images are made and kept. Raises ShoalError where a process fails."""
    cores = os.cpu_count() or 1
    bars, startups, rows = list[Bar](), list[float](), list[Row]()
    with folder_for(data) as folder:
        for name, make in SETS.items():
            shards = make(folder, size)
            for backbone in backbones:
                sides = {"shoal": partial(shoal, shards, backbone), "bare": partial(bare, shards, backbone, cores)}
                runs = take_turns(sides, rounds, size.total, on_progress)
                about = f"{name}, {backbone.name}"
                bars.append(Bar(f"times the bare rate, {about}", best(runs["shoal"]) / best(runs["bare"]), least=0.95))
                startups.append(min(run.startup_seconds for run in runs["shoal"]))
                rows += table(about, runs)
    bars.append(Bar("startup_seconds, slowest of these", max(startups), most=8))
    return judged("extract", bars, {"cores": cores, "images": size.total, "rounds": rounds}, {"runs": rows})
