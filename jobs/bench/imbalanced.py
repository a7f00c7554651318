"""Benchmark `dpm-imbalanced`: classes of very different size, K found, against scikit-learn's k-means given K.

Subsamples of MNIST and Fashion-MNIST (N2D), class weights from 1 to 0.05. Bar: on each, the mean NMI of 5 seeds is no
more than .005 below that of k-means, the best of 10 starts. Takes about two minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.data import FASHION, MNIST, USUAL, read
from jobs.bench.sides import Data, Side, algorithm, compare, mean, shoal_side, tables
from pipeline.evaluate.baselines import kmeans
from pipeline.evaluate.generated import imbalanced
from pipeline.progress import Progress


def run(data: Path | None, on_progress: Progress, seeds: int = 5) -> Result:
    """`data`: one file, or the folder of both. Each seed draws its own subsample."""
    folder = data or USUAL
    paths = [folder / MNIST, folder / FASHION] if folder.is_dir() or data is None else [folder]
    fits, bars = [], []
    for path in paths:
        whole = read(path)
        found, given = f"dpm, {path.stem}", f"scikit-learn kmeans, {path.stem}"
        sides = [shoal_side(found, algorithm("dpm")), _given(given, whole.classes)]
        fits += compare(sides, _subsamples(whole, seeds), on_progress)
        ahead = mean(fits, found, "nmi") - mean(fits, given, "nmi")
        bars.append(Bar(f"nmi above kmeans, {path.stem}", ahead, least=-0.005))
    return judged("dpm-imbalanced", bars, {"seeds": seeds}, tables(fits))


def _given(name: str, clusters: int) -> Side:
    return Side(name, lambda x_ND, seed: kmeans(x_ND, clusters, seed))


def _subsamples(whole: Data, seeds: int) -> Iterator[tuple[int, Data]]:
    for seed in range(seeds):
        kept_N = imbalanced(whole.label_N, seed)
        yield seed, Data(whole.x_ND[kept_N], whole.label_N[kept_N])
