"""The prior of clusters with diagonal covariances: an independent normal-inverse-chi-squared prior per dimension.

Shapes: K sets of rows, D dimensions. Means are about the prior mean, which is the origin of the Moments.
Source: Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 5, with psi = nu sigma_0^2;
that is section 9 (eq. 250-266) in one dimension, multiplied over dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.dpm.empirical import (
    Strengths,
    degrees_within,
    identified,
    mean_variance_within,
    occupied,
    pooled_scatter,
    strongest,
)
from models.dpm.students import IndependentStudents
from models.gaussians import Gaussians, deviations
from models.moments import Moments


@dataclass(frozen=True)
class Diagonal:
    """mu_d | v_d ~ N(mean_d, v_d / kappa), v_d ~ inverse-Wishart(psi_d, nu) in one dimension: psi_d over a chi-squared
    of nu degrees. Independent over d.
    """

    mean_D: Tensor
    kappa: float
    nu: float
    psi_D: Tensor

    @property
    def dim(self) -> int:
        """D."""
        return int(self.mean_D.shape[0])

    @property
    def diagonal(self) -> bool:
        """True: variances are all it needs."""
        return True

    def posterior_scale(self, moments: Moments) -> Tensor:
        """psi_n of each set and dimension, (K, D): prior scale, sum of squares, pull of the mean to the prior's."""
        return self.psi_D + squares_about_mean(moments, self.kappa)

    def mode(self, moments: Moments) -> Gaussians:
        """The Gaussians at the posterior's joint mode, one per set; an empty set gets the prior's. O(K D)."""
        kappa_K1, nu_K1 = self.kappa + moments.count_K[:, None], self.nu + moments.count_K[:, None]
        return Gaussians(
            self.mean_D, moments.sum_KD / kappa_K1, deviations(self.posterior_scale(moments) / (nu_K1 + 3))
        )

    def predictive(self, moments: Moments) -> Gaussians:
        """Density of one more row given each set: a product of D Student-t densities of nu + N degrees. O(K D)."""
        kappa_K1, nu_K = self.kappa + moments.count_K[:, None], self.nu + moments.count_K
        scale_KD = self.posterior_scale(moments) * (kappa_K1 + 1) / (kappa_K1 * nu_K[:, None])
        return IndependentStudents(self.mean_D, moments.sum_KD / kappa_K1, scale_KD.sqrt(), nu_K)

    def log_marginal(self, moments: Moments) -> Tensor:
        """Log probability of each set of rows with means and variances integrated out; 0 for an empty set. O(K D)."""
        count_K, dim = moments.count_K, self.dim
        nu_K = self.nu + count_K
        gamma_K = dim * (torch.lgamma(nu_K / 2) - math.lgamma(self.nu / 2) - 0.5 * math.log(math.pi) * count_K)
        prior = 0.5 * self.nu * self.psi_D.log().sum()
        posterior_K = 0.5 * nu_K * self.posterior_scale(moments).log().sum(dim=1)
        shrink_K = 0.5 * dim * (math.log(self.kappa) - (self.kappa + count_K).log())
        return torch.where(count_K > 0, gamma_K + prior - posterior_K + shrink_K, 0.0)

    def fitted_to(self, clusters: Moments) -> Diagonal:
        """Empirical Bayes: psi = (nu - 2) x pooled variances within clusters; nu and kappa of largest evidence.

        The variances are taken as if one more row had the mean variance in every dimension. One cluster keeps nu
        and kappa, clusters of one row keep nu. O(K D) per evaluation.
        """
        clusters = variances_of(occupied(clusters))
        weight = self.nu - 2 if self.nu > 2 else 1.0
        variance_D = self.psi_D / weight
        degrees = degrees_within(clusters)
        if degrees > 0:
            mean = mean_variance_within(clusters, float(variance_D.mean()))
            variance_D = (pooled_scatter(clusters) + mean) / (degrees + 1)

        def with_strengths(strengths: Strengths) -> Diagonal:
            psi_D = strengths.weight * variance_D
            return replace(self, kappa=strengths.kappa, nu=strengths.weight + 2, psi_D=psi_D)

        def evidence(strengths: Strengths) -> float:
            return float(with_strengths(strengths).log_marginal(clusters).sum())

        start = Strengths(weight, self.kappa)
        return with_strengths(strongest(evidence, clusters, start, search_weight=identified(clusters)))

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        kappa_nu = torch.tensor([self.kappa, self.nu], dtype=torch.float64)
        return {"mean_D": self.mean_D, "kappa_nu": kappa_nu, "psi_D": self.psi_D}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Diagonal:
        """The inverse of `tensors`."""
        kappa, nu = tensors["kappa_nu"].tolist()
        return Diagonal(tensors["mean_D"], kappa, nu, tensors["psi_D"])


def variances_of(moments: Moments) -> Moments:
    """The same sets with the diagonals of their second moments alone."""
    if moments.diagonal:
        return moments
    return Moments(moments.count_K, moments.sum_KD, moments.second_KDD.diagonal(dim1=1, dim2=2))


def squares_about_mean(moments: Moments, kappa: float) -> Tensor:
    """What the data add to psi, (K, D): sums of squares about the mean, plus kappa N / (kappa + N) mean squared.

    Never negative, whatever the rounding of the sums.
    """
    sets = variances_of(moments)
    return (sets.second_KDD - sets.sum_KD.square() / (kappa + sets.count_K)[:, None]).clamp_min(0)
