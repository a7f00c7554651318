"""Empirical Bayes: what the families of covariances share when they fit a prior to a partition.

Every family has a prior that counts as `weight` rows of covariance and `kappa` rows of mean. Both maximise the sum of
log marginal likelihoods, by searches over their logarithms that are deterministic and keep within bounds.

Shapes: K clusters, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from models.moments import Moments

_LEAST_WEIGHT, _MOST_WEIGHT = 0.1, 1e6
_LEAST_KAPPA, _MOST_KAPPA = 1e-9, 1e3
_LEAST_SPREAD = 1e-10  # of the mean square about the origin: below, a variance is the rounding of its sums
_GRID, _ROUNDS, _PRECISION = 17, 3, 1e-3


@dataclass(frozen=True)
class Strengths:
    """Rows that a prior counts as: `weight` for covariances, `kappa` for means."""

    weight: float
    kappa: float


def occupied(clusters: Moments) -> Moments:
    """The sets that have rows; no copy where all have."""
    if bool((clusters.count_K > 0).all()):
        return clusters
    return clusters[torch.nonzero(clusters.count_K > 0).flatten()]


def identified(clusters: Moments) -> bool:
    """Whether covariances can be compared, which takes two clusters of at least two rows."""
    return int((clusters.count_K > 1).sum()) > 1


def degrees_within(clusters: Moments) -> float:
    """Degrees of freedom of the pooled scatter within clusters."""
    return float((clusters.count_K - 1).clamp_min(0).sum())


def pooled_scatter(clusters: Moments) -> Tensor:
    """Sum of the clusters' scatters about their own means: (D, D), or (D,) where only variances are kept."""
    sum_KD = clusters.sum_KD / clusters.count_K.sqrt()[:, None]
    if clusters.diagonal:
        return (clusters.second_KDD.sum(dim=0) - sum_KD.square().sum(dim=0)).clamp_min(0)
    return clusters.second_KDD.sum(dim=0) - sum_KD.T @ sum_KD


def mean_variance_within(clusters: Moments, fallback: float) -> float:
    """Variance within clusters per dimension; `fallback` where no cluster says anything of it.

    Clusters of equal rows get a variance just above the rounding of their sums.
    """
    degrees = degrees_within(clusters)
    if degrees == 0:
        return fallback
    second = clusters.second_KDD if clusters.diagonal else clusters.second_KDD.diagonal(dim1=1, dim2=2)
    spread = float(second.sum() / clusters.count_K.sum()) / clusters.dim
    scatter = pooled_scatter(clusters)
    within = float(scatter.sum() if clusters.diagonal else scatter.trace()) / (degrees * clusters.dim)
    return max(within, _LEAST_SPREAD * spread) or fallback


def strongest(
    evidence: Callable[[Strengths], float], clusters: Moments, start: Strengths, *, search_weight: bool = True
) -> Strengths:
    """The strengths of largest evidence, each in turn. About 200 evaluations.

    A prior weighs at most as many rows as its covariance was taken from. One cluster lies at the prior mean by
    itself and says nothing of either strength, so both stay as they are; so does the weight where covariances cannot
    be compared.
    """
    if len(clusters) < 2:
        return start
    most = min(_MOST_WEIGHT, max(1.0, degrees_within(clusters)))
    best = Strengths(min(max(start.weight, _LEAST_WEIGHT), most), min(max(start.kappa, _LEAST_KAPPA), _MOST_KAPPA))

    def of_weight(weight: float) -> float:
        return evidence(Strengths(weight, best.kappa))

    def of_kappa(kappa: float) -> float:
        return evidence(Strengths(best.weight, kappa))

    for _ in range(_ROUNDS):
        if search_weight:
            best = Strengths(_peak(of_weight, _LEAST_WEIGHT, most), best.kappa)
        best = Strengths(best.weight, _peak(of_kappa, _LEAST_KAPPA, _MOST_KAPPA))
    return best


def _peak(function: Callable[[float], float], least: float, most: float) -> float:
    """Argument of the largest value between two positive bounds: a grid in logarithms, then Brent around its best."""
    grid = torch.linspace(math.log(least), math.log(most), _GRID, dtype=torch.float64).tolist()
    values = [function(math.exp(point)) for point in grid]
    best = max(range(_GRID), key=values.__getitem__)
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)])
    if bounds[1] - bounds[0] <= _PRECISION:
        return math.exp(grid[best])
    found = minimize_scalar(
        lambda point: -function(math.exp(point)), bounds=bounds, method="bounded", options={"xatol": _PRECISION}
    )
    return math.exp(grid[best] if values[best] >= -float(found.fun) else float(found.x))
