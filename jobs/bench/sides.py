"""The sides of a comparison: each fits the same rows in this process, is timed, and is scored against the labels.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from jobs.figures import Row
from models.errors import ShoalError
from models.registry import ALGORITHMS, ClustererConfig
from pipeline.cluster.cluster import fit_array
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fit import Fit, FitConfig
from pipeline.evaluate.baselines import Baseline
from pipeline.evaluate.metrics import score_labels
from pipeline.progress import Progress
from pipeline.train.config import TrainConfig

_WARM_ROWS = 1_000
_MEANS = ("clusters", "nmi", "ari", "acc", "passes", "cpu_seconds", "wall_seconds")


@dataclass(frozen=True)
class Data:
    """Rows and what they are known to be."""

    x_ND: np.ndarray
    label_N: np.ndarray

    @property
    def classes(self) -> int:
        """Different labels."""
        return len(np.unique(self.label_N))


@dataclass(frozen=True)
class Side:
    """What clusters rows, given a seed, under a name."""

    name: str
    label: Callable[[np.ndarray, int], Baseline]


@dataclass(frozen=True)
class Measured:
    """One fit. CPU seconds are of this process, its threads, and the children that it waited for."""

    side: str
    seed: int
    clusters: int
    nmi: float
    ari: float
    acc: float
    passes: int
    settled: bool
    cpu_seconds: float
    wall_seconds: float


@dataclass
class Clock:
    """What the time of a block comes to."""

    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0


@contextmanager
def timed() -> Iterator[Clock]:
    """Measure the block inside."""
    clock = Clock()
    wall, cpu = time.perf_counter(), _cpu_seconds()
    yield clock
    clock.wall_seconds, clock.cpu_seconds = time.perf_counter() - wall, _cpu_seconds() - cpu


def algorithm(kind: str, **settings: Any) -> ClustererConfig:
    """The settings of an algorithm by its kind. Raises ShoalError where this shoal has none of that kind."""
    if kind not in ALGORITHMS:
        raise ShoalError(
            f"This shoal has no algorithm {kind!r} to measure, only {', '.join(ALGORITHMS)}; use a version that has it."
        )
    return ClusterConfig.model_validate({"algorithm": {"kind": kind, **settings}}).algorithm


def shoal_side(name: str, settings: ClustererConfig, threads: int = 1) -> Side:
    """A side that is an algorithm of shoal's."""
    return Side(name, lambda x_ND, seed: _baseline(*cluster_rows(x_ND, settings, seed, threads)))


def cluster_rows(x_ND: np.ndarray, settings: ClustererConfig, seed: int, threads: int = 1) -> tuple[np.ndarray, Fit]:
    """The cluster of each row, and the fit."""
    fit, train = FitConfig(seed=seed, threads=threads), TrainConfig(seed=seed)  # each algorithm heeds one of them
    return fit_array(x_ND, ClusterConfig(algorithm=settings, fit=fit, train=train))


def compare(sides: Sequence[Side], draws: Iterable[tuple[int, Data]], on_progress: Progress) -> list[Measured]:
    """Every side on the same rows of every draw (seed and data).

    Each side clusters a few rows first: what a library loads or compiles at its first use is not the fit's.
    """
    fits: list[Measured] = []
    for seed, data in draws:
        for side in sides:
            on_progress(f"bench, {side.name}", len(fits), None)
            if not any(fit.side == side.name for fit in fits):
                side.label(data.x_ND[:_WARM_ROWS], seed)
            fits.append(measure(side, seed, data))
    return fits


def measure(side: Side, seed: int, data: Data) -> Measured:
    """Time one fit and score it."""
    with timed() as clock:
        found = side.label(data.x_ND, seed)
    scores = score_labels(data.label_N, found.cluster_N)
    return Measured(
        side=side.name,
        seed=seed,
        clusters=len(np.unique(found.cluster_N)),
        nmi=float(scores.nmi or 0.0),
        ari=float(scores.ari or 0.0),
        acc=float(scores.acc or 0.0),
        passes=found.passes,
        settled=found.settled,
        cpu_seconds=clock.cpu_seconds,
        wall_seconds=clock.wall_seconds,
    )


def values(fits: Sequence[Measured], side: str, measure: str) -> list[float]:
    """One measure of every fit of a side."""
    return [float(getattr(fit, measure)) for fit in fits if fit.side == side]


def mean(fits: Sequence[Measured], side: str, measure: str) -> float:
    """The mean of a measure over a side's fits."""
    return fmean(values(fits, side, measure))


def tables(fits: Sequence[Measured]) -> dict[str, list[Row]]:
    """Means of each side, with how far its NMI varies, and the fits themselves."""
    names = list(dict.fromkeys(fit.side for fit in fits))
    means: list[Row] = [
        {
            "side": name,
            **{measure: mean(fits, name, measure) for measure in _MEANS},
            "nmi_deviation": pstdev(values(fits, name, "nmi")),
        }
        for name in names
    ]
    return {"sides": means, "fits": [asdict(fit) for fit in fits]}


def _baseline(cluster_N: np.ndarray, fit: Fit) -> Baseline:
    return Baseline(cluster_N, len(fit.history), fit.settled)


def _cpu_seconds() -> float:
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system
