"""Benchmark `dpm-workers`: the same rows fitted by one worker and by two of Ray Train.

Bars: the same label for every row (ARI 1), and efficiency at least .8: half of one worker's time over two workers'
time, of the passes alone, not of starting Ray. Needs 2 free cores; takes three minutes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.data import refuse
from jobs.bench.sides import algorithm
from jobs.context import RayConfig, local_ray
from jobs.figures import Row
from models.errors import ShoalError
from pipeline.cluster.cluster import fit_array
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fit import Fit, FitConfig
from pipeline.evaluate.generated import Components
from pipeline.evaluate.metrics import score_labels
from pipeline.progress import Progress

# 8 blocks, 4 for each of two workers. A pass of one takes some 3.5 s; in 32-d, at 1.5 s, what worker 0 does alone
# (maximize, and tell the other) weighs more, and efficiency is .75.
LAW = Components(rows=524_288, dim=64, clusters=50, spread=1.2)


def run(data: Path | None, on_progress: Progress, law: Components = LAW, workers: tuple[int, int] = (1, 2)) -> Result:
    """Raises ShoalError where data are given."""
    refuse(data)
    x_ND, label_N = law.draw()
    rows: list[Row] = []
    found: list[np.ndarray] = []
    seconds: list[float] = []
    for count in workers:
        on_progress(f"bench, {count} workers", len(rows), len(workers))
        with local_ray(RayConfig(num_cpus=count), needed=count > 1):
            cluster_N, fit = fit_array(x_ND, _config(count))
        found.append(cluster_N)
        seconds.append(_seconds(fit))
        rows.append(
            {"workers": count, **_scores(label_N, cluster_N), "passes": len(fit.history), "seconds": seconds[-1]}
        )
    bars = [
        Bar("efficiency", efficiency(seconds, workers), least=0.8),
        Bar("ari between them", score_labels(found[0], found[1]).ari or 0.0, least=1.0),
        Bar("rows labelled otherwise", int((found[0] != found[1]).sum()), most=0),
    ]
    shape = {"rows": law.rows, "dimension": law.dim, "true_clusters": law.clusters}
    return judged("dpm-workers", bars, shape, {"fits": rows})


def efficiency(seconds: Sequence[float], workers: Sequence[int]) -> float:
    """The part of the added workers that is of use: 1 where twice the workers take half the time."""
    return workers[0] * seconds[0] / (workers[1] * seconds[1])


def _scores(label_N: np.ndarray, cluster_N: np.ndarray) -> dict[str, float | None]:
    return {"clusters": len(np.unique(cluster_N)), "nmi": score_labels(label_N, cluster_N).nmi}


def _config(workers: int) -> ClusterConfig:
    return ClusterConfig(algorithm=algorithm("dpm"), fit=FitConfig(workers=workers))


def _seconds(fit: Fit) -> float:
    """Wall seconds of the passes, as the fit recorded them."""
    seconds: float | None = getattr(fit, "seconds", None)
    if not seconds:
        raise ShoalError("Fits of this shoal do not record the time of their passes (`seconds`); use one whose do.")
    return seconds
