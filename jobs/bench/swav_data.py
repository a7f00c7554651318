"""Benchmark `swav-data`: `shoal train` as it reads its images against the same loop with its batches in memory.

The config is `swav_fashion_cpu`: PNGs of Fashion-MNIST, whose views are cut while the step computes, by the same cores.
Bar: at least .9 of the rate, with the config as shipped, which keeps small images once they are decoded. An epoch is
timed from end to end, and of each side the best one counts, other than the first. Shown beside it, without a bar, are
the first epoch, which decodes every image, and a side that keeps none and so decodes all of them in every epoch. Needs
2 free cores, and takes 4 minutes on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.images import Size, fashion, folder_for
from jobs.bench.speeds import Speed, best, table, take_turns
from jobs.bench.swav_step import Epochs, recipe, shoal
from jobs.figures import Value
from pipeline.progress import Progress

SIZE = Size(shards=8, images=2500)


def run(data: Path | None, on_progress: Progress, size: Size = SIZE, rounds: int = 2, epochs: int = 3) -> Result:
    """`data`: a folder where images are made and kept. Raises ShoalError where a process fails."""
    with folder_for(data) as folder:
        work = recipe(fashion(folder, size), folder).trained(epochs=epochs)
        sides: dict[str, Callable[[], Speed]] = {
            "in memory": partial(shoal, "cached", work),
            "as shipped": partial(shoal, "fed", work),
            "nothing kept": partial(shoal, "fed", work.read(cache_bytes=0)),
        }
        runs = take_turns(sides, rounds, size.total, on_progress)
    step = best(runs["in memory"])
    values: dict[str, Value] = {
        "images": size.total,
        "rounds": rounds,
        "in_memory": step,
        "first_epoch, times that": _first(runs["as shipped"]) / step,
        "nothing_kept, times that": best(runs["nothing kept"]) / step,
    }
    bars = [Bar("times the rate of the step alone", best(runs["as shipped"]) / step, least=0.9)]
    return judged("swav-data", bars, values, {"runs": table("training", runs)})


def _first(runs: Sequence[Speed]) -> float:
    return max(run.first_epoch for run in runs if isinstance(run, Epochs))
