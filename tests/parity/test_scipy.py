"""The E-step and M-step of the Dirichlet-process mixture against scipy and the closed form, where clusters overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, multivariate_t
from torch import Tensor

from models.clusterer import DataSummary
from models.dpm.config import DPMConfig
from models.dpm.mixture import DPM, start


def overlapping() -> Tensor:
    """Five correlated Gaussians of unequal size that overlap."""
    rng = np.random.default_rng(0)
    parts = [
        rng.standard_normal((150 + 80 * k, 3)) @ (np.eye(3) + 0.4 * rng.standard_normal((3, 3)))
        + 3 * rng.standard_normal(3)
        for k in range(5)
    ]
    return torch.from_numpy(np.concatenate(parts)).float()


def fitted(assignment: str) -> tuple[DPM, Tensor]:
    x_ND = overlapping()
    covariance_DD = torch.cov(x_ND.double().T, correction=0)
    config = DPMConfig.model_validate({"assignment": assignment, "prior_scale": 0.1, "grouping": None})
    model = start(config, DataSummary(len(x_ND), x_ND.double().mean(dim=0), covariance_DD, x_ND, 0))
    update = model.maximize(model.expect(x_ND, torch.arange(len(x_ND))), torch.Generator())
    assert isinstance(update.model, DPM)
    assert len(update.model.id_K) > 2
    return update.model, x_ND


@pytest.mark.parametrize("assignment", ["predictive", "mode"])
def test_posteriors_are_scipys(assignment: str) -> None:
    model, x_ND = fitted(assignment)
    gaussians, columns = model.population.clusters, []
    for k in range(len(model.id_K)):
        mean_D, shape_DD = (gaussians.origin_D + gaussians.mean_KD[k]).numpy(), gaussians.covariance_KDD[k].numpy()
        if gaussians.degrees_K is None:
            density = multivariate_normal(mean_D, shape_DD)
        else:
            density = multivariate_t(mean_D, shape_DD, df=float(gaussians.degrees_K[k]))
        columns.append(density.logpdf(x_ND.double().numpy()))
    assert (gaussians.degrees_K is None) == (assignment == "mode")
    joint_NK = np.stack(columns, axis=1) + model.population.log_weight_K.numpy()
    posterior_NK = np.exp(joint_NK - logsumexp(joint_NK, axis=1, keepdims=True))
    found = model.assign(x_ND)
    np.testing.assert_array_equal(found.component_N, joint_NK.argmax(axis=1))
    np.testing.assert_allclose(found.probability_N, posterior_NK.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.score_N, np.stack(columns)[found.component_N, np.arange(len(x_ND))], rtol=1e-5)
    assert posterior_NK.max(axis=1).min() < 0.9


def test_parameters_are_the_closed_form_of_each_clusters_rows() -> None:
    """Murphy (2007): mean (kappa m + sum x) / (kappa + n), and the mode Psi_n / (nu + n + D + 2)."""
    model, x_ND = fitted("mode")
    update = model.maximize(model.expect(x_ND, torch.arange(len(x_ND))), torch.Generator())
    assert isinstance(update.model, DPM)
    moved = {identity for move in update.moves if move.accepted for identity in move.clusters}
    prior, after = model.population.prior.tensors(), update.model.population
    kappa, nu = prior["kappa_nu"].tolist()
    cluster_N, checked = model.assign(x_ND).cluster_N, 0
    for k, identity in enumerate(after.id_K.tolist()):
        if identity in moved:
            continue
        x_nD = x_ND[cluster_N == identity].double()
        mean_D = x_nD.mean(dim=0)
        shift_D, centred_nD, count = mean_D - prior["mean_D"], x_nD - mean_D, len(x_nD)
        psi_DD = prior["psi_DD"] + centred_nD.T @ centred_nD
        psi_DD += kappa * count / (kappa + count) * torch.outer(shift_D, shift_D)
        torch.testing.assert_close(after.clusters.covariance_KDD[k], psi_DD / (nu + count + 3 + 2))
        expected_D = (kappa * prior["mean_D"] + x_nD.sum(dim=0)) / (kappa + count)
        torch.testing.assert_close(after.clusters.mean_KD[k] + after.clusters.origin_D, expected_D)
        checked += 1
    assert checked > 1
