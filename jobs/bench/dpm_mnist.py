"""Benchmark `dpm-mnist`: on 10-d embeddings of MNIST, the DPM that finds K beside k-means that is given K.

Both sides run in this process on the same rows, with the same seeds; CPU seconds are of this process and its threads.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np

from jobs.bench.registry import Result
from jobs.figures import Figures, Row
from models.dpm.config import DPMConfig
from models.errors import ShoalError
from models.kmeans import KMeansConfig
from models.registry import ClustererConfig
from pipeline.cluster.cluster import fit_array
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fit import FitConfig
from pipeline.evaluate.metrics import score_labels
from pipeline.progress import Progress

USUAL = Path("../shared/data/mnist_n2d.npz")
LEAST_NMI = 0.94
SEEDS = 5


@dataclass(frozen=True)
class _Data:
    x_ND: np.ndarray
    label_N: np.ndarray

    @property
    def classes(self) -> int:
        return len(np.unique(self.label_N))


def run(data: Path | None, on_progress: Progress) -> Result:
    """Five seeds of each side. Raises ShoalError where there is no data."""
    digits = _read(data or USUAL)
    sides: dict[str, ClustererConfig] = {"dpm": DPMConfig(), "kmeans": KMeansConfig(clusters=digits.classes)}
    rows: list[Row] = []
    for done, (name, seed) in enumerate((name, seed) for name in sides for seed in range(SEEDS)):
        on_progress("bench", done, SEEDS * len(sides))
        rows.append({"side": name, "seed": seed, **_measure(digits, sides[name], seed)})
    means = [_mean(name, [row for row in rows if row["side"] == name]) for name in sides]
    nmi = float(str(means[0]["nmi"]))
    values = {"rows": len(digits.x_ND), "dimension": digits.x_ND.shape[1], "true_clusters": digits.classes}
    return Result(nmi, nmi >= LEAST_NMI, Figures("bench dpm-mnist", values, {"sides": means, "fits": rows}))


def _measure(data: _Data, algorithm: ClustererConfig, seed: int) -> Row:
    config = ClusterConfig(algorithm=algorithm, fit=FitConfig(seed=seed))
    wall, cpu = time.perf_counter(), time.process_time()
    label_N, fit = fit_array(data.x_ND, config)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    scores = score_labels(data.label_N, label_N)
    return {
        "clusters": len(np.unique(label_N)),
        "nmi": scores.nmi,
        "ari": scores.ari,
        "acc": scores.acc,
        "passes": len(fit.history),
        "settled": fit.settled,
        "cpu_seconds": cpu,
        "wall_seconds": wall,
    }


def _mean(name: str, rows: list[Row]) -> Row:
    """The mean of each measure over seeds, and how far the seeds of the first are apart."""

    def values(column: str) -> list[float]:
        return [float(str(row[column])) for row in rows]

    columns = ("clusters", "nmi", "ari", "acc", "passes", "cpu_seconds", "wall_seconds")
    return {
        "side": name,
        **{column: fmean(values(column)) for column in columns},
        "nmi_deviation": pstdev(values("nmi")),
    }


def _read(path: Path) -> _Data:
    """Arrays `x` and `y` of an .npz file, without unpickling."""
    if not path.is_file():
        raise ShoalError(f"There is no data at {path}; give the .npz file with `embedding` and `label` as --data PATH.")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return _Data(arrays["embedding"].astype(np.float32), arrays["label"])
    except (KeyError, ValueError, OSError) as error:
        raise ShoalError(
            f"{path} is no .npz file with arrays `embedding` and `label` ({error}); give one as --data PATH."
        ) from error
