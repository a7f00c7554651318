"""k-means and the Gaussian mixture against scikit-learn: the same start, the same steps, the same numbers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as SklearnKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture
from torch import Tensor

from models.clusterer import Clusterer, DataSummary
from models.gmm import GMM, GMMConfig
from models.gmm import start as start_gmm
from models.kmeans import KMeans, KMeansConfig
from models.kmeans import start as start_kmeans


def overlapping(seed: int = 0) -> Tensor:
    """Six correlated Gaussians of unequal size that overlap."""
    rng = np.random.default_rng(seed)
    parts = [
        rng.standard_normal((100 + 80 * k, 4)) @ (np.eye(4) + 0.4 * rng.standard_normal((4, 4)))
        + 2 * rng.standard_normal(4)
        for k in range(6)
    ]
    return torch.from_numpy(np.concatenate(parts)).float()


def summarise(x_ND: Tensor, seed: int = 0) -> DataSummary:
    return DataSummary(len(x_ND), x_ND.double().mean(dim=0), torch.cov(x_ND.double().T, correction=0), x_ND, seed)


def steps(model: Clusterer, x_ND: Tensor, count: int) -> tuple[Clusterer, float]:
    """The model after `count` passes over two blocks, and the objective that the last pass found."""
    objective = float("nan")
    for _ in range(count):
        stats = model.expect(x_ND[:400], torch.arange(400)) + model.expect(x_ND[400:], torch.arange(400, len(x_ND)))
        update = model.maximize(stats, torch.Generator())
        model, objective = update.model, update.objective
    return model, objective


def sklearn_mixture(model: GMM, x_ND: Tensor, count: int) -> GaussianMixture:
    """Scikit-learn's mixture `count` EM steps after `model`."""
    precision_KDD = torch.cholesky_inverse(model.gaussians.chol_KDD)
    mixture = GaussianMixture(
        len(model.id_K),
        reg_covar=model.floor,
        tol=0,
        max_iter=count,
        weights_init=model.log_weight_K.exp().numpy(),
        means_init=(model.gaussians.mean_KD + model.gaussians.origin_D).numpy(),
        precisions_init=precision_KDD.numpy(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return mixture.fit(x_ND.double().numpy())


@pytest.mark.parametrize("count", [1, 2, 10])
def test_lloyd_steps_are_those_of_scikit_learn(count: int) -> None:
    x_ND = overlapping()
    first = KMeans(KMeansConfig(clusters=8), x_ND[::100][:8].double(), 1.0, torch.inf)
    model, _ = steps(first, x_ND, count)
    assert isinstance(model, KMeans)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        other = SklearnKMeans(8, init=first.centroid_KD.numpy(), n_init=1, max_iter=count, tol=0, algorithm="lloyd")
        other.fit(x_ND.double().numpy())
    np.testing.assert_allclose(model.centroid_KD, other.cluster_centers_, rtol=0, atol=1e-9)
    np.testing.assert_array_equal(model.assign(x_ND).cluster_N, other.labels_)
    assert -steps(model, x_ND, 1)[1] == pytest.approx(other.inertia_, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_fitted_kmeans_is_as_good_as_the_best_of_ten_of_scikit_learn(seed: int) -> None:
    x_ND = overlapping(seed)
    model, objective = steps(start_kmeans(KMeansConfig(clusters=6), summarise(x_ND, seed)), x_ND, 50)
    other = SklearnKMeans(6, n_init=10, random_state=seed, tol=0).fit(x_ND.double().numpy())
    assert -objective <= other.inertia_ * 1.002
    if -objective >= other.inertia_ * 0.9999:  # the same optimum
        assert adjusted_rand_score(model.assign(x_ND).cluster_N, other.labels_) > 0.99


@pytest.mark.parametrize("count", [1, 2, 10, 30])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_em_steps_are_those_of_scikit_learn(count: int, offset: float) -> None:
    x_ND = overlapping() + offset
    first = start_gmm(GMMConfig(clusters=6), summarise(x_ND))
    model, objective = steps(first, x_ND, count)
    assert isinstance(model, GMM)
    other = sklearn_mixture(first, x_ND, count)
    covariance_KDD = model.gaussians.chol_KDD @ model.gaussians.chol_KDD.mT
    np.testing.assert_allclose(model.log_weight_K.exp(), other.weights_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(model.gaussians.mean_KD + model.gaussians.origin_D, other.means_, rtol=0, atol=1e-6)
    np.testing.assert_allclose(covariance_KDD, other.covariances_, rtol=0, atol=1e-6)
    assert objective / len(x_ND) == pytest.approx(other.lower_bound_, abs=1e-6)


def test_posteriors_are_those_of_scikit_learn() -> None:
    x_ND = overlapping()
    first = start_gmm(GMMConfig(clusters=6), summarise(x_ND))
    model, _ = steps(first, x_ND, 5)
    posterior_NK = sklearn_mixture(first, x_ND, 5).predict_proba(x_ND.double().numpy())
    found = model.assign(x_ND)
    np.testing.assert_allclose(found.probability_N, posterior_NK.max(axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.cluster_N, posterior_NK.argmax(axis=1))
    np.testing.assert_array_equal(found.runner_up_N, posterior_NK.argsort(axis=1)[:, -2])
