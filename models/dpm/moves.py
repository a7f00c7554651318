"""Splits and merges: log Hastings ratios from Moments alone, and which proposals do not conflict.

Source: the moves of Chang and Fisher (2013), Parallel sampling of DP mixture models using sub-clusters splits, with the
Hastings ratio as Ronen, Finder and Freifeld (2022), DeepDPM, state it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.dpm.prior import Prior
from models.moments import Moments
from models.neighbors import nearest_centroids_of

_BYTES = 256 * 2**20  # of the unions of pairs that stand in memory together


def log_split_ratio(prior: Prior, concentration: float, first: Moments, second: Moments) -> Tensor:
    """Log H of splitting each pair's union into its two sets, (K,); the merge of the pair has exactly minus that.

    H = alpha G(N1) f(X1) G(N2) f(X2) / (G(N) f(X)), G the gamma function, f the marginal likelihood.
    A set without rows makes its split impossible: minus infinity.
    """
    apart_K = cluster_weight(prior, concentration, first) + cluster_weight(prior, concentration, second)
    ratio_K = apart_K - cluster_weight(prior, concentration, first + second)
    possible_K = (first.count_K > 0) & (second.count_K > 0)
    return torch.where(possible_K, ratio_K, -torch.inf)


@dataclass(frozen=True)
class MergeProposals:
    """Pairs of clusters that might merge, the log H of each, and what every cluster weighs by itself."""

    pair_P2: Tensor
    ratio_P: Tensor
    weight_K: Tensor


def merge_proposals(
    prior: Prior, concentration: float, clusters: Moments, pair_P2: Tensor, weight_K: Tensor | None = None
) -> MergeProposals:
    """Log H of merging each pair; `weight_K` (`cluster_weight`) where it is known already.

    A ratio equals minus `log_split_ratio` of the two. The unions are taken a few at a time.
    """
    if weight_K is None:
        weight_K = cluster_weight(prior, concentration, clusters)
    size = max(1, _BYTES // clusters.second_KDD[0].nbytes)
    parts = []
    for pair_p2 in pair_P2.split(size):
        union = clusters[pair_p2[:, 0]] + clusters[pair_p2[:, 1]]
        parts.append(cluster_weight(prior, concentration, union) - weight_K[pair_p2].sum(dim=1))
    return MergeProposals(pair_P2, torch.cat(parts) if parts else weight_K.new_empty(0), weight_K)


def log_joint(prior: Prior, concentration: float, clusters: Moments) -> float:
    """Log p(rows, partition): Chinese restaurant process times marginal likelihoods. The objective that moves raise."""
    return joint_of(cluster_weight(prior, concentration, clusters), concentration, float(clusters.count_K.sum()))


def joint_of(weight_K: Tensor, concentration: float, rows: float) -> float:
    """`log_joint` from the clusters' weights."""
    return float(weight_K.sum()) + math.lgamma(concentration) - math.lgamma(concentration + rows)


def cluster_weight(prior: Prior, concentration: float, clusters: Moments) -> Tensor:
    """What each cluster adds to the log joint, (K,): log alpha + ln G(N) + log f(X)."""
    partition_K = torch.lgamma(clusters.count_K.clamp_min(1e-300)) + math.log(concentration)
    return partition_K + prior.log_marginal(clusters)


def neighbor_pairs(mean_KD: Tensor, neighbors: int) -> Tensor:
    """Unordered pairs of each mean with its nearest others, each pair once, (P, 2) in ascending order. O(K^2 D)."""
    near_Kn = nearest_centroids_of(mean_KD.float(), min(neighbors, len(mean_KD) - 1))
    left_P = torch.arange(len(mean_KD)).repeat_interleave(near_Kn.shape[1])
    pair_P2 = torch.stack([left_P, near_Kn.flatten()], dim=1).sort(dim=1).values
    unique_P2: Tensor = pair_P2.unique(dim=0)
    return unique_P2


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
