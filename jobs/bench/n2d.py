"""Benchmarks `dpm-mnist`, `dpm-fashion`, `deepdpm-mnist`: on 10-d embeddings (N2D), K is found, k-means is given it.

Bars: means of 5 seeds, the default settings, the same for both data sets; see `registry`. Each takes one to three
minutes, DeepDPM five to ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.bench.bars import Bar, Result, every, judged
from jobs.bench.data import FASHION, MNIST, USUAL, read, repeated, shape
from jobs.bench.sides import Data, Measured, Side, algorithm, compare, mean, shoal_side, tables, values
from pipeline.progress import Progress

GIVEN = "dpm, prior given"
_SCORES = ("nmi", "ari", "acc")
_PRIOR_SCALE = 0.1  # any in the usual range: one fit, without the choice of a prior


def mnist(data: Path | None, on_progress: Progress, seeds: int = 5) -> Result:
    """The DPM on MNIST: scores, K, and the time of a whole default fit and of one at a given prior."""
    digits = read(data or USUAL / MNIST)
    given = shoal_side(GIVEN, algorithm("dpm", prior_scale=_PRIOR_SCALE))
    fits = compare([_dpm(), given, _kmeans(digits)], repeated(digits, seeds), on_progress)
    bars = [
        *_quality(fits, (0.94, 0.95, 0.97), (9, 12)),
        Bar("cpu_seconds, prior given", mean(fits, GIVEN, "cpu_seconds"), most=1.5),
        Bar("cpu_seconds", mean(fits, "dpm", "cpu_seconds"), most=15),
    ]
    return judged("dpm-mnist", bars, shape(digits), tables(fits))


def fashion(data: Path | None, on_progress: Progress, seeds: int = 5) -> Result:
    """The DPM on Fashion-MNIST, with the settings that it has on MNIST: scores and K."""
    clothes = read(data or USUAL / FASHION)
    fits = compare([_dpm(), _kmeans(clothes)], repeated(clothes, seeds), on_progress)
    return judged("dpm-fashion", _quality(fits, (0.68, 0.51, 0.62), (9, 13)), shape(clothes), tables(fits))


def deepdpm(data: Path | None, on_progress: Progress, seeds: int = 5) -> Result:
    """DeepDPM on MNIST beside the DPM: the same scores within .01, and its time."""
    digits = read(data or USUAL / MNIST)
    fits = compare(
        [shoal_side("deepdpm", algorithm("deepdpm")), _dpm(), _kmeans(digits)], repeated(digits, seeds), on_progress
    )
    apart = {score: abs(mean(fits, "deepdpm", score) - mean(fits, "dpm", score)) for score in _SCORES}
    bars = [
        *(Bar(f"{score}, distance from the dpm's", apart[score], most=0.01) for score in _SCORES),
        Bar("cpu_seconds", mean(fits, "deepdpm", "cpu_seconds"), most=60),
    ]
    return judged("deepdpm-mnist", bars, shape(digits), tables(fits))


def _dpm() -> Side:
    return shoal_side("dpm", algorithm("dpm"))


def _kmeans(data: Data) -> Side:
    return shoal_side("kmeans", algorithm("kmeans", clusters=data.classes))


def _quality(fits: Sequence[Measured], least: tuple[float, float, float], clusters: tuple[int, int]) -> list[Bar]:
    """Means of the three scores, and K of every seed."""
    means = [Bar(score, mean(fits, "dpm", score), bar) for score, bar in zip(_SCORES, least, strict=True)]
    return [*means, every("clusters, each seed", values(fits, "dpm", "clusters"), *clusters)]
