"""Births: a cluster hidden inside another, found by concentrating on the rows that it explains better than the whole.

Where clusters overlap and only their shapes tell them apart, two halves of a cloud of many clusters are no likelier
than the whole, and splits fail. But a few hundred neighbouring rows, replaced again and again by as many rows whose
density under their own Gaussian is largest *relative to the cloud's*, soon belong to one hidden cluster: the
concentration step of the minimum covariance determinant (Rousseeuw and Van Driessen 1999), on a likelihood ratio and
for a small fixed number of rows. Their split from the rest is then judged by its exact Hastings ratio.

Shapes: n rows of one cluster, D dimensions, h rows of a proposal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.clusterer import Move
from models.dpm.moves import cluster_weight
from models.dpm.population import Population
from models.dpm.prior import Prior
from models.gaussians import Gaussians, factorize
from models.moments import Moments, moments_of_sets

_STEPS = 20  # concentration steps; most proposals repeat themselves after ten
_SAME = 0.99  # a set that keeps this fraction of its rows has settled
_LEAST_ROWS = 6  # of a proposal, per dimension: fewer say too little of a covariance
_COARSER = 4  # factor between the sizes of proposals
_MOST_ATTEMPTS = 48  # of one size
_SHRINK_ROWS, _SHRINK_VARIANCE = 20.0, 0.3  # what a proposal's covariance is shrunk to, in the cluster's own metric
_POLISH = 3  # steps in which a proposal may take as many rows as it wants
_OVERLAP = 0.2  # fraction of its rows that a proposal may share with better ones


@dataclass(frozen=True)
class Births:
    """What came of the attempts in one cluster: sets of row indices to be taken out, and every move."""

    sets: list[Tensor]
    log_ratios: list[float]
    proposals: int
    best: float  # log ratio of the best proposal; -inf without any

    def moves(self, parent: int, children: list[int], rows: int) -> list[Move]:
        """One move per birth, or one that says why there is none."""
        if not self.sets:
            why = f"the best of {self.proposals} groups among its {rows} rows is likelier inside"
            return [Move("birth", (parent,), self.best, False, why)] if self.proposals else []
        return [
            Move("birth", (parent, child), ratio, True, f"{len(rows_n)} of its {rows} rows are likelier apart")
            for child, ratio, rows_n in zip(children, self.log_ratios, self.sets, strict=True)
        ]


def births(
    population: Population, k: int, x_nD: Tensor, attempts: int, rng: torch.Generator, min_size: int = 1
) -> Births:
    """Groups of rows of cluster `k` that are likelier as clusters of their own, disjoint, best first.

    Sizes from half of the cluster down to 6 D rows, each `attempts` times and more often where small sizes have to be
    found in a large cluster. O(attempts n D^2) time per size and step. Empty without rows enough for any size.
    """
    whitened_nD = _whitened(population.clusters[torch.tensor([k])], x_nD)
    found: list[Tensor] = []
    for size in _sizes(len(x_nD), x_nD.shape[1]):
        tries = min(_MOST_ATTEMPTS, max(attempts, len(x_nD) // (3 * size)))
        for seed in torch.randint(len(x_nD), (tries,), generator=rng).tolist():
            found.append(concentrate(whitened_nD, seed, size))
    proposals = [member for each in found for member in _variants(population, x_nD, each)]
    return _accepted(population, x_nD, proposals, min_size)


def judged(population: Population, x_nD: Tensor, set_n: Tensor, min_size: int = 1) -> Births:
    """Whether the rows of one cluster, cut into these sets, are likelier so; the largest set stays the cluster.

    Sets of fewer than `min_size` rows, which would die at once, go to the largest.
    """
    count_S = torch.bincount(set_n)
    set_n = torch.where(count_S[set_n] < min_size, int(count_S.argmax()), set_n).unique(return_inverse=True)[1]
    sets = int(set_n.max()) + 1
    if sets < 2:
        return Births([], [], 0, -torch.inf)
    prior, alpha = population.prior, population.concentration
    parts = _moments(prior, x_nD, set_n, sets)
    gain = float(cluster_weight(prior, alpha, parts).sum() - cluster_weight(prior, alpha, parts.total())[0])
    if gain <= 0:
        return Births([], [], 1, gain)
    largest = int(parts.count_K.argmax())
    members = [torch.nonzero(set_n == k).flatten() for k in range(sets) if k != largest]
    return Births(members, [gain] * len(members), 1, gain)


def concentrate(whitened_nD: Tensor, seed: int, size: int) -> Tensor:
    """Bool mask of `size` rows around row `seed` whose own Gaussian stands out most from the standard normal."""
    rows, dim = whitened_nD.shape
    background_n = 0.5 * whitened_nD.square().sum(dim=1)
    ridge_DD = _SHRINK_ROWS * _SHRINK_VARIANCE * torch.eye(dim)
    index = (whitened_nD - whitened_nD[seed]).square().sum(dim=1).topk(size, largest=False).indices
    inside_n = torch.zeros(rows, dtype=torch.bool)
    inside_n[index] = True
    for _ in range(_STEPS):
        members = whitened_nD[index]
        mean_D = members.mean(dim=0)
        centred = members - mean_D
        chol_DD = torch.linalg.cholesky((centred.T @ centred + ridge_DD) / (size + _SHRINK_ROWS))
        whiten_DD = torch.linalg.solve_triangular(chol_DD, torch.eye(dim), upper=False)
        ratio_n = background_n - 0.5 * ((whitened_nD - mean_D) @ whiten_DD.T).square_().sum(dim=1)
        index = ratio_n.topk(size).indices
        kept = int(inside_n[index].sum())
        inside_n.zero_()
        inside_n[index] = True
        if kept >= _SAME * size:
            break
    return inside_n


def _sizes(rows: int, dim: int) -> list[int]:
    sizes = []
    size = rows // 2
    while size >= _LEAST_ROWS * dim:
        sizes.append(size)
        size //= _COARSER
    return sizes


def _whitened(cluster: Gaussians, x_nD: Tensor) -> Tensor:
    """Rows in the metric of their cluster: standard normal if it describes them."""
    chol_DD = factorize(cluster.covariance_KDD)[0]
    centred_nD = x_nD - (cluster.origin_D + cluster.mean_KD[0]).float()
    whiten_DD: Tensor = torch.linalg.solve_triangular(chol_DD, torch.eye(len(chol_DD)).double(), upper=False).float()
    return centred_nD @ whiten_DD.T


def _variants(population: Population, x_nD: Tensor, inside_n: Tensor) -> list[Tensor]:
    """The proposal as it is, and grown or shrunk to all rows that prefer it to the rest."""
    prior, free_n = population.prior, inside_n
    for _ in range(_POLISH):
        pair = _moments(prior, x_nD, free_n.long(), 2)
        if float(pair.count_K.min()) < 1:
            return [inside_n]
        density = prior.predictive(pair)
        joint_n2 = density.log_density(x_nD, single=True) + (pair.count_K / pair.count_K.sum()).log()
        free_n = joint_n2[:, 1] > joint_n2[:, 0]
    return [inside_n, free_n]


def _accepted(population: Population, x_nD: Tensor, proposals: list[Tensor], min_size: int) -> Births:
    """Greedy: the best proposal first, each later one judged against what is left of the cluster."""
    prior, alpha, rows = population.prior, population.concentration, len(x_nD)
    proposals = [inside_n for inside_n in proposals if min_size <= int(inside_n.sum()) <= rows - min_size]
    if not proposals:
        return Births([], [], 0, -torch.inf)
    whole = _moments(prior, x_nD, torch.zeros(rows, dtype=torch.int64), 1)
    apart = [
        _moments(prior, x_nD[inside_n], torch.zeros(int(inside_n.sum()), dtype=torch.int64), 1)
        for inside_n in proposals
    ]
    inside = Moments.cat(apart)
    alone = float(cluster_weight(prior, alpha, whole)[0])
    ratio_P = cluster_weight(prior, alpha, inside) + cluster_weight(prior, alpha, _minus(whole, inside)) - alone
    taken_n, left, sets, ratios = torch.zeros(rows, dtype=torch.bool), whole, [], []
    for p in torch.argsort(ratio_P, descending=True, stable=True).tolist():
        if ratio_P[p] <= 0:
            break
        fresh_n = proposals[p] & ~taken_n
        if int(fresh_n.sum()) < max(min_size, (1 - _OVERLAP) * int(proposals[p].sum())):
            continue
        part = _moments(prior, x_nD[fresh_n], torch.zeros(int(fresh_n.sum()), dtype=torch.int64), 1)
        rest = _minus(left, part)
        if float(rest.count_K[0]) < min_size:
            continue
        weight_3 = cluster_weight(prior, alpha, Moments.cat([part, rest, left]))
        gain = float(weight_3[0] + weight_3[1] - weight_3[2])
        if gain > 0:
            sets.append(torch.nonzero(fresh_n).flatten())
            ratios.append(gain)
            taken_n, left = taken_n | fresh_n, rest
    return Births(sets, ratios, len(proposals), float(ratio_P.max()))


def _moments(prior: Prior, x_nD: Tensor, set_n: Tensor, sets: int) -> Moments:
    return moments_of_sets(x_nD, set_n, sets, prior.mean_D, diagonal=prior.diagonal)


def _minus(whole: Moments, part: Moments) -> Moments:
    """What is left of one set without each part; counts are whole numbers, so none falls below 0 by rounding."""
    return replace(
        whole,
        count_K=whole.count_K - part.count_K,
        sum_KD=whole.sum_KD - part.sum_KD,
        second_KDD=whole.second_KDD - part.second_KDD,
    )
