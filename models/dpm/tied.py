"""The prior of clusters that share one full covariance, known while clusters are decided and re-estimated in between.

Shapes: K sets of rows, D dimensions. Means are about the prior mean, which is the origin of the Moments.
Source: Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 7 (mean unknown, covariance
known; here the prior's is covariance / kappa); for the shared covariance the inverse-Wishart posterior of section 9.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from models.dpm.empirical import Strengths, occupied, strongest
from models.gaussians import Gaussians, factorize, log_determinant
from models.moments import Moments

_ROUNDS = 5


@dataclass(frozen=True)
class Tied:
    """mu ~ N(mean, covariance / kappa) in every cluster; the one covariance ~ inverse-Wishart(psi, nu)."""

    mean_D: Tensor
    kappa: float
    nu: float
    psi_DD: Tensor
    covariance_DD: Tensor

    @property
    def dim(self) -> int:
        """D."""
        return int(self.mean_D.shape[0])

    @property
    def diagonal(self) -> bool:
        """False: needs whole second moments."""
        return False

    def mode(self, moments: Moments) -> Gaussians:
        """Posterior means with the shared covariance; an empty set gets the prior mean. O(K D^2)."""
        return self._gaussians(moments, torch.ones_like(moments.count_K))

    def predictive(self, moments: Moments) -> Gaussians:
        """Density of one more row given each set: a Gaussian, since the covariance is known. O(K D^2)."""
        return self._gaussians(moments, 1 + 1 / (self.kappa + moments.count_K))

    def _gaussians(self, moments: Moments, factor_K: Tensor) -> Gaussians:
        mean_KD = moments.sum_KD / (self.kappa + moments.count_K)[:, None]
        return Gaussians(self.mean_D, mean_KD, factor_K.sqrt()[:, None, None] * self._chol_DD)

    def log_marginal(self, moments: Moments) -> Tensor:
        """Log probability of each set of rows with its mean integrated out; 0 for an empty set. O(K D^2)."""
        count_K, dim = moments.count_K, self.dim
        precision_DD = torch.cholesky_inverse(self._chol_DD)
        square_K = moments.second_KDD.flatten(1) @ precision_DD.flatten()
        square_K -= self._squared_sums(moments) / (self.kappa + count_K)
        normaliser_K = count_K * (dim * math.log(2 * math.pi) + float(log_determinant(self._chol_DD[None])[0]))
        shrink_K = dim * (math.log(self.kappa) - (self.kappa + count_K).log())
        return torch.where(count_K > 0, 0.5 * (shrink_K - normaliser_K - square_K), 0.0)

    def fitted_to(self, clusters: Moments) -> Tied:
        """Empirical Bayes: the posterior mode of the covariance given all clusters, their means integrated out, and the
        kappa of largest evidence, in turn. One cluster keeps kappa. O(K D^2 + D^3).
        """
        clusters = occupied(clusters)
        second_DD = clusters.second_KDD.sum(dim=0)
        degrees = self.nu + float(clusters.count_K.sum()) + self.dim + 1
        fitted = self
        for _ in range(_ROUNDS):
            root_KD = clusters.sum_KD / (fitted.kappa + clusters.count_K).sqrt()[:, None]
            fitted = replace(fitted, covariance_DD=(self.psi_DD + second_DD - root_KD.T @ root_KD) / degrees)
            fitted = replace(fitted, kappa=fitted._likeliest_kappa(clusters))
        return fitted

    def _likeliest_kappa(self, clusters: Moments) -> float:
        """From the terms of the log marginal likelihoods that contain it."""
        square_K, count_K = self._squared_sums(clusters), clusters.count_K

        def evidence(strengths: Strengths) -> float:
            kappa_K = strengths.kappa + count_K
            shrink_K = self.dim * (math.log(strengths.kappa) - kappa_K.log())
            return 0.5 * float((shrink_K + square_K / kappa_K).sum())

        return strongest(evidence, clusters, Strengths(1.0, self.kappa), search_weight=False).kappa

    def _squared_sums(self, moments: Moments) -> Tensor:
        """Squared Mahalanobis norms of the sums about the prior mean, (K,)."""
        white_DK = torch.linalg.solve_triangular(self._chol_DD, moments.sum_KD.T, upper=False)
        square_K: Tensor = white_DK.square().sum(dim=0)
        return square_K

    @cached_property
    def _chol_DD(self) -> Tensor:
        return factorize(self.covariance_DD[None])[0]

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        kappa_nu = torch.tensor([self.kappa, self.nu], dtype=torch.float64)
        return {
            "mean_D": self.mean_D,
            "kappa_nu": kappa_nu,
            "psi_DD": self.psi_DD,
            "covariance_DD": self.covariance_DD,
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Tied:
        """The inverse of `tensors`."""
        kappa, nu = tensors["kappa_nu"].tolist()
        return Tied(tensors["mean_D"], kappa, nu, tensors["psi_DD"], tensors["covariance_DD"])
