"""Priors fitted to partitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import invgamma, invwishart
from torch import Tensor

from models.clusterer import DataSummary
from models.dpm import full as full_module
from models.dpm.empirical import Strengths, strongest
from models.dpm.full import Spectra, shrunk_covariance
from models.dpm.prior import NIW, Diagonal, Prior, Spherical, Tied, prior_of
from models.moments import Moments, moments_of_sets

KINDS = ["full", "diagonal", "spherical", "tied"]
each_family = pytest.mark.parametrize("kind", KINDS)
EXPECTED_DD = torch.tensor([[1.0, 0.4, 0.0], [0.4, 0.8, 0.0], [0.0, 0.0, 0.3]]).double()
NU, KAPPA = 14.0, 0.05


def _covariances(kind: str, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draws from the family's own prior, of expectation EXPECTED_DD (spherical: I)."""
    if kind == "full":
        return invwishart(NU, EXPECTED_DD.numpy() * (NU - 4)).rvs(count, random_state=rng)
    if kind == "diagonal":
        scale_D = EXPECTED_DD.diagonal().numpy() * (NU - 2) / 2
        return np.stack([np.diag(invgamma.rvs(NU / 2, scale=scale_D, random_state=rng)) for _ in range(count)])
    if kind == "spherical":
        return invgamma.rvs(NU / 2, scale=(NU - 2) / 2, size=(count, 1, 1), random_state=rng) * np.eye(3)
    return np.broadcast_to(EXPECTED_DD.numpy(), (count, 3, 3))


def _drawn(kind: str, count: int = 300, rows: int = 60) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    blocks = []
    for covariance_DD in _covariances(kind, count, rng):
        mean_D = rng.multivariate_normal(np.zeros(3), covariance_DD / KAPPA)
        blocks.append(rng.multivariate_normal(mean_D, covariance_DD, size=rows))
    return torch.from_numpy(np.concatenate(blocks)), torch.arange(count).repeat_interleave(rows)


def _default(kind: str, x_ND: Tensor) -> Prior:
    data = DataSummary(len(x_ND), x_ND.mean(dim=0), torch.cov(x_ND.T, correction=0), x_ND[:3].float(), seed=0)
    return prior_of(kind, data, 1.0, 1.0, None)  # type: ignore[arg-type]


def _moments(prior: Prior, x_ND: Tensor, set_N: Tensor) -> Moments:
    return moments_of_sets(x_ND, set_N, int(set_N.max()) + 1, prior.mean_D, diagonal=prior.diagonal)


def _fit(kind: str, x_ND: Tensor, set_N: Tensor) -> tuple[Prior, Moments]:
    start = _default(kind, x_ND)
    moments = _moments(start, x_ND, set_N)
    return start.fitted_to(moments), moments


@each_family
def test_the_prior_that_drew_the_clusters_is_found(kind: str) -> None:
    fitted, _ = _fit(kind, *_drawn(kind))
    if isinstance(fitted, Tied):
        assert fitted.kappa == pytest.approx(KAPPA, rel=0.15)
        torch.testing.assert_close(fitted.covariance_DD, EXPECTED_DD, atol=0.03, rtol=0)
        return
    assert isinstance(fitted, NIW | Diagonal | Spherical)
    assert fitted.kappa == pytest.approx(KAPPA, rel=0.15)
    assert fitted.nu == pytest.approx(NU, rel=0.15)
    if isinstance(fitted, NIW):
        torch.testing.assert_close(fitted.psi_DD / (fitted.nu - 4), EXPECTED_DD, atol=0.08, rtol=0)
    elif isinstance(fitted, Diagonal):
        torch.testing.assert_close(fitted.psi_D / (fitted.nu - 2), EXPECTED_DD.diagonal(), atol=0.08, rtol=0)
    else:
        assert fitted.psi / (fitted.nu - 2) == pytest.approx(1.0, abs=0.08)


