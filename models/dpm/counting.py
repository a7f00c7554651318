"""Moments of weighted rows, and what sets are worth to the log joint when some of them may be empty.

Shapes: N rows, D dimensions, K sets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.dpm.moves import cluster_weight
from models.dpm.prior import Prior
from models.moments import Moments, moments_of_sets, sparse_moments, zeros

EMPTY = 1e-9  # rows below which a component has none: what is left of it is rounding, or decay


def counted_sets(prior: Prior, x_ND: Tensor, set_N: Tensor, weight_N: Tensor | None, num_sets: int) -> Moments:
    """Moments of disjoint sets in which row n counts `weight_N[n]` times; None is once each. O(N D^2) time."""
    origin_D = prior.mean_D.to(x_ND.device)
    if weight_N is None or bool((weight_N == 1).all()):
        return moments_of_sets(x_ND, set_N, num_sets, origin_D, diagonal=prior.diagonal)
    if not prior.diagonal:
        row_N = torch.arange(len(x_ND), device=x_ND.device)
        return sparse_moments(x_ND, row_N, set_N, weight_N, num_sets, origin_D)
    moments = zeros(num_sets, x_ND.shape[1], diagonal=True, device=x_ND.device)
    centred_ND, weight_N1 = x_ND.double() - origin_D, weight_N.double()[:, None]
    moments.count_K.index_add_(0, set_N, weight_N1[:, 0])
    moments.sum_KD.index_add_(0, set_N, weight_N1 * centred_ND)
    moments.second_KDD.index_add_(0, set_N, weight_N1 * centred_ND.square())
    return moments


def minus(whole: Moments, part: Moments) -> Moments:
    """What is left of each set without its part; exactly nothing where that is no more than rounding."""
    count_K = whole.count_K - part.count_K
    left_K = (count_K > EMPTY * (1 + whole.count_K)).double()
    rest = []
    for total, share in zip(whole.tensors().values(), part.tensors().values(), strict=True):
        rest.append((total - share) * left_K.view(-1, *[1] * (total.ndim - 1)))
    return Moments(*rest)


def worth(prior: Prior, concentration: float, sets: Moments) -> Tensor:
    """What each set adds to the log joint, (K,); an empty one nothing."""
    return torch.where(sets.count_K > EMPTY, cluster_weight(prior, concentration, sets), 0.0)


def scaled_sets(sets: Moments, factor: float) -> Moments:
    """Moments of the same rows, each counted `factor` times as much."""
    return sets if factor == 1 else Moments(*(factor * each for each in sets.tensors().values()))
