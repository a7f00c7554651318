"""Benchmark `swav-data`: `shoal train` as it reads its images against the same loop with its batches in memory.

The config is `swav_fashion_cpu`, as shipped: PNGs of Fashion-MNIST, of which all views are cut while the step computes,
by the same cores. Bar: at least .9 of the rate. An epoch is timed from end to end; of each side the best one counts,
other than the first, which reads and decodes every image (later ones take small images from memory) and is shown
beside them. Needs 2 free cores, and takes 3 minutes on them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.images import Size, fashion, folder_for
from jobs.bench.speeds import Speed, best, table, take_turns
from jobs.bench.swav_step import recipe, shoal
from pipeline.progress import Progress

SIZE = Size(shards=8, images=2500)


def run(data: Path | None, on_progress: Progress, size: Size = SIZE, rounds: int = 2, epochs: int = 3) -> Result:
    """`data`: a folder where images are made and kept. Raises ShoalError where a process fails."""
    with folder_for(data) as folder:
        work = recipe(fashion(folder, size), folder).trained(epochs=epochs)
        sides: dict[str, Callable[[], Speed]] = {
            "in memory": partial(shoal, "cached", work),
            "as read": partial(shoal, "fed", work),
        }
        runs = take_turns(sides, rounds, size.total, on_progress)
    read, ready = best(runs["as read"]), best(runs["in memory"])
    values = {"images": size.total, "rounds": rounds, "as_read": read, "in_memory": ready}
    bars = [Bar("times the rate of the step alone", read / ready, least=0.9)]
    return judged("swav-data", bars, values, {"runs": table("training", runs)})
