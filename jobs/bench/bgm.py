"""Benchmark `dpm-vs-bgm`: the DPM against scikit-learn's BayesianGaussianMixture of 30 full components, on MNIST (N2D).

Bars: at least 10 times less CPU, the choice of the prior included, and no worse NMI. Both on one thread of this
process. Takes one to two minutes.
"""

from __future__ import annotations

from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.data import MNIST, USUAL, read, repeated, shape
from jobs.bench.sides import Side, algorithm, compare, mean, shoal_side, tables
from pipeline.evaluate.baselines import bayesian_mixture
from pipeline.progress import Progress


def run(data: Path | None, on_progress: Progress, seeds: int = 1, components: int = 30) -> Result:
    """Raises ShoalError where there is no data."""
    digits = read(data or USUAL / MNIST)
    theirs = Side("scikit-learn bgm", lambda x_ND, seed: bayesian_mixture(x_ND, components, seed))
    fits = compare([shoal_side("dpm", algorithm("dpm")), theirs], repeated(digits, seeds), on_progress)
    faster = mean(fits, theirs.name, "cpu_seconds") / mean(fits, "dpm", "cpu_seconds")
    better = mean(fits, "dpm", "nmi") - mean(fits, theirs.name, "nmi")
    bars = [Bar("times less CPU", faster, least=10), Bar("nmi above bgm's", better, least=0)]
    return judged("dpm-vs-bgm", bars, shape(digits), tables(fits))
