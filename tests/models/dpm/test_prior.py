from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import invgamma, multivariate_t, norm

from models.clusterer import DataSummary
from models.dpm.config import DPMConfig
from models.dpm.prior import NIW, niw_from
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
