"""Products of Student-t densities, one per dimension: the posterior predictive under diagonal covariances.

Shapes: N rows, D dimensions, K components, C candidate components per row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.gaussians import Gaussians, log_determinant

_ROWS = 8192  # rows per step: the temporaries of one step stay in the processor's cache


@dataclass(frozen=True)
class IndependentStudents(Gaussians):
    """K products of D univariate Student-t densities: scales `chol_KDD` (K, D), `degrees_K` common to all dimensions.

    Not the multivariate Student-t, whose dimensions depend on each other through one common variance.
    """

    def log_density(self, x_ND: Tensor, *, single: bool = False) -> Tensor:
        """Log density of every row in every component, (N, K) float64. O(N K D) time, no N x K x D temporary.

        Always in float64: no matrix product would gain by less.
        """
        log_NK = x_ND.new_empty(x_ND.shape[0], len(self.mean_KD), dtype=torch.float64)
        for start in range(0, x_ND.shape[0], _ROWS):
            centred_ND = x_ND[start : start + _ROWS].double() - self.origin_D
            for k in range(len(self.mean_KD)):
                log_NK[start : start + _ROWS, k] = self._log_terms(centred_ND, k)
        return self._from_logs(log_NK, torch.arange(len(self.mean_KD), device=x_ND.device))

    def log_density_at(self, x_ND: Tensor, component_NC: Tensor) -> Tensor:
        """Log density of every row in each of its C candidate components, (N, C) float64. O(N C D + K) time."""
        pair_P = component_NC.flatten()
        order_P = torch.argsort(pair_P, stable=True)
        row_P = order_P // component_NC.shape[1]
        log_P = x_ND.new_empty(len(pair_P), dtype=torch.float64)
        start = 0
        for k, count in enumerate(torch.bincount(pair_P, minlength=len(self.mean_KD)).tolist()):
            if count:
                end = start + count
                log_P[order_P[start:end]] = self._log_terms(x_ND[row_P[start:end]].double() - self.origin_D, k)
                start = end
        return self._from_logs(log_P.view_as(component_NC), component_NC)

    def to(self, device: torch.device | str) -> IndependentStudents:
        """The same on another device; itself where it is there already."""
        if self.mean_KD.device == torch.device(device):
            return self
        origin_D, mean_KD, chol_KDD, degrees_K = (
            each.to(device) for each in (self.origin_D, self.mean_KD, self.chol_KDD, self._degrees_K)
        )
        return IndependentStudents(origin_D, mean_KD, chol_KDD, degrees_K)

    @property
    def _degrees_K(self) -> Tensor:
        assert self.degrees_K is not None, "Student-t densities need degrees"  # noqa: S101
        return self.degrees_K

    def _log_terms(self, centred_nD: Tensor, k: int) -> Tensor:
        """Sum over dimensions of log(1 + z^2 / degrees) of rows in one component."""
        white_nD = (centred_nD - self.mean_KD[k]) / self.chol_KDD[k]
        return white_nD.square_().div_(self._degrees_K[k]).log1p_().sum(dim=1)

    @cached_property
    def _constant_K(self) -> Tensor:
        gamma_K = torch.lgamma(self._degrees_K / 2 + 0.5) - torch.lgamma(self._degrees_K / 2)
        each_K = gamma_K - 0.5 * (math.pi * self._degrees_K).log()
        return self.dim * each_K - 0.5 * log_determinant(self.chol_KDD)

    def _from_logs(self, log_NC: Tensor, component_NC: Tensor) -> Tensor:
        """In place: log densities from the sums of `_log_terms`."""
        power_NC = (self._degrees_K[component_NC] + 1) / 2
        return log_NC.mul_(-power_NC).add_(self._constant_K[component_NC])
