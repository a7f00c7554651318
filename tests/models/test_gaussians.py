"""Densities against scipy's, and covariances that factorise whatever they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, multivariate_t, norm
from torch import Tensor

from models import gaussians as module
from models.gaussians import Gaussians, deviations, factorize, log_determinant

ORIGIN_D = torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
COMPONENTS = 4


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _gaussians(kind: str) -> Gaussians:
    mean_KD, root_KDD = _normal(COMPONENTS, 3, seed=1), _normal(COMPONENTS, 3, 3)
    chol_KDD = factorize(root_KDD @ root_KDD.mT + torch.eye(3).double())
    degrees_K = torch.tensor([1.5, 3.0, 8.0, 200.0]).double()
    return {
        "full": Gaussians(ORIGIN_D, mean_KD, chol_KDD),
        "diagonal": Gaussians(ORIGIN_D, mean_KD, chol_KDD.diagonal(dim1=1, dim2=2).clone()),
        "student": Gaussians(ORIGIN_D, mean_KD, chol_KDD, degrees_K),
        "diagonal student": Gaussians(ORIGIN_D, mean_KD, chol_KDD.diagonal(dim1=1, dim2=2).clone(), degrees_K),
    }[kind]


def _scipys(gaussians: Gaussians, x_ND: Tensor) -> Tensor:
    """scipy's log densities, (N, K)."""
    columns = []
    for k in range(len(gaussians.mean_KD)):
        mean_D, shape_DD = (gaussians.origin_D + gaussians.mean_KD[k]).numpy(), gaussians.covariance_KDD[k].numpy()
        if gaussians.degrees_K is None:
            column = multivariate_normal(mean_D, shape_DD).logpdf(x_ND.numpy())
        else:
            column = multivariate_t(mean_D, shape_DD, df=float(gaussians.degrees_K[k])).logpdf(x_ND.numpy())
        columns.append(torch.from_numpy(np.asarray(column)))
    return torch.stack(columns, dim=1)


KINDS = ["full", "diagonal", "student", "diagonal student"]
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_log_density_is_scipys(kind: str) -> None:
    gaussians, x_ND = _gaussians(kind), 2 * _normal(20, 3, seed=2) + ORIGIN_D
    density_NK = gaussians.log_density(x_ND)
    assert density_NK.dtype == torch.float64
    torch.testing.assert_close(density_NK, _scipys(gaussians, x_ND), rtol=1e-12, atol=1e-11)


@each_kind
def test_single_log_density_is_scipys_to_float32(kind: str) -> None:
    gaussians, x_ND = _gaussians(kind), (2 * _normal(20, 3, seed=2) + ORIGIN_D).float()
    density_NK, expected_NK = gaussians.log_density(x_ND, single=True), _scipys(gaussians, x_ND.double())
    assert density_NK.dtype == torch.float64
    torch.testing.assert_close(density_NK, expected_NK, rtol=1e-5, atol=1e-5)
    assert not torch.equal(density_NK, gaussians.log_density(x_ND))  # so that it is float32 that was tested


