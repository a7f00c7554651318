"""Batches of Gaussians: moments that add, covariances that always factorise, log densities.

Shapes: N rows, D dimensions, K components. Everything here is float64: with float32 sums a count stops growing near
2**24 rows, and a covariance taken from raw second moments loses its last digits first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_JITTER = 1e-10  # relative to a covariance's mean variance; ten times more at each failed attempt
_LEAST_VARIANCE = 1e-150  # stands in for the variance of rows that have none; its inverse is still finite
_ROWS = 8192  # rows per step: the temporaries of one step stay in the processor's cache


@dataclass(frozen=True)
class Moments:
    """Count, sum and second moment of K sets of rows, each about one fixed origin.

    Adding two Moments equals one pass over both sets of rows. Taking them about a point inside the data (not 0) keeps
    the scatter accurate when the data lie far from 0.
    """

    count_K: Tensor
    sum_KD: Tensor
    second_KDD: Tensor

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count_K + other.count_K, self.sum_KD + other.sum_KD, self.second_KDD + other.second_KDD)

    def __getitem__(self, index: Tensor) -> Moments:
        return Moments(self.count_K[index], self.sum_KD[index], self.second_KDD[index])

    @staticmethod
    def cat(parts: Sequence[Moments]) -> Moments:
        """All sets of all parts, in order."""
        return Moments(
            torch.cat([part.count_K for part in parts]),
            torch.cat([part.sum_KD for part in parts]),
            torch.cat([part.second_KDD for part in parts]),
        )

    def to(self, device: torch.device | str) -> Moments:
        """The same on another device."""
        return Moments(self.count_K.to(device), self.sum_KD.to(device), self.second_KDD.to(device))

    def total(self) -> Moments:
        """The union of all sets, as one."""
        return Moments(
            self.count_K.sum(dim=0, keepdim=True),
            self.sum_KD.sum(dim=0, keepdim=True),
            self.second_KDD.sum(dim=0, keepdim=True),
        )

    @property
    def mean_KD(self) -> Tensor:
        """Means about the origin; 0 for an empty set."""
        return self.sum_KD / self.count_K.clamp_min(1e-300)[:, None]

    @property
    def scatter_KDD(self) -> Tensor:
        """Sum of outer products about each set's own mean."""
        return self.second_KDD - self.sum_KD[:, :, None] * self.mean_KD[:, None, :]

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {"count_K": self.count_K, "sum_KD": self.sum_KD, "second_KDD": self.second_KDD}


def moments_of_sets(x_ND: Tensor, set_N: Tensor, num_sets: int, origin_D: Tensor) -> Moments:
    """Moments of disjoint sets of rows: row n belongs to set `set_N[n]`. O(N D^2) time, O(N D) memory."""
    order_N = torch.argsort(set_N, stable=True)
    centred_ND = x_ND[order_N].double() - origin_D
    count_K = torch.bincount(set_N, minlength=num_sets)
    dim = x_ND.shape[1]
    sum_KD = x_ND.new_zeros(num_sets, dim, dtype=torch.float64)
    second_KDD = x_ND.new_zeros(num_sets, dim, dim, dtype=torch.float64)
    start = 0
    for k, count in enumerate(count_K.tolist()):
        if count:
            rows = centred_ND[start : start + count]
            sum_KD[k] = rows.sum(dim=0)
            second_KDD[k] = rows.T @ rows
        start += count
    return Moments(count_K.double(), sum_KD, second_KDD)


def weighted_moments(x_ND: Tensor, weight_NK: Tensor, origin_D: Tensor) -> Moments:
    """Moments of K weighted sets of the same rows (soft responsibilities). O(N K D^2) time, O(N D) memory."""
    centred_ND = x_ND.double() - origin_D
    weight_NK = weight_NK.double()
    second = [(centred_ND * weight_N[:, None]).T @ centred_ND for weight_N in weight_NK.T]
    return Moments(weight_NK.sum(dim=0), weight_NK.T @ centred_ND, torch.stack(second))


def factorize(covariance_KDD: Tensor) -> Tensor:
    """Lower Cholesky factors; the diagonal grows by the smallest jitter that works, so this never fails.

    A jitter is relative to the mean variance, so the result does not depend on the unit of the data.
    The input must be finite.
    """
    covariance_KDD = (covariance_KDD + covariance_KDD.mT) / 2
    scale_K = covariance_KDD.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp_min(_LEAST_VARIANCE)
    eye_DD = torch.eye(covariance_KDD.shape[-1], dtype=covariance_KDD.dtype, device=covariance_KDD.device)
    chol_KDD: Tensor
    chol_KDD, failed_K = torch.linalg.cholesky_ex(covariance_KDD)
    jitter = _JITTER
    while bool(failed_K.any()) and math.isfinite(jitter):
        repaired_KDD = covariance_KDD + (jitter * scale_K)[:, None, None] * eye_DD
        again_KDD, still_K = torch.linalg.cholesky_ex(repaired_KDD)
        chol_KDD = torch.where((failed_K != 0)[:, None, None], again_KDD, chol_KDD)
        failed_K = torch.where(failed_K != 0, still_K, failed_K)
        jitter *= 10
    return chol_KDD


def log_determinant(chol_KDD: Tensor) -> Tensor:
    """Log determinant of each factorised matrix."""
    log_determinant_K: Tensor = 2 * chol_KDD.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
    return log_determinant_K


@dataclass(frozen=True)
class Gaussians:
    """K Gaussians ready to be evaluated: `mean_KD` about `origin_D`, lower Cholesky factors of their covariances."""

    origin_D: Tensor
    mean_KD: Tensor
    chol_KDD: Tensor

    def log_density(self, x_ND: Tensor) -> Tensor:
        """Log N(x; mean_k, covariance_k), (N, K) float64. O(N K D^2) time, no N x K x D temporary."""
        dim = x_ND.shape[1]
        eye_DD = torch.eye(dim, dtype=torch.float64, device=x_ND.device)
        whiten_KDD = torch.linalg.solve_triangular(self.chol_KDD, eye_DD.expand_as(self.chol_KDD), upper=False)
        offset_KD = torch.einsum("kij,kj->ki", whiten_KDD, self.mean_KD)
        constant_K = -0.5 * (dim * math.log(2 * math.pi) + log_determinant(self.chol_KDD))
        density_NK = x_ND.new_empty(x_ND.shape[0], self.mean_KD.shape[0], dtype=torch.float64)
        for start in range(0, x_ND.shape[0], _ROWS):
            centred_ND = x_ND[start : start + _ROWS].double() - self.origin_D
            for k, (whiten_DD, offset_D) in enumerate(zip(whiten_KDD, offset_KD, strict=True)):
                distance_N = torch.addmm(-offset_D, centred_ND, whiten_DD.T).square_().sum(dim=1)
                density_NK[start : start + _ROWS, k] = distance_N.mul_(-0.5).add_(constant_K[k])
        return density_NK

    def to(self, device: torch.device | str) -> Gaussians:
        """The same on another device."""
        return Gaussians(self.origin_D.to(device), self.mean_KD.to(device), self.chol_KDD.to(device))

    def __getitem__(self, index: Tensor) -> Gaussians:
        return Gaussians(self.origin_D, self.mean_KD[index], self.chol_KDD[index])
