"""Benchmarks `dpm-components`, `dpm-components-hard`: 250 generated Gaussians in 32 dimensions, no K given.

Bars: NMI at least .985 and K within 3 % at spread 1.2; NMI at least .80 at spread .55, where means overlap and only
shapes tell components apart. K-means beside it is given K. Each takes a few minutes a seed.
"""

from __future__ import annotations

from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.data import generated, refuse
from jobs.bench.sides import algorithm, compare, mean, shoal_side, tables, values
from pipeline.evaluate.generated import Components
from pipeline.progress import Progress

CLEAR = Components(rows=100_000, dim=32, clusters=250, spread=1.2)
HARD = Components(rows=100_000, dim=32, clusters=250, spread=0.55)


def clear(data: Path | None, on_progress: Progress, seeds: int = 1, law: Components = CLEAR) -> Result:
    """Seeds 0 to `seeds` - 1, each with data of its own."""
    return _run("dpm-components", data, on_progress, seeds, law)


def hard(data: Path | None, on_progress: Progress, seeds: int = 1, law: Components = HARD) -> Result:
    """As `clear`, but K has no bar."""
    return _run("dpm-components-hard", data, on_progress, seeds, law)


def _run(name: str, data: Path | None, on_progress: Progress, seeds: int, law: Components) -> Result:
    refuse(data)
    kmeans = algorithm("kmeans", clusters=law.clusters, restarts=1)
    fits = compare(
        [shoal_side("dpm", algorithm("dpm")), shoal_side("kmeans", kmeans)], generated(law, seeds), on_progress
    )
    nmi = mean(fits, "dpm", "nmi")
    off = max(abs(found / law.clusters - 1) for found in values(fits, "dpm", "clusters"))
    bars = [Bar("nmi", nmi, least=0.80)]
    if name == "dpm-components":
        bars = [Bar("nmi", nmi, least=0.985), Bar("clusters, largest relative error", off, most=0.03)]
    shape = {"rows": law.rows, "dimension": law.dim, "true_clusters": law.clusters, "spread": law.spread}
    return judged(name, bars, shape, tables(fits))
