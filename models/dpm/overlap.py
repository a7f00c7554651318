"""How much Gaussians overlap, and which pairs of them are compared.

Shapes: K components, D dimensions, P pairs of components; covariances (K, D, D), or (K, D) where they are diagonal.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.gaussians import Gaussians, deviations, factorize, log_determinant
from models.neighbors import nearest_centroids_of

_ALL_PAIRS = 64  # components up to which every pair is compared
_NEIGHBORS = 8  # nearest others that a component is compared with beyond that; farther overlaps count as 0
_CHUNK = 2**21  # floats of one temporary, 16 MB


def compared_pairs(mean_KD: Tensor) -> Tensor:
    """Pairs of components that are compared, smaller first, (P, 2)."""
    count = len(mean_KD)
    if count <= _ALL_PAIRS:
        return torch.triu_indices(count, count, 1).T
    near_KJ = nearest_centroids_of(mean_KD, _NEIGHBORS)
    pair_P2 = torch.stack([torch.arange(count)[:, None].expand_as(near_KJ), near_KJ], dim=-1).reshape(-1, 2)
    unique_P2: Tensor = torch.unique(pair_P2.sort(dim=1).values, dim=0)
    return unique_P2


def covariances(gaussians: Gaussians) -> Tensor:
    """Covariances, (K, D, D) or (K, D); a Student-t density of 2 degrees or fewer, which has none, gives its scale."""
    covariance = gaussians.chol_KDD.square() if gaussians.diagonal else gaussians.covariance_KDD
    if gaussians.degrees_K is not None:
        degrees_K = gaussians.degrees_K
        wider_K = torch.where(degrees_K > 2, degrees_K / (degrees_K - 2).clamp_min(1e-300), 1.0)
        covariance = covariance * wider_K.view(-1, *[1] * (covariance.ndim - 1))
    return covariance


def lifted(covariance: Tensor) -> Tensor:
    """In place: flat covariances with the least jitter that gives them a density."""
    for each in covariance.split(_chunk(covariance)):
        factor = _factors(each)
        each.copy_(factor.square() if factor.ndim == 2 else factor @ factor.mT)
    return covariance


def bhattacharyya(mean_KD: Tensor, covariance: Tensor, pair_P2: Tensor, variance: float = 0.0) -> Tensor:
    """Bhattacharyya distance of pairs of Gaussians, (P,), that is -log of the integral of sqrt(p q) (1943).

    (m - n)' S^-1 (m - n) / 8 + log(|S| / sqrt(|A| |B|)) / 2, where S = (A + B) / 2; `variance` is added to every
    covariance, and covariances (K, D) are diagonal. O(P D^3) time, or O(P D).
    """
    size = _chunk(covariance)
    root_K = torch.cat([log_determinant(_factors(_blurred(each, variance))) for each in covariance.split(size)]) / 2
    distances = [
        _distances(mean_KD, root_K, _blurred((covariance[left] + covariance[right]) / 2, variance), left, right)
        for left, right in (chunk.unbind(dim=1) for chunk in pair_P2.split(size))
    ]
    return torch.cat([*distances, mean_KD.new_empty(0)])


def _distances(mean_KD: Tensor, root_K: Tensor, middle: Tensor, left_P: Tensor, right_P: Tensor) -> Tensor:
    factor, gap_PD = _factors(middle), mean_KD[right_P] - mean_KD[left_P]
    if factor.ndim == 2:
        white_PD = gap_PD / factor
    else:
        white_PD = torch.linalg.solve_triangular(factor, gap_PD[..., None], upper=False)[..., 0]
    distance_P = white_PD.square().sum(dim=1) / 8 + (log_determinant(factor) - root_K[left_P] - root_K[right_P]) / 2
    return distance_P.clamp_min(0)


def _factors(covariance: Tensor) -> Tensor:
    return deviations(covariance) if covariance.ndim == 2 else factorize(covariance)


def _blurred(covariance: Tensor, variance: float) -> Tensor:
    if covariance.ndim == 2:
        return covariance + variance
    covariance = covariance.clone()
    covariance.diagonal(dim1=-2, dim2=-1).add_(variance)
    return covariance


def _chunk(covariance: Tensor) -> int:
    """Covariances of one temporary."""
    return max(1, _CHUNK // max(1, covariance[:1].numel()))
