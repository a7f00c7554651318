"""Benchmark `dpm-growth`: how the CPU seconds of a whole fit grow with the rows and with the clusters.

Bars: twice the rows at most 2.2 times the time, twice the clusters at most 1.5 times. Generated Gaussians in 32
dimensions; times are means over seeds, since the number of passes depends on the rows. Takes about a minute.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.data import generated, refuse
from jobs.bench.sides import Measured, algorithm, compare, mean, shoal_side, tables
from pipeline.evaluate.generated import Components
from pipeline.progress import Progress

LAW = Components(rows=40_000, dim=32, clusters=40, spread=1.2)


def run(data: Path | None, on_progress: Progress, seeds: int = 2, law: Components = LAW) -> Result:
    """Raises ShoalError where data are given."""
    refuse(data)
    sizes = {
        "one": law,
        "twice the rows": replace(law, rows=2 * law.rows),
        "twice the clusters": replace(law, clusters=2 * law.clusters),
    }
    fits: list[Measured] = []
    for name, size in sizes.items():
        fits += compare([shoal_side(name, algorithm("dpm"))], generated(size, seeds), on_progress)
    seconds = {name: mean(fits, name, "cpu_seconds") for name in sizes}
    rows, clusters = (seconds[name] / seconds["one"] for name in ("twice the rows", "twice the clusters"))
    bars = [Bar("times for twice the rows", rows, most=2.2), Bar("times for twice the clusters", clusters, most=1.5)]
    values = {"rows": law.rows, "dimension": law.dim, "true_clusters": law.clusters, "seeds": seeds}
    return judged("dpm-growth", bars, values, tables(fits))
