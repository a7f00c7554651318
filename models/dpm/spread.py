"""How wide components are beside the data, and what resolution lies between the two.

Shapes: K components, D dimensions; covariances (K, D, D), or (K, D) where they are diagonal.
"""

from __future__ import annotations

import math

from torch import Tensor

_LEAST_WEIGHT = 1e-300


def width(weight_K: Tensor, mean_KD: Tensor, covariance: Tensor) -> float:
    """Part of the mixture's variance that is inside its components."""
    variance_KD = covariance if covariance.ndim == 2 else covariance.diagonal(dim1=-2, dim2=-1)
    within = float(weight_K @ variance_KD.mean(dim=1))
    between = float(weight_K @ (mean_KD - weight_K @ mean_KD).square().mean(dim=1))
    return within / max(within + between, _LEAST_WEIGHT)


def blur(weight_K: Tensor, mean_KD: Tensor, covariance: Tensor) -> float:
    """T (V / (V + T))^(2/3) (1 - V / T): a variance between the components' (V) and the data's (T).

    V is the variance of a component along its own principal axes, each counted by its share, tr(C^2) / tr(C); T is the
    mean variance of the mixture per coordinate. T alone would join many small clusters in few dimensions, V alone
    follow the fineness of the mixture. Components as wide as the data leave no resolution between the two: then 0.
    """
    variance_KD = covariance if covariance.ndim == 2 else covariance.diagonal(dim1=-2, dim2=-1)
    square_K = covariance.flatten(1).square().sum(dim=1)
    spread = float(weight_K @ (square_K / variance_KD.sum(dim=1).clamp_min(_LEAST_WEIGHT)))
    between_KD = (mean_KD - weight_K @ mean_KD).square()
    total = float(weight_K @ (between_KD + variance_KD).mean(dim=1))
    if total <= spread:
        return 0.0
    return total * math.pow(spread / (spread + total), 2 / 3) * (1 - spread / total)
