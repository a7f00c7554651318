"""Priors of the clusters' parameters, one family of covariances each: what the search asks of them, and which to take.

Shapes: K sets of rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from models.clusterer import DataSummary
from models.dpm.config import DPMConfig
from models.dpm.diagonal import Diagonal
from models.dpm.full import NIW
from models.dpm.spherical import Spherical
from models.dpm.tied import Tied
from models.errors import ShoalError
from models.gaussians import Gaussians
from models.moments import Moments

__all__ = [
    "NIW",
    "Covariance",
    "Diagonal",
    "Prior",
    "Spherical",
    "Tied",
    "fitted_prior",
    "load_prior",
    "niw_from",
    "prior_from",
]

Covariance = Literal["full", "diagonal", "spherical", "tied"]
FINEST = 0.1  # scale of the finest prior that is chosen without being asked for


@runtime_checkable
class Prior(Protocol):
    """A conjugate prior: all it is asked has an exact answer from Moments alone. A frozen value on the CPU, float64."""

    @property
    def mean_D(self) -> Tensor:
        """Prior mean, the origin of the Moments."""
        ...

    @property
    def dim(self) -> int:
        """D."""
        ...

    @property
    def diagonal(self) -> bool:
        """Whether Moments with variances alone, second (K, D), are all it needs."""
        ...

    def log_marginal(self, moments: Moments) -> Tensor:
        """Log probability of each set of rows with its parameters integrated out, (K,); 0 for an empty set."""
        ...

    def mode(self, moments: Moments) -> Gaussians:
        """The Gaussian of most probable parameters given each set; the prior's for an empty set."""
        ...

    def predictive(self, moments: Moments) -> Gaussians:
        """Density of one more row given each set, parameters integrated out."""
        ...

    def fitted_to(self, clusters: Moments) -> Prior:
        """Empirical Bayes: the prior of this family under which these clusters are about most probable.

        Deterministic; `mean_D` stays, so that Moments keep their origin.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors; `load_prior` restores the same prior from them."""
        ...


def prior_from(config: DPMConfig, data: DataSummary) -> Prior:
    """A prior in the data's own units: mean of the data, psi `prior_scale` (0.1 when null) x mean variance x I.

    nu is by default such that the covariances' expectation weighs one row: D + 2 (full, tied), 3 (diagonal: the law of
    one diagonal entry under the full prior), D + 2 (spherical: a row has D squares). With it psi is that expectation,
    of D squares under spherical. Raises ShoalError when a value leaves the prior without a density.
    """
    return prior_of(config.covariance, data, config.prior_scale or FINEST, config.prior_rows, config.prior_degrees)


def prior_of(kind: Covariance, data: DataSummary, scale: float, rows: float, degrees: float | None) -> Prior:
    """`prior_from` with the settings by themselves."""
    return _about(kind, data.mean_D.double(), data.variance, (scale, rows, degrees))


def fitted_prior(config: DPMConfig, clusters: Moments, total: Moments, prior: Prior) -> Prior:
    """The prior of `prior`'s family and mean that is fitted to these clusters; `total` are the Moments of all rows.

    Clusters narrower than a tenth of the data's variance get the prior of that scale instead. A fitted prior describes
    ever finer pieces of clusters that are not Gaussian, whose pieces then ask for a finer prior; a limit in the data's
    own unit ends that. Where clusters overlap, in many dimensions above all, they are wider than it.
    """
    rows = float(total.count_K[0])
    variance = float(total.variance_KD.mean()) / rows
    within = float(clusters.variance_KD.sum()) / (float(clusters.count_K.sum()) * clusters.dim)
    if within >= FINEST * variance > 0:
        return prior.fitted_to(clusters)
    return _about(config.covariance, prior.mean_D, variance, (FINEST, config.prior_rows, config.prior_degrees))


def _about(kind: Covariance, mean_D: Tensor, variance: float, strengths: tuple[float, float, float | None]) -> Prior:
    """A prior around `mean_D`, `variance` per dimension times the first of scale, kappa and nu."""
    (scale, rows, degrees), dim = strengths, len(mean_D)
    least, default = {
        "full": (dim - 1, dim + 2),
        "diagonal": (0, 3),
        "spherical": (0, dim + 2),
        "tied": (dim - 1, dim + 2),
    }[kind]
    nu = float(default if degrees is None else degrees)
    if nu <= least:
        raise ShoalError(
            f"prior_degrees is {nu:g} but {dim}-d data need more than {least} for {kind} covariances; "
            f"leave it null for {default}."
        )
    for name, value, advice in (
        ("prior_scale", scale, "1 is the data's variance"),
        ("prior_rows", rows, "1 is one row"),
    ):
        if not value > 0:
            raise ShoalError(f"{name} is {value:g} but must be more than 0; {advice}.")
    # Rows that are all equal have no variance; any positive scale then describes them, relative to where they lie.
    variance = scale * (max(variance, 1e-12 * float(mean_D.square().max())) or 1e-12)
    ones_D = torch.ones(dim, dtype=torch.float64)
    if kind == "full":
        return NIW(mean_D, rows, nu, variance * ones_D.diag())
    if kind == "diagonal":
        return Diagonal(mean_D, rows, nu, variance * ones_D)
    if kind == "spherical":
        return Spherical(mean_D, rows, nu, variance * dim)
    return Tied(mean_D, rows, nu, variance * ones_D.diag(), variance * ones_D.diag())


def load_prior(kind: Covariance, tensors: Mapping[str, Tensor]) -> Prior:
    """The prior of this family that `tensors()` described."""
    families: dict[Covariance, type[NIW] | type[Diagonal] | type[Spherical] | type[Tied]] = {
        "full": NIW,
        "diagonal": Diagonal,
        "spherical": Spherical,
        "tied": Tied,
    }
    return families[kind].from_tensors(tensors)


def niw_from(config: DPMConfig, data: DataSummary) -> NIW:
    """`prior_from` for full covariances."""
    prior = prior_of("full", data, config.prior_scale or FINEST, config.prior_rows, config.prior_degrees)
    assert isinstance(prior, NIW)  # noqa: S101
    return prior
