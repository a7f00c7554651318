"""The prior of spherical clusters: one variance for all dimensions of a cluster.

Shapes: K sets of rows, D dimensions. Means are about the prior mean, which is the origin of the Moments.
Source: Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 5, with a mean of D dimensions:
N rows are N x D squares about it, so the variance gains N x D degrees of freedom, the mean N rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.dpm.diagonal import squares_about_mean, variances_of
from models.dpm.empirical import Strengths, identified, mean_variance_within, occupied, strongest
from models.gaussians import Gaussians
from models.moments import Moments


@dataclass(frozen=True)
class Spherical:
    """mu | v ~ N(mean, v I / kappa), v ~ inverse-Wishart(psi, nu) in one dimension: psi over a chi-squared of nu."""

    mean_D: Tensor
    kappa: float
    nu: float
    psi: float

    @property
    def dim(self) -> int:
        """D."""
        return int(self.mean_D.shape[0])

    @property
    def diagonal(self) -> bool:
        """True: variances are all it needs."""
        return True

    def posterior_scale(self, moments: Moments) -> Tensor:
        """psi_n of each set, (K,): prior scale, sum of squares, pull of the mean to the prior's."""
        return self.psi + squares_about_mean(moments, self.kappa).sum(dim=1)

    def mode(self, moments: Moments) -> Gaussians:
        """The Gaussians at the posterior's joint mode, one per set; an empty set gets the prior's. O(K D)."""
        degrees_K = self.nu + moments.count_K * self.dim + self.dim + 2
        return self._gaussians(moments, self.posterior_scale(moments) / degrees_K, None)

    def predictive(self, moments: Moments) -> Gaussians:
        """Student-t density of one more row given each set, of nu + N D degrees. O(K D)."""
        kappa_K, nu_K = self.kappa + moments.count_K, self.nu + moments.count_K * self.dim
        return self._gaussians(moments, self.posterior_scale(moments) * (kappa_K + 1) / (kappa_K * nu_K), nu_K)

    def _gaussians(self, moments: Moments, variance_K: Tensor, degrees_K: Tensor | None) -> Gaussians:
        mean_KD = moments.sum_KD / (self.kappa + moments.count_K)[:, None]
        return Gaussians(self.mean_D, mean_KD, variance_K.sqrt()[:, None].repeat(1, self.dim), degrees_K)

    def log_marginal(self, moments: Moments) -> Tensor:
        """Log probability of each set of rows with mean and variance integrated out; 0 for an empty set. O(K D)."""
        count_K, dim = moments.count_K, self.dim
        nu_K = self.nu + count_K * dim
        gamma_K = torch.lgamma(nu_K / 2) - math.lgamma(self.nu / 2) - 0.5 * dim * math.log(math.pi) * count_K
        scale_K = 0.5 * self.nu * math.log(self.psi) - 0.5 * nu_K * self.posterior_scale(moments).log()
        shrink_K = 0.5 * dim * (math.log(self.kappa) - (self.kappa + count_K).log())
        return torch.where(count_K > 0, gamma_K + scale_K + shrink_K, 0.0)

    def fitted_to(self, clusters: Moments) -> Spherical:
        """Empirical Bayes: psi = (nu - 2) x mean variance within clusters; nu and kappa of largest evidence.

        nu - 2 is D degrees for each row that the prior counts as. One cluster keeps nu and kappa, clusters of one
        row keep nu. O(K D) per evaluation.
        """
        clusters = variances_of(occupied(clusters))
        weight = (self.nu - 2) / self.dim if self.nu > 2 else 1.0
        variance = mean_variance_within(clusters, self.psi / (weight * self.dim))

        def with_strengths(strengths: Strengths) -> Spherical:
            degrees = strengths.weight * self.dim
            return replace(self, kappa=strengths.kappa, nu=degrees + 2, psi=degrees * variance)

        def evidence(strengths: Strengths) -> float:
            return float(with_strengths(strengths).log_marginal(clusters).sum())

        start = Strengths(weight, self.kappa)
        return with_strengths(strongest(evidence, clusters, start, search_weight=identified(clusters)))

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        kappa_nu_psi = torch.tensor([self.kappa, self.nu, self.psi], dtype=torch.float64)
        return {"mean_D": self.mean_D, "kappa_nu_psi": kappa_nu_psi}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Spherical:
        """The inverse of `tensors`."""
        return Spherical(tensors["mean_D"], *tensors["kappa_nu_psi"].tolist())
