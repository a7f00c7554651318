"""Splits and merges: log Hastings ratios from Moments alone, and which proposals do not conflict.

Source: the moves of Chang and Fisher (2013), Parallel sampling of DP mixture models using sub-clusters splits, with the
Hastings ratio as Ronen, Finder and Freifeld (2022), DeepDPM, state it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.dpm.prior import NIW
from models.moments import Moments


def log_split_ratio(prior: NIW, concentration: float, first: Moments, second: Moments) -> Tensor:
    """Log H of splitting each pair's union into its two sets, (K,); the merge of the pair has exactly minus that.

    H = alpha G(N1) f(X1) G(N2) f(X2) / (G(N) f(X)), G the gamma function, f the marginal likelihood.
    A set without rows makes its split impossible: minus infinity.
    """
    whole = first + second
    ratio_K = (
        math.log(concentration) + _log_weight(prior, first) + _log_weight(prior, second) - _log_weight(prior, whole)
    )
    possible_K = (first.count_K > 0) & (second.count_K > 0)
    return torch.where(possible_K, ratio_K, -torch.inf)


def log_joint(prior: NIW, concentration: float, clusters: Moments) -> float:
    """Log p(rows, partition): Chinese restaurant process times marginal likelihoods. The objective that moves raise."""
    rows = clusters.count_K.sum()
    alpha = torch.tensor(concentration, dtype=torch.float64)
    restaurant = torch.lgamma(alpha) - torch.lgamma(alpha + rows) + clusters.count_K.shape[0] * alpha.log()
    return float(restaurant + _log_weight(prior, clusters).sum())


def cluster_weight(prior: NIW, concentration: float, clusters: Moments) -> Tensor:
    """What each cluster adds to the log joint: log alpha + ln G(N) + f(X)."""
    return math.log(concentration) + _log_weight(prior, clusters)


def _log_weight(prior: NIW, moments: Moments) -> Tensor:
    return torch.lgamma(moments.count_K.clamp_min(1e-300)) + prior.log_marginal(moments)


def disjoint_pairs(pair_P2: Tensor, gain_P: Tensor) -> list[int]:
    """Indices of pairs, largest gain first, such that no cluster is in two of them. O(P log P)."""
    taken: set[int] = set()
    chosen = []
    pairs = pair_P2.tolist()
    for index in torch.argsort(gain_P, descending=True, stable=True).tolist():
        if taken.isdisjoint(pairs[index]):
            taken.update(pairs[index])
            chosen.append(index)
    return chosen
