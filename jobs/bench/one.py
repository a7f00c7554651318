"""One step of a benchmark in a process of its own: `python -m jobs.bench.one generate|fit FOLDER ...`."""
# ruff: noqa: PLC0415

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import typer

from pipeline.evaluate.generated import ROWS_FILE, Components


def generate(folder: Path, law: str) -> None:
    """Write rows and labels of a law, given as JSON."""
    Components(**json.loads(law)).write(folder)


def fit(folder: Path, threads: int, seed: int) -> None:
    """Fit the DPM to the rows, write the cluster of each, and print one JSON line of what it took.

    Times are of the fit and the labels, after imports; the peak is of resident memory, with the pages of the
    memory-mapped rows that were in memory at the same time.
    """
    from jobs.bench.imagenet import FOUND_FILE
    from jobs.bench.sides import algorithm, cluster_rows, timed

    x_ND = np.load(folder / ROWS_FILE, mmap_mode="r", allow_pickle=False)
    with timed() as clock:
        cluster_N, fitted = cluster_rows(x_ND, algorithm("dpm"), seed, threads)
    measured = {
        "wall_seconds": clock.wall_seconds,
        "cpu_seconds": clock.cpu_seconds,
        "peak_gib": peak_gib(),
        "passes": len(fitted.history),
        "settled": fitted.settled,
    }
    np.save(folder / FOUND_FILE, cluster_N)
    typer.echo(json.dumps(measured))


def peak_gib() -> float:
    """Most resident memory that this process ever had."""
    from resource import RUSAGE_SELF, getrusage  # not on Windows

    units = getrusage(RUSAGE_SELF).ru_maxrss  # KiB; bytes on macOS
    return units / (1 << 30 if sys.platform == "darwin" else 1 << 20)


if __name__ == "__main__":
    step, where, *rest = sys.argv[1:]
    if step == "generate":
        generate(Path(where), *rest)
    else:
        fit(Path(where), *map(int, rest))