@each_family
@settings(max_examples=25)
@given(seed=st.integers(0, 50), clusters=st.integers(2, 12), rows=st.integers(20, 200))
def test_fitting_raises_the_evidence(kind: str, seed: int, clusters: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    set_N = torch.arange(rows) % clusters
    centre_KD = 5 * torch.randn(clusters, 3, generator=generator, dtype=torch.float64)
    width_K1 = torch.rand(clusters, 1, generator=generator, dtype=torch.float64) + 0.2
    x_ND = centre_KD[set_N] + width_K1[set_N] * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    fitted, moments = _fit(kind, x_ND, set_N)
    assert fitted.log_marginal(moments).sum() > _default(kind, x_ND).log_marginal(moments).sum()


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical"])
def test_the_strengths_are_at_the_top(kind: str) -> None:
    fitted, moments = _fit(kind, *_drawn(kind, count=40, rows=30))
    assert isinstance(fitted, NIW | Diagonal | Spherical)
    top = fitted.log_marginal(moments).sum()
    gone = 4 if kind == "full" else 2
    for factor in (0.8, 1.25):
        near = [replace(fitted, kappa=fitted.kappa * factor)]
        nu = gone + (fitted.nu - gone) * factor
        if isinstance(fitted, NIW):
            near.append(replace(fitted, nu=nu, psi_DD=fitted.psi_DD * factor))
        elif isinstance(fitted, Diagonal):
            near.append(replace(fitted, nu=nu, psi_D=fitted.psi_D * factor))
        else:
            near.append(replace(fitted, nu=nu, psi=fitted.psi * factor))
        for other in near:
            assert other.log_marginal(moments).sum() < top


def test_spectra_have_the_evidence_of_the_prior() -> None:
    x_ND, set_N = _drawn("full", count=7, rows=9)
    prior = NIW(x_ND.mean(dim=0), 0.3, 6.5, 2.5 * EXPECTED_DD)
    moments = _moments(prior, x_ND, set_N)
    evidence = Spectra.of(moments, EXPECTED_DD).evidence(Strengths(2.5, 0.3))
    assert evidence == pytest.approx(prior.log_marginal(moments).sum().item(), abs=1e-8)


def test_a_sample_of_clusters_gives_about_the_same_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    x_ND, set_N = _drawn("full")
    whole, moments = _fit("full", x_ND, set_N)
    monkeypatch.setattr(full_module, "_SPECTRUM_WORK", 1)
    sampled = _default("full", x_ND).fitted_to(moments)
    assert isinstance(whole, NIW)
    assert isinstance(sampled, NIW)
    assert sampled.nu != whole.nu
    assert sampled.nu == pytest.approx(whole.nu, rel=0.35)
    assert sampled.kappa == pytest.approx(whole.kappa, rel=0.35)


def test_a_sample_of_clusters_spreads_over_their_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_module, "_SPECTRUM_WORK", 1)
    count_K = torch.randperm(127, generator=torch.Generator().manual_seed(0)).double() + 1
    clusters = Moments(count_K, torch.zeros(127, 1).double(), torch.ones(127, 1, 1).double())
    assert full_module._spread(clusters).count_K.tolist() == [1 + 2 * n for n in range(64)]


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_turning_the_data_turns_the_prior(kind: str) -> None:
    x_ND, set_N = _drawn("full", count=30)
    turn_DD = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    fitted, _ = _fit(kind, x_ND, set_N)
    turned, _ = _fit(kind, x_ND @ turn_DD.T, set_N)
    name = "psi_DD" if kind == "full" else "covariance_DD"
    torch.testing.assert_close(
        turned.tensors()[name], turn_DD @ fitted.tensors()[name] @ turn_DD.T, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(turned.tensors()["kappa_nu"], fitted.tensors()["kappa_nu"], rtol=1e-4, atol=0)


@each_family
def test_the_unit_of_the_data_does_not_matter(kind: str) -> None:
    x_ND, set_N = _drawn(kind, count=30)
    fitted, moments = _fit(kind, x_ND, set_N)
    larger, moments_larger = _fit(kind, 1000 * x_ND, set_N)
    # Densities of rows that are 1,000 times as wide are 1,000 times smaller in each dimension.
    shifted_K = fitted.log_marginal(moments) - moments.count_K * 3 * np.log(1000)
    torch.testing.assert_close(larger.log_marginal(moments_larger), shifted_K, rtol=1e-6, atol=1e-3)


@each_family
def test_one_cluster_keeps_the_strengths_and_clusters_of_one_row_the_degrees(kind: str) -> None:
    x_ND = _drawn("tied", count=3)[0]
    start = _strengths(_default(kind, x_ND))
    fitted, _ = _fit(kind, x_ND, torch.zeros(len(x_ND)).long())
    assert _strengths(fitted) == pytest.approx(start)
    singles, _ = _fit(kind, x_ND[:5], torch.arange(5))
    assert _strengths(singles)[1] == pytest.approx(start[1])


def _strengths(prior: Prior) -> list[float]:
    """kappa and nu."""
    tensors = prior.tensors()
    pair = tensors["kappa_nu"] if "kappa_nu" in tensors else tensors["kappa_nu_psi"][:2]
    return pair.tolist()


@each_family
def test_empty_sets_and_order_do_not_matter(kind: str) -> None:
    x_ND, set_N = _drawn(kind, count=20)
    fitted, _ = _fit(kind, x_ND, set_N)
    gaps = _moments(fitted, x_ND, 40 - 2 * set_N)
    assert len(gaps) == 41
    again = _default(kind, x_ND).fitted_to(gaps)
    torch.testing.assert_close(again.tensors(), fitted.tensors(), rtol=1e-6, atol=1e-9)
    assert all(value.is_contiguous() for value in fitted.tensors().values())


def test_fitting_again_changes_nothing() -> None:
    for kind in ("full", "diagonal", "spherical"):
        fitted, moments = _fit(kind, *_drawn(kind, count=30))
        torch.testing.assert_close(fitted.fitted_to(moments).tensors(), fitted.tensors(), rtol=5e-3, atol=1e-9)


def test_shrinkage_by_hand() -> None:
    """Two clusters of scatter diag(2, 0) and diag(4, 0): covariance diag(3, 0) of 2 degrees of freedom. Squares 9,
    squared trace 9: intensity (0 + 9) / ((2 + 0) (9 - 4.5)) = 1, so the mean variance 1.5 everywhere.
    """
    root = 2**0.5
    x_ND = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [root, 0.0], [-root, 0.0]]).double()
    clusters = moments_of_sets(x_ND, torch.tensor([0, 0, 1, 1]), 2, torch.zeros(2).double())
    shrunk_DD = shrunk_covariance(clusters, torch.eye(2).double())
    torch.testing.assert_close(shrunk_DD, 1.5 * torch.eye(2).double(), atol=1e-6, rtol=0)
    many = Moments(50 * clusters.count_K, 50 * clusters.sum_KD, 50 * clusters.second_KDD)
    # 300 / 198 of variance over 198 degrees; intensity 9 / (198 * 4.5) = 1 / 99.
    expected_D = [300 / 198 * (98 / 99) + 150 / 198 / 99, 150 / 198 / 99]
    assert shrunk_covariance(many, torch.eye(2).double()).diagonal().tolist() == pytest.approx(expected_D, rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_more_dimensions_than_rows(kind: str) -> None:
    x_ND = torch.randn(12, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    fitted, moments = _fit(kind, x_ND, torch.arange(12) % 3)
    assert torch.isfinite(fitted.log_marginal(moments)).all()
    assert torch.isfinite(fitted.mode(moments).log_density(x_ND)).all()
    assert fitted.log_marginal(moments).sum() > _default(kind, x_ND).log_marginal(moments).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_clusters_of_equal_rows_keep_a_variance(kind: str) -> None:
    x_ND = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).repeat(10, 1)
    fitted, moments = _fit(kind, x_ND, torch.arange(40) % 4)
    assert torch.isfinite(fitted.log_marginal(moments)).all()
    assert (fitted.mode(moments).chol_KDD.abs().amax(dim=-1) > 0).all()


def test_the_search_finds_a_known_top_and_keeps_its_bounds() -> None:
    clusters = Moments(torch.full((2,), 50.0).double(), torch.zeros(2, 1).double(), torch.ones(2, 1).double())
    start = Strengths(1.0, 1.0)

    def hill(strengths: Strengths) -> float:
        return -((np.log(strengths.weight) - 2) ** 2) - (np.log(strengths.kappa) + 3) ** 2

    found = strongest(hill, clusters, start)
    assert np.log([found.weight, found.kappa]).tolist() == pytest.approx([2, -3], abs=2e-3)
    upwards = strongest(lambda strengths: strengths.weight + strengths.kappa, clusters, start)
    assert [upwards.weight, upwards.kappa] == pytest.approx([98, 1e3], rel=2e-3)  # 98 degrees of freedom within
