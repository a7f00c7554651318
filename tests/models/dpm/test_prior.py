from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import invgamma, multivariate_t, norm

from models.clusterer import DataSummary
from models.dpm.config import DPMConfig
from models.dpm.prior import (
    FINEST,
    NIW,
    Covariance,
    Diagonal,
    Prior,
    Spherical,
    Tied,
    fitted_prior,
    niw_from,
    prior_from,
    prior_of,
)
from models.errors import ShoalError
from models.moments import moments_of_sets


def _moments(x_ND: torch.Tensor, prior: NIW) -> torch.Tensor:
    return prior.log_marginal(moments_of_sets(x_ND, torch.zeros(len(x_ND), dtype=torch.int64), 1, prior.mean_D))


def test_log_marginal_of_one_row_is_the_student_t_predictive() -> None:
    """Murphy (2007): t with nu - D + 1 degrees and scale psi (kappa + 1) / (kappa (nu - D + 1))."""
    prior = NIW(torch.tensor([1.0, 2.0]).double(), 0.5, 6.0, torch.tensor([[2.0, 0.3], [0.3, 1.0]]).double())
    x_D = torch.tensor([0.5, 3.0]).double()
    degrees = prior.nu - 1
    shape = prior.psi_DD.numpy() * (prior.kappa + 1) / (prior.kappa * degrees)
    expected = multivariate_t(prior.mean_D.numpy(), shape, df=degrees).logpdf(x_D.numpy())
    assert _moments(x_D[None], prior).item() == pytest.approx(expected, abs=1e-10)


def test_log_marginal_is_the_integral_in_one_dimension() -> None:
    prior = NIW(torch.zeros(1).double(), 0.7, 3.0, torch.tensor([[1.5]]).double())
    x_N = torch.tensor([0.3, -0.4, 1.1]).double()

    mean_A1 = np.linspace(-12, 12, 1501)[:, None]
    log_variance_1B = np.linspace(-8, 12, 1501)[None, :]
    sd_1B = np.exp(log_variance_1B / 2)
    density_AB = norm.pdf(mean_A1, 0.0, sd_1B / math.sqrt(prior.kappa))
    density_AB = (
        density_AB * invgamma.pdf(sd_1B**2, prior.nu / 2, scale=1.5 / 2) * sd_1B**2
    )  # d variance = variance d log
    for x in x_N.tolist():
        density_AB = density_AB * norm.pdf(x, mean_A1, sd_1B)
    integral = np.trapezoid(np.trapezoid(density_AB, log_variance_1B[0], axis=1), mean_A1[:, 0])
    assert _moments(x_N[:, None], prior).item() == pytest.approx(math.log(integral), abs=1e-4)


def test_log_marginal_follows_the_chain_rule() -> None:
    """p(x1, x2) = p(x1) p(x2 | x1), where p(. | x1) is the predictive of the posterior after x1."""
    prior = NIW(torch.zeros(2).double(), 1.0, 5.0, torch.eye(2).double())
    x_ND = torch.tensor([[1.0, 0.0], [0.5, -2.0]]).double()
    first = moments_of_sets(x_ND[:1], torch.zeros(1, dtype=torch.int64), 1, prior.mean_D)
    posterior = NIW(prior.mode(first).mean_KD[0], 2.0, 6.0, prior.posterior_scale(first)[0])
    both = _moments(x_ND, prior).item()
    assert both == pytest.approx(_moments(x_ND[:1], prior).item() + _moments(x_ND[1:], posterior).item(), abs=1e-10)


def test_mode_by_hand() -> None:
    """Rows 1 and 3 about prior mean 0: mean 4 / (2 + 1); Psi_n = 1 + 2 + (1 * 2 / 3) * 4, over nu + N + D + 2."""
    prior = NIW(torch.zeros(1).double(), 1.0, 3.0, torch.eye(1).double())
    mode = prior.mode(moments_of_sets(torch.tensor([[1.0], [3.0]]), torch.zeros(2, dtype=torch.int64), 1, prior.mean_D))
    assert mode.mean_KD.item() == pytest.approx(4 / 3)
    assert mode.chol_KDD.item() ** 2 == pytest.approx((3 + 8 / 3) / 8)


def test_an_impossible_nu_is_refused_in_a_sentence() -> None:
    data = DataSummary(3, torch.zeros(4).double(), torch.eye(4).double(), torch.zeros(3, 4), 0)
    with pytest.raises(ShoalError, match="prior_degrees is 2 but 4-d data need more than 3"):
        niw_from(DPMConfig(prior_degrees=2), data)


