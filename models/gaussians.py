"""Batches of Gaussians and Student-t densities: covariances that always factorise, log densities.

Shapes: N rows, D dimensions, K components, C candidate components per row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

_JITTER = 1e-10  # relative to a covariance's mean variance; ten times more at each failed attempt
_LEAST_VARIANCE = 1e-150  # stands in for the variance of rows that have none; its inverse is still finite
_LEAST_SINGLE = torch.finfo(torch.float32).tiny  # below it float32 loses digits
_INVERSES = 256  # float64 inverses that stand in memory together
_ROWS = 8192  # rows per step: the temporaries of one step stay in the processor's cache


def factorize(covariance_KDD: Tensor) -> Tensor:
    """Lower Cholesky factors; the diagonal grows by the smallest jitter that works, so this never fails.

    A jitter is relative to the mean variance, so the result does not depend on the unit of the data.
    The input must be finite.
    """
    covariance_KDD = (covariance_KDD + covariance_KDD.mT) / 2
    chol_KDD: Tensor
    chol_KDD, failed_K = torch.linalg.cholesky_ex(covariance_KDD)
    jitter = _JITTER
    while bool(failed_K.any()) and math.isfinite(jitter):
        broken = torch.nonzero(failed_K).flatten()
        scale_B = covariance_KDD[broken].diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp_min(_LEAST_VARIANCE)
        repaired_BDD = covariance_KDD[broken]
        repaired_BDD.diagonal(dim1=-2, dim2=-1).add_((jitter * scale_B)[:, None])
        chol_KDD[broken], failed_K[broken] = torch.linalg.cholesky_ex(repaired_BDD)
        jitter *= 10
    return chol_KDD


def deviations(variance_KD: Tensor) -> Tensor:
    """Standard deviations of diagonal covariances: what `factorize` is to full ones, with the same least jitter."""
    scale_K1 = variance_KD.mean(dim=-1, keepdim=True).clamp_min(_LEAST_VARIANCE)
    return variance_KD.maximum(_JITTER * scale_K1).sqrt()


def principal_axes(covariance_KDD: Tensor, axis_K: Tensor) -> tuple[Tensor, Tensor]:
    """Variance (K,) and unit vector (K, D) of one principal axis of each covariance; 0 is the widest. O(K D^3)."""
    value_KD, vector_KDD = torch.linalg.eigh(covariance_KDD)  # ascending
    column_K = (covariance_KDD.shape[-1] - 1 - axis_K).clamp_min(0)
    row_K = torch.arange(len(column_K))
    variance_K, axis_KD = value_KD[row_K, column_K].clamp_min(0), vector_KDD[row_K, :, column_K]
    # The sign of an eigenvector is arbitrary; fixed, so that a fit does not depend on the linear algebra library.
    lead_K1 = axis_KD.gather(1, axis_KD.abs().argmax(dim=1, keepdim=True))
    return variance_K, axis_KD * lead_K1.sign()


def log_determinant(chol_KDD: Tensor) -> Tensor:
    """Log determinant of each factorised matrix; of diagonal ones from their standard deviations (K, D)."""
    diagonal_KD = chol_KDD if chol_KDD.ndim == 2 else chol_KDD.diagonal(dim1=-2, dim2=-1)
    log_determinant_K: Tensor = 2 * diagonal_KD.log().sum(dim=-1)
    return log_determinant_K


@dataclass(frozen=True)
class Gaussians:
    """K Gaussians ready to be evaluated: `mean_KD` about `origin_D`, lower Cholesky factors of their covariances.

    `chol_KDD` of shape (K, D) holds standard deviations of diagonal covariances. With `degrees_K` they are Student-t
    densities, `chol_KDD` factors of their scale matrices. Parameters are float64.
    """

    origin_D: Tensor
    mean_KD: Tensor
    chol_KDD: Tensor
    degrees_K: Tensor | None = None

    def log_density(self, x_ND: Tensor, *, single: bool = False) -> Tensor:
        """Log density of every row in every component, (N, K) float64. O(N K D^2) time, no N x K x D temporary.

        `single` as in `log_density_at`.
        """
        distance_NK = x_ND.new_empty(x_ND.shape[0], len(self.mean_KD), dtype=torch.float64)
        whiten_KDD = self._whiten_single_KDD if single else self._whiten_KDD
        mean_KD = (self.origin_D + self.mean_KD).to(whiten_KDD.dtype)
        for start in range(0, x_ND.shape[0], _ROWS):
            rows_ND = x_ND[start : start + _ROWS].to(whiten_KDD.dtype)
            for k in range(len(mean_KD)):
                distance_NK[start : start + _ROWS, k] = self._distance(rows_ND - mean_KD[k], whiten_KDD[k])
        return self._from_distance(distance_NK, torch.arange(len(self.mean_KD), device=x_ND.device))

    def log_density_at(self, x_ND: Tensor, component_NC: Tensor) -> Tensor:
        """Log density of every row in each of its C candidate components, (N, C) float64. O(N C D^2 + K) time.

        Whitened in float32 after the component's mean is taken off, so its error is about 1e-7 of the squared
        Mahalanobis distance: half the time of float64 on a processor, a thirtieth on most GPUs.
        """
        pair_P = component_NC.flatten()
        order_P = torch.argsort(pair_P, stable=True)
        row_P = order_P // component_NC.shape[1]
        mean_KD = (self.origin_D + self.mean_KD).float()
        whiten_KDD = self._whiten_single_KDD
        distance_P = x_ND.new_empty(len(pair_P), dtype=torch.float64)
        start = 0
        for k, count in enumerate(torch.bincount(pair_P, minlength=len(mean_KD)).tolist()):
            if count:
                end = start + count
                centred_nD = x_ND[row_P[start:end]] - mean_KD[k]
                distance_P[order_P[start:end]] = self._distance(centred_nD, whiten_KDD[k]).double()
                start = end
        return self._from_distance(distance_P.view_as(component_NC), component_NC)

    @property
    def diagonal(self) -> bool:
        """Whether covariances are diagonal."""
        return self.chol_KDD.ndim == 2

    @property
    def dim(self) -> int:
        """D."""
        return self.mean_KD.shape[1]

    @property
    def covariance_KDD(self) -> Tensor:
        """Covariances (of Student-t densities: scale matrices), (K, D, D) also where they are diagonal."""
        if self.diagonal:
            return torch.diag_embed(self.chol_KDD.square())
        return self.chol_KDD @ self.chol_KDD.mT

    def rounded(self) -> Gaussians:
        """The same with factors that float32 can hold, though float64; itself where they are diagonal or out of range.

        Changes log densities by about as much as the float32 of `log_density_at`.
        """
        if self.diagonal:
            return self
        single_KDD = self.chol_KDD.float()
        within = single_KDD.isfinite().all() and (single_KDD.diagonal(dim1=-2, dim2=-1) >= _LEAST_SINGLE).all()
        return replace(self, chol_KDD=single_KDD.double()) if within else self

    def to(self, device: torch.device | str) -> Gaussians:
        """The same on another device; itself where it is there already."""
        if self.mean_KD.device == torch.device(device):
            return self
        degrees_K = None if self.degrees_K is None else self.degrees_K.to(device)
        return Gaussians(self.origin_D.to(device), self.mean_KD.to(device), self.chol_KDD.to(device), degrees_K)

    def __getitem__(self, index: Tensor) -> Gaussians:
        degrees_K = None if self.degrees_K is None else self.degrees_K[index]
        return replace(self, mean_KD=self.mean_KD[index], chol_KDD=self.chol_KDD[index], degrees_K=degrees_K)

    @cached_property
    def _whiten_KDD(self) -> Tensor:
        if self.diagonal:
            return 1 / self.chol_KDD
        eye_DD = torch.eye(self.dim, dtype=torch.float64, device=self.chol_KDD.device)
        whiten_KDD: Tensor = torch.linalg.solve_triangular(self.chol_KDD, eye_DD.expand_as(self.chol_KDD), upper=False)
        return whiten_KDD

    @cached_property
    def _whiten_single_KDD(self) -> Tensor:
        """Taken in parts, without the float64 inverses of all: those of 2,000 components in 128-d are 262 MB."""
        parts = [replace(self, chol_KDD=chol_kDD)._whiten_KDD.float() for chol_kDD in self.chol_KDD.split(_INVERSES)]
        return torch.cat(parts) if parts else self.chol_KDD.float()

    @cached_property
    def _constant_K(self) -> Tensor:
        half = 0.5 * self.dim
        root_K = 0.5 * log_determinant(self.chol_KDD)
        if self.degrees_K is None:
            return -half * math.log(2 * math.pi) - root_K
        gamma_K = torch.lgamma(self.degrees_K / 2 + half) - torch.lgamma(self.degrees_K / 2)
        constant_K: Tensor = gamma_K - half * (math.pi * self.degrees_K).log() - root_K
        return constant_K

    def _distance(self, centred_nD: Tensor, whiten_DD: Tensor) -> Tensor:
        white_nD = centred_nD * whiten_DD if self.diagonal else centred_nD @ whiten_DD.T
        return white_nD.square_().sum(dim=1)

    def _from_distance(self, distance_NC: Tensor, component_NC: Tensor) -> Tensor:
        """In place: log densities from squared Mahalanobis distances."""
        constant_NC = self._constant_K[component_NC]
        if self.degrees_K is None:
            return distance_NC.mul_(-0.5).add_(constant_NC)
        degrees_NC = self.degrees_K[component_NC]
        density_NC: Tensor = distance_NC.div_(degrees_NC).log1p_().mul_(-(degrees_NC + self.dim) / 2).add_(constant_NC)
        return density_NC
