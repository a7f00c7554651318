from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal

from models.gaussians import Gaussians, factorize
from models.moments import Moments, moments_of_sets, weighted_moments


def test_moments_by_hand() -> None:
    x_ND = torch.tensor([[1.0], [3.0], [10.0]])
    moments = moments_of_sets(x_ND, torch.tensor([0, 0, 2]), 3, torch.tensor([1.0], dtype=torch.float64))
    assert moments.count_K.tolist() == [2, 0, 1]
    assert moments.mean_KD.flatten().tolist() == [1.0, 0.0, 9.0]
    assert moments.scatter_KDD.flatten().tolist() == [2.0, 0.0, 0.0]


@given(cut=st.integers(0, 60), seed=st.integers(0, 5))
def test_moments_add_over_rows(cut: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(60, 3, generator=generator)
    set_N = torch.randint(0, 4, (60,), generator=generator)
    origin_D = x_ND.double().mean(dim=0)
    parts = [moments_of_sets(x_ND[s], set_N[s], 4, origin_D) for s in (slice(0, cut), slice(cut, 60))]
    _close(parts[0] + parts[1], moments_of_sets(x_ND, set_N, 4, origin_D))


def test_weights_of_one_hot_rows_are_sets() -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND, set_N = torch.randn(50, 2, generator=generator), torch.randint(0, 3, (50,), generator=generator)
    origin_D = torch.zeros(2, dtype=torch.float64)
    weight_NK = torch.nn.functional.one_hot(set_N, 3).double()
    _close(weighted_moments(x_ND, weight_NK, origin_D), moments_of_sets(x_ND, set_N, 3, origin_D))


def test_scatter_survives_an_offset_a_million_times_the_spread() -> None:
    x_ND = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = moments_of_sets(x_ND, torch.zeros(1000, dtype=torch.int64), 1, torch.zeros(2, dtype=torch.float64))
    offset_D = torch.full((2,), 1e6, dtype=torch.float64)
    far = moments_of_sets(x_ND + offset_D, torch.zeros(1000, dtype=torch.int64), 1, offset_D)
    torch.testing.assert_close(far.scatter_KDD, near.scatter_KDD, rtol=1e-8, atol=1e-6)


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
def test_factorize_never_fails(covariance: torch.Tensor) -> None:
    chol_KDD = factorize(covariance.double()[None])
    assert torch.isfinite(chol_KDD).all()
    assert (chol_KDD.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_factorize_leaves_a_good_covariance_alone_beside_a_bad_one() -> None:
    good = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    chol_KDD = factorize(torch.stack([good, torch.ones(2, 2, dtype=torch.float64)]))
    torch.testing.assert_close(chol_KDD[0] @ chol_KDD[0].T, good, rtol=1e-14, atol=0)


def test_log_density_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    covariance_KDD = root @ root.mT + torch.eye(3).double()
    mean_KD = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    origin_D = torch.tensor([5.0, -2.0, 1.0], dtype=torch.float64)
    x_ND = torch.randn(20, 3, generator=generator, dtype=torch.float64) + origin_D
    density_NK = Gaussians(origin_D, mean_KD, factorize(covariance_KDD)).log_density(x_ND)
    for k in range(2):
        expected = multivariate_normal((origin_D + mean_KD[k]).numpy(), covariance_KDD[k].numpy()).logpdf(x_ND.numpy())
        torch.testing.assert_close(density_NK[:, k], torch.from_numpy(expected))


def _close(left: Moments, right: Moments) -> None:
    for name, value in left.tensors().items():
        torch.testing.assert_close(value, right.tensors()[name], rtol=1e-12, atol=1e-12)