def test_the_prior_scales_with_the_data() -> None:
    small = DataSummary(3, torch.zeros(2).double(), torch.eye(2).double(), torch.zeros(3, 2), 0)
    large = DataSummary(3, torch.zeros(2).double(), 100 * torch.eye(2).double(), torch.zeros(3, 2), 0)
    torch.testing.assert_close(niw_from(DPMConfig(), large).psi_DD, 100 * niw_from(DPMConfig(), small).psi_DD)


def _summary(dim: int, variance: float = 1.0) -> DataSummary:
    return DataSummary(
        3, torch.full((dim,), 7.0).double(), variance * torch.eye(dim).double(), torch.zeros(3, dim), seed=0
    )


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical", "tied"])
def test_every_default_expects_the_scale_of_the_data(kind: Covariance) -> None:
    """psi over nu - D - 1 (full), nu - 2 (diagonal, spherical), or the covariance itself: 0.5 times the variance 4."""
    tensors = prior_of(kind, _summary(3, 4.0), 0.5, 1.0, None).tensors()
    expected_D = {
        "full": lambda: tensors["psi_DD"].diagonal() / (tensors["kappa_nu"][1] - 4),
        "diagonal": lambda: tensors["psi_D"] / (tensors["kappa_nu"][1] - 2),
        "spherical": lambda: (tensors["kappa_nu_psi"][2] / (tensors["kappa_nu_psi"][1] - 2)).repeat(3),
        "tied": lambda: tensors["covariance_DD"] @ torch.ones(3).double(),
    }[kind]()
    assert expected_D.tolist() == pytest.approx([2.0] * 3)
    assert tensors["mean_D"].tolist() == [7.0] * 3


@pytest.mark.parametrize(
    ("kind", "family"), [("full", NIW), ("diagonal", Diagonal), ("spherical", Spherical), ("tied", Tied)]
)
def test_the_config_says_which_family(kind: Covariance, family: type[Prior]) -> None:
    assert type(prior_from(DPMConfig(covariance=kind), _summary(3))) is family


def test_a_scale_of_null_starts_from_a_tenth_of_the_data() -> None:
    null, finest = (prior_from(DPMConfig(prior_scale=scale), _summary(3, 4.0)) for scale in (None, FINEST))
    half = niw_from(DPMConfig(prior_scale=0.5), _summary(3, 4.0))
    assert FINEST == 0.1
    torch.testing.assert_close(null.tensors(), finest.tensors())
    torch.testing.assert_close(half.psi_DD, 5 * null.tensors()["psi_DD"])


@pytest.mark.parametrize(("within", "finest"), [(0.5, False), (0.001, True)])
def test_clusters_narrower_than_a_tenth_of_the_data_get_the_prior_of_that_scale(within: float, finest: bool) -> None:
    """Four clusters at +-1 in each of two dimensions: the data's variance is 1 + `within`, the clusters' `within`."""
    centre_KD = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    noise_ND = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    set_N = torch.arange(400) % 4
    clusters = moments_of_sets(centre_KD[set_N] + math.sqrt(within) * noise_ND, set_N, 4, torch.zeros(2).double())
    prior = niw_from(DPMConfig(), _summary(2))
    prior = NIW(torch.zeros(2).double(), prior.kappa, prior.nu, prior.psi_DD)
    fitted = fitted_prior(DPMConfig(), clusters, clusters.total(), prior)
    assert isinstance(fitted, NIW)
    if finest:
        variance = float(clusters.total().variance_KD.mean()) / 400
        torch.testing.assert_close(fitted.psi_DD, 0.1 * variance * torch.eye(2).double())
        assert (fitted.nu, fitted.kappa) == (4, 1)
    else:
        torch.testing.assert_close(fitted.tensors(), prior.fitted_to(clusters).tensors())
        assert (fitted.psi_DD / (fitted.nu - 3)).diagonal().tolist() == pytest.approx([within] * 2, rel=0.15)


@pytest.mark.parametrize(("kind", "least"), [("full", 2), ("diagonal", 0), ("spherical", 0), ("tied", 2)])
def test_each_family_has_its_own_least_degrees(kind: Covariance, least: int) -> None:
    with pytest.raises(ShoalError, match=f"prior_degrees is {least} but 3-d data need more than {least} for {kind}"):
        prior_of(kind, _summary(3), 1.0, 1.0, least)
    assert prior_of(kind, _summary(3), 1.0, 1.0, least + 0.01).dim == 3


def test_a_prior_without_rows_or_scale_is_refused_in_a_sentence() -> None:
    with pytest.raises(ShoalError, match="prior_rows is 0 but must be more than 0; 1 is one row"):
        prior_of("full", _summary(3), 1.0, 0.0, None)
    with pytest.raises(ShoalError, match="prior_scale is -1 but must be more than 0; 1 is the data's variance"):
        prior_of("tied", _summary(3), -1.0, 1.0, None)
