"""The normal-inverse-Wishart prior: posterior, mode, exact log marginal likelihood.

Shapes: K sets of rows, D dimensions. Means are about the prior mean, which is the origin of the Moments.
Source: Murphy (2007), Conjugate Bayesian analysis of the Gaussian distribution, section 9: posterior (eq. 250-254) and
marginal likelihood (eq. 266).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.clusterer import DataSummary
from models.dpm.config import DPMConfig
from models.errors import ShoalError
from models.gaussians import Gaussians, factorize, log_determinant
from models.moments import Moments


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

    def posterior_scale(self, moments: Moments) -> Tensor:
        """Psi_n of each set (Murphy eq. 254): prior scale, scatter, and the pull of the mean towards the prior's."""
        pull_K = self.kappa * moments.count_K / (self.kappa + moments.count_K)
        mean_KD = moments.mean_KD
        return self.psi_DD + moments.scatter_KDD + pull_K[:, None, None] * mean_KD[:, :, None] * mean_KD[:, None, :]

    def mode(self, moments: Moments) -> Gaussians:
        """The Gaussians at the posterior's joint mode, one per set; an empty set gets the prior's."""
        mean_KD = moments.sum_KD / (self.kappa + moments.count_K)[:, None]
        degrees_K = self.nu + moments.count_K + self.dim + 2
        return Gaussians(self.mean_D, mean_KD, factorize(self.posterior_scale(moments) / degrees_K[:, None, None]))

    def log_marginal(self, moments: Moments) -> Tensor:
        """Log probability of each set of rows with mu and Sigma integrated out (Murphy eq. 266); 0 for an empty set."""
        count_K, dim = moments.count_K, self.dim
        kappa_K, nu_K = self.kappa + count_K, self.nu + count_K
        prior = 0.5 * self.nu * log_determinant(factorize(self.psi_DD[None]))
        posterior_K = 0.5 * nu_K * log_determinant(factorize(self.posterior_scale(moments)))
        gamma_K = torch.mvlgamma(nu_K / 2, dim) - torch.mvlgamma(torch.tensor(self.nu / 2, dtype=torch.float64), dim)
        shrink_K = 0.5 * dim * (math.log(self.kappa) - kappa_K.log())
        return -0.5 * dim * math.log(math.pi) * count_K + gamma_K + prior - posterior_K + shrink_K


def niw_from(config: DPMConfig, data: DataSummary) -> NIW:
    """A prior in the data's own units: mean of the data, expected covariance `prior_scale` x mean variance x I.

    Raises ShoalError when nu leaves the inverse-Wishart without a density.
    """
    dim = data.dim
    nu = float(dim + 2) if config.prior_degrees is None else config.prior_degrees
    if nu <= dim - 1:
        raise ShoalError(
            f"prior_degrees is {nu:g} but {dim}-d data need more than {dim - 1}; leave it null for {dim + 2}."
        )
    # Rows that are all equal have no variance; any positive scale then describes them, and 1e-12 keeps it relative.
    variance = max(data.variance, 1e-12 * max(1.0, float(data.mean_D.square().max())))
    psi_DD = config.prior_scale * variance * torch.eye(dim, dtype=torch.float64)
    return NIW(data.mean_D.double(), config.prior_rows, nu, psi_DD)
