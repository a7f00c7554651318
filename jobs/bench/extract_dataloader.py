"""Benchmarks `extract-dataloader`, `-fashion`: `shoal extract` against a script of torch and webdataset.

The script is tuned first: batches of 16 and 64, 0, 1 and 2 DataLoader workers, each with several numbers of threads
for the forward pass, on a few images; the fastest goes on. Bars, with each of two backbones: shoal is no slower in
fp32, and in bf16 at least 1.3 times as fast as the script in fp32. Sides take turns, and of each the best round counts.
The images are the JPEGs, or Fashion-MNIST. Needs 2 free cores, and takes 15 minutes on them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.extract import BACKBONES, SIZE
from jobs.bench.images import SETS, Size, folder_for
from jobs.bench.speeds import BATCH, Speed, best, dataloader, shoal, table, take_turns
from jobs.figures import Row, Value
from models.backbone_config import BackboneConfig
from pipeline.progress import Progress

BATCHES = (BATCH, 64)
WORKERS = (0, 1, 2)
TRIAL = Size(shards=2, images=16 * BATCH)  # a shard for each of two workers


def run(
    data: Path | None,
    on_progress: Progress,
    images: str = "photos",
    sizes: tuple[Size, Size] = (SIZE, TRIAL),
    backbones: Sequence[BackboneConfig] = BACKBONES,
    rounds: int = 2,
) -> Result:
    """`data`: a folder where images are made and kept. Raises ShoalError where a process fails."""
    size, trial = sizes
    bars, trials, rows = list[Bar](), list[Row](), list[Row]()
    with folder_for(data) as folder:
        shards, few = SETS[images](folder, size), SETS[images](folder, trial)
        for backbone in backbones:
            tried = take_turns(_scripts(few, backbone), 1, trial.total, on_progress)
            fastest = max(tried, key=lambda name: best(tried[name]))
            sides: dict[str, Callable[[], Speed]] = {
                "shoal": partial(shoal, shards, backbone),
                "script": _scripts(shards, backbone)[fastest],
                "shoal, bf16": partial(shoal, shards, backbone.model_copy(update={"precision": "bf16"})),
            }
            runs = take_turns(sides, rounds, size.total, on_progress)
            fp32, script, bf16 = (best(runs[side]) for side in sides)
            bars += [
                Bar(f"times the script's rate, {backbone.name}", fp32 / script, least=1.0),
                Bar(f"bf16, times the script's rate in fp32, {backbone.name}", bf16 / script, least=1.3),
            ]
            trials += table(backbone.name, tried)
            rows += table(backbone.name, runs)
    values: dict[str, Value] = {"set": images, "images": size.total, "rounds": rounds}
    return judged("extract-dataloader", bars, values, {"trials": trials, "runs": rows})


def settings(cores: int) -> list[tuple[int, int, int]]:
    """What is tried: batches, workers, and threads (one, as many as the workers leave free, as many as cores)."""
    return [
        (batch, workers, threads)
        for batch in BATCHES
        for workers in WORKERS
        for threads in sorted({1, max(1, cores - workers), cores})
    ]


def _scripts(shards: Sequence[str], backbone: BackboneConfig) -> dict[str, Callable[[], Speed]]:
    return {
        f"batches of {batch}, {workers} workers, {threads} threads": partial(
            dataloader, shards, backbone, batch, workers, threads
        )
        for batch, workers, threads in settings(os.cpu_count() or 1)
    }
