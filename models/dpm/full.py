"""The normal-inverse-Wishart prior of clusters that each have a full covariance.

Shapes: K sets of rows, D dimensions. Means are about the prior mean, which is the origin of the Moments.
Source: Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 9: posterior (eq. 250-254)
and its predictive, marginal likelihood (eq. 266).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.dpm.batches import batches
from models.dpm.empirical import (
    Strengths,
    degrees_within,
    identified,
    mean_variance_within,
    occupied,
    pooled_scatter,
    strongest,
)
from models.gaussians import Gaussians, factorize, log_determinant
from models.moments import Moments

_SPECTRUM_WORK = 10**9  # K D^3 that the spectra of a fit may cost, a few seconds; more clusters are sampled
_LEAST_SPECTRA = 64


@dataclass(frozen=True)
class NIW:
    """mu | Sigma ~ N(mean, Sigma / kappa), Sigma ~ inverse-Wishart(psi, nu)."""

    mean_D: Tensor
    kappa: float
    nu: float
    psi_DD: Tensor

    @property
    def dim(self) -> int:
        """D."""
        return int(self.mean_D.shape[0])

    @property
    def diagonal(self) -> bool:
        """False: needs whole second moments."""
        return False

    def posterior_scale(self, moments: Moments) -> Tensor:
        """Psi_n of each set (Murphy eq. 254): prior scale, scatter, and the pull of the mean towards the prior's.

        About the prior mean the last two are second moment - sum sum' / (kappa + N).
        """
        root_KD = moments.sum_KD / (self.kappa + moments.count_K).sqrt()[:, None]
        scale_KDD = torch.baddbmm(moments.second_KDD, root_KD[:, :, None], root_KD[:, None, :], alpha=-1)
        return scale_KDD.add_(self.psi_DD)

    def mode(self, moments: Moments) -> Gaussians:
        """The Gaussians at the posterior's joint mode, one per set; an empty set gets the prior's. O(K D^3)."""
        return self._gaussians(moments, 1 / (self.nu + moments.count_K + self.dim + 2), None)

    def predictive(self, moments: Moments) -> Gaussians:
        """Student-t density of one more row given each set. O(K D^3)."""
        kappa_K = self.kappa + moments.count_K
        degrees_K = self.nu + moments.count_K - self.dim + 1
        return self._gaussians(moments, (kappa_K + 1) / (kappa_K * degrees_K), degrees_K)

    def _gaussians(self, moments: Moments, factor_K: Tensor, degrees_K: Tensor | None) -> Gaussians:
        """Gaussians (Student-t with degrees) at the posterior means, of scales `factor_K` times Psi_n."""
        mean_KD = moments.sum_KD / (self.kappa + moments.count_K)[:, None]
        chol_KDD = torch.empty_like(moments.second_KDD)
        for part, sets in batches(moments):
            chol_KDD[part] = factorize(self.posterior_scale(sets).mul_(factor_K[part, None, None]))
        return Gaussians(self.mean_D, mean_KD, chol_KDD, degrees_K)

    def log_marginal(self, moments: Moments) -> Tensor:
        """Log probability of each set of rows with mu and Sigma integrated out (Murphy eq. 266); 0 for an empty set.

        O(K D^3) time, temporaries of 64 MB.
        """
        prior = log_determinant(factorize(self.psi_DD[None]))
        posterior_K = torch.empty_like(moments.count_K)
        for part, sets in batches(moments):
            posterior_K[part] = log_determinant(factorize(self.posterior_scale(sets)))
        return _log_marginal(moments.count_K, self.dim, self.kappa, self.nu, 0.5 * self.nu * prior, posterior_K)

    def fitted_to(self, clusters: Moments) -> NIW:
        """Empirical Bayes: psi = (nu - D - 1) x pooled covariance within clusters; nu and kappa of largest evidence.

        The pooled covariance is shrunk towards a sphere as far as its rows leave it uncertain. One cluster keeps nu
        and kappa, clusters of one row keep nu. O(K D^3), for at most 10^9 / D^3 of the clusters, spread over all sizes.
        """
        clusters = occupied(clusters)
        weight = self.nu - self.dim - 1
        if weight <= 0:
            weight = 1.0  # the prior has no mean; nu = D + 2 is the default's
        covariance_DD = shrunk_covariance(clusters, self.psi_DD / weight)
        strengths = Strengths(weight, self.kappa)
        if len(clusters) > 1:
            spectra = Spectra.of(_spread(clusters), covariance_DD)
            strengths = strongest(spectra.evidence, clusters, strengths, search_weight=identified(clusters))
        return replace(
            self,
            kappa=strengths.kappa,
            nu=strengths.weight + self.dim + 1,
            psi_DD=strengths.weight * covariance_DD,
        )

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        kappa_nu = torch.tensor([self.kappa, self.nu], dtype=torch.float64)
        return {"mean_D": self.mean_D, "kappa_nu": kappa_nu, "psi_DD": self.psi_DD}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> NIW:
        """The inverse of `tensors`."""
        kappa, nu = tensors["kappa_nu"].tolist()
        return NIW(tensors["mean_D"], kappa, nu, tensors["psi_DD"])


def _log_marginal(
    count_K: Tensor, dim: int, kappa: float, nu: float, prior: Tensor | float, posterior_K: Tensor
) -> Tensor:
    """Murphy eq. 266 from nu / 2 log |Psi| and the log determinants of Psi_n."""
    kappa_K, nu_K = kappa + count_K, nu + count_K
    gamma_K = torch.mvlgamma(nu_K / 2, dim) - torch.mvlgamma(torch.tensor(nu / 2, dtype=torch.float64), dim)
    shrink_K = 0.5 * dim * (math.log(kappa) - kappa_K.log())
    value_K = -0.5 * dim * math.log(math.pi) * count_K + gamma_K + prior - 0.5 * nu_K * posterior_K + shrink_K
    return torch.where(count_K > 0, value_K, 0.0)


def shrunk_covariance(clusters: Moments, expected_DD: Tensor) -> Tensor:
    """Pooled covariance within clusters, shrunk towards its mean variance times I: always positive definite.

    The intensity is that of oracle approximating shrinkage (Chen, Wiesel, Eldar and Hero 2010, Shrinkage algorithms for
    MMSE covariance estimation, eq. 23), so D > N works. `expected_DD` stands in where no cluster has two rows.
    """
    degrees, dim = degrees_within(clusters), clusters.dim
    if degrees == 0:
        return expected_DD
    variance = mean_variance_within(clusters, float(expected_DD.trace()) / dim)
    covariance_DD = pooled_scatter(clusters) / degrees
    square, trace = float(covariance_DD.square().sum()), float(covariance_DD.trace())
    uneven = square - trace**2 / dim
    intensity = 1.0
    if uneven > 1e-12 * square and trace > 0:
        intensity = min(1.0, ((1 - 2 / dim) * square + trace**2) / ((degrees + 1 - 2 / dim) * uneven))
    eye_DD = torch.eye(dim, dtype=torch.float64)
    return (1 - intensity) * covariance_DD + intensity * variance * eye_DD


@dataclass(frozen=True)
class Spectra:
    """Clusters seen from a covariance S = L L': eigenvalues of L^-1 S_k L^-T and the means in those eigenvectors.

    With psi = weight S every determinant that the evidence needs is a product over these, so that one evaluation costs
    O(K D) rather than O(K D^3).
    """

    count_K: Tensor
    value_KD: Tensor
    square_KD: Tensor  # squared coordinates of the means
    log_determinant: float

    @staticmethod
    def of(clusters: Moments, covariance_DD: Tensor) -> Spectra:
        """O(K D^3) once."""
        chol_DD = factorize(covariance_DD[None])[0]
        whiten_DD = torch.linalg.solve_triangular(chol_DD, torch.eye(clusters.dim, dtype=torch.float64), upper=False)
        values, squares = [], []
        for _, sets in batches(clusters):
            value_BD, vector_BDD = torch.linalg.eigh(whiten_DD @ sets.scatter_KDD @ whiten_DD.T)
            values.append(value_BD.clamp_min(0))
            squares.append(torch.einsum("bd,bde->be", sets.mean_KD @ whiten_DD.T, vector_BDD).square())
        return Spectra(
            clusters.count_K, torch.cat(values), torch.cat(squares), float(log_determinant(chol_DD[None])[0])
        )

    def evidence(self, strengths: Strengths) -> float:
        """Sum of the log marginal likelihoods under these strengths."""
        dim, weight, kappa = self.value_KD.shape[1], strengths.weight, strengths.kappa
        nu = weight + dim + 1
        scale_KD = weight + self.value_KD
        pull_K = kappa * self.count_K / (kappa + self.count_K)
        posterior_K = scale_KD.log().sum(dim=1) + (pull_K * (self.square_KD / scale_KD).sum(dim=1)).log1p()
        prior = 0.5 * nu * (dim * math.log(weight) + self.log_determinant)
        return float(_log_marginal(self.count_K, dim, kappa, nu, prior, posterior_K + self.log_determinant).sum())


def _spread(clusters: Moments) -> Moments:
    """All clusters, or as many as the work allows, evenly spread over their sizes."""
    limit = max(_LEAST_SPECTRA, _SPECTRUM_WORK // clusters.dim**3)
    if len(clusters) <= limit:
        return clusters
    order_K = torch.argsort(clusters.count_K, stable=True)
    return clusters[order_K[torch.linspace(0, len(clusters) - 1, limit, dtype=torch.float64).round().long()]]