@each_kind
@settings(max_examples=25)
@given(seed=st.integers(0, 999), rows=st.integers(0, 30), candidates=st.integers(1, COMPONENTS))
def test_log_density_at_candidates_is_that_of_all(kind: str, seed: int, rows: int, candidates: int) -> None:
    gaussians, x_ND = _gaussians(kind), (2 * _normal(rows, 3, seed=seed) + ORIGIN_D).float()
    order_NK = torch.rand(rows, COMPONENTS, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    component_NC = order_NK[:, :candidates]
    found_NC = gaussians.log_density_at(x_ND, component_NC)
    assert found_NC.dtype == torch.float64
    torch.testing.assert_close(found_NC, gaussians.log_density(x_ND).gather(1, component_NC), rtol=1e-5, atol=1e-5)


@each_kind
def test_steps_of_rows_do_not_matter(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians, x_ND = _gaussians(kind), _normal(20, 3, seed=2)
    whole_NK = gaussians.log_density(x_ND)
    monkeypatch.setattr(module, "_ROWS", 7)
    torch.testing.assert_close(gaussians.log_density(x_ND), whole_NK, rtol=1e-13, atol=1e-13)


def test_single_precision_holds_far_from_zero() -> None:
    """The mean is taken off before anything is squared: at 1e4 the rows' own rounding (1e-3) is all that is lost."""
    x_ND = (1e4 + _normal(50, 3)).float()
    gaussians = Gaussians(torch.full((3,), 1e4).double(), torch.zeros(1, 3).double(), torch.eye(3).double()[None])
    expected_N = norm.logpdf(x_ND.double().numpy() - 1e4).sum(axis=1)
    for density_N1 in (
        gaussians.log_density(x_ND, single=True),
        gaussians.log_density_at(x_ND, torch.zeros(50, 1).long()),
    ):
        np.testing.assert_allclose(density_N1[:, 0].numpy(), expected_N, rtol=1e-5)


def test_many_degrees_are_a_gaussian() -> None:
    plain, x_ND = _gaussians("full"), _normal(10, 3)
    student = Gaussians(plain.origin_D, plain.mean_KD, plain.chol_KDD, torch.full((COMPONENTS,), 1e9).double())
    torch.testing.assert_close(student.log_density(x_ND), plain.log_density(x_ND), rtol=1e-5, atol=1e-5)


@each_kind
def test_some_components_are_those_components(kind: str) -> None:
    gaussians, x_ND, index = _gaussians(kind), _normal(10, 3), torch.tensor([2, 0])
    torch.testing.assert_close(gaussians[index].log_density(x_ND), gaussians.log_density(x_ND)[:, index])
    assert (gaussians.dim, gaussians.diagonal) == (3, kind.startswith("diagonal"))
    assert gaussians.to("cpu") is gaussians


@pytest.mark.parametrize(
    "covariance",
    [
        torch.zeros(2, 2),
        torch.ones(2, 2),
        torch.diag(torch.tensor([1.0, -1e-9])),
        torch.diag(torch.tensor([1e200, 0.0], dtype=torch.float64)),
    ],
    ids=["zero", "rank one", "slightly negative", "huge"],
)
def test_factorize_never_fails(covariance: Tensor) -> None:
    chol_KDD = factorize(covariance.double()[None])
    assert torch.isfinite(chol_KDD).all()
    assert (chol_KDD.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_factorize_leaves_a_good_covariance_alone_beside_a_bad_one() -> None:
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    chol_KDD = factorize(torch.stack([good, torch.ones(2, 2, dtype=torch.float64)]))
    torch.testing.assert_close(chol_KDD[0] @ chol_KDD[0].T, good, rtol=1e-14, atol=0)


def test_deviations_are_roots_with_the_least_jitter() -> None:
    """A variance of 0 beside 4 gets 1e-10 of their mean 2; no variance at all still has a deviation."""
    deviation_KD = deviations(torch.tensor([[4.0, 0.0], [9.0, 1.0], [0.0, 0.0]]).double())
    assert deviation_KD[0].tolist() == pytest.approx([2.0, (2e-10) ** 0.5])
    assert deviation_KD[1].tolist() == [3.0, 1.0]
    assert (deviation_KD[2] > 0).all()
    assert (1 / deviation_KD).isfinite().all()


def test_log_determinants_are_numpys() -> None:
    root_KDD = _normal(3, 4, 4)
    covariance_KDD = root_KDD @ root_KDD.mT + torch.eye(4).double()
    expected_K = np.linalg.slogdet(covariance_KDD.numpy())[1]
    np.testing.assert_allclose(log_determinant(factorize(covariance_KDD)).numpy(), expected_K)
    assert log_determinant(torch.tensor([[2.0, 3.0]]).double()).tolist() == pytest.approx([np.log(36.0)])


@pytest.mark.parametrize("kind", ["full", "student"])
def test_rounded_factors_are_float32_and_change_densities_by_little(kind: str) -> None:
    plain, x_ND = _gaussians(kind), _normal(50, 3, seed=2) + ORIGIN_D
    rounded = plain.rounded()
    assert torch.equal(rounded.chol_KDD, plain.chol_KDD.float().double())
    assert not torch.equal(rounded.chol_KDD, plain.chol_KDD)
    torch.testing.assert_close(rounded.log_density(x_ND), plain.log_density(x_ND), rtol=1e-5, atol=1e-5)
    assert torch.equal(rounded.rounded().chol_KDD, rounded.chol_KDD)


@pytest.mark.parametrize("unit", [1e-60, 1e60])
def test_what_float32_cannot_hold_is_not_rounded(unit: float) -> None:
    """Rows that are all equal have factors of 1e-80; rounded, they would have no density."""
    plain = _gaussians("full")
    extreme = Gaussians(ORIGIN_D, plain.mean_KD, unit * plain.chol_KDD)
    assert extreme.rounded() is extreme
    diagonal = _gaussians("diagonal student")
    assert diagonal.rounded() is diagonal
