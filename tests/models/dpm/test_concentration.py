from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import gammaln

from models.dpm.concentration import expected_clusters, likeliest_concentration, sample_concentration
from models.errors import ShoalError


def _log_posterior(log_alpha_A: np.ndarray, clusters: int, rows: int, shape: float, rate: float) -> np.ndarray:
    """Of log alpha, up to a constant."""
    alpha_A = np.exp(log_alpha_A)
    return (shape + clusters) * log_alpha_A - rate * alpha_A + gammaln(alpha_A) - gammaln(alpha_A + rows)


def test_expected_clusters_by_hand() -> None:
    """alpha 1: harmonic numbers. alpha 2 and 3 rows: 1 + 2 / 3 + 2 / 4."""
    assert expected_clusters(1.0, 4) == pytest.approx(1 + 1 / 2 + 1 / 3 + 1 / 4)
    assert expected_clusters(2.0, 3) == pytest.approx(1 + 2 / 3 + 1 / 2)


@given(alpha=st.floats(1e-6, 1e4), rows=st.integers(1, 500))
def test_expected_clusters_is_the_sum_of_the_chances_of_a_new_one(alpha: float, rows: int) -> None:
    assert expected_clusters(alpha, rows) == pytest.approx(sum(alpha / (alpha + n) for n in range(rows)), rel=1e-8)


def test_expected_clusters_is_the_mean_of_the_restaurant() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, alpha, draws = 100, 3.0, 4000
    new_RN = torch.rand(draws, rows, generator=generator) < alpha / (alpha + torch.arange(rows))
    tables_R = new_RN.sum(dim=1).double()
    error = float(tables_R.std()) / math.sqrt(draws)
    assert float(tables_R.mean()) == pytest.approx(expected_clusters(alpha, rows), abs=4 * error)


@given(rows=st.integers(2, 10**6), part=st.floats(0, 1), shape=st.floats(0.01, 10), rate=st.floats(0.001, 10))
def test_likeliest_is_the_mode(rows: int, part: float, shape: float, rate: float) -> None:
    clusters = 1 + int(part * (min(rows, 2000) - 1))
    alpha = likeliest_concentration(clusters, rows, shape, rate)
    assert expected_clusters(alpha, rows) + rate * alpha == pytest.approx(clusters + shape, rel=1e-7)
    below, at, above = _log_posterior(math.log(alpha) + np.array([-0.2, 0, 0.2]), clusters, rows, shape, rate)
    assert at > below
    assert at > above


def test_without_a_prior_the_expected_number_is_the_seen_one() -> None:
    alpha = likeliest_concentration(30, 10_000, shape=1e-9, rate=0)
    assert expected_clusters(alpha, 10_000) == pytest.approx(30)
    assert likeliest_concentration(31, 10_000) > likeliest_concentration(30, 10_000)
    assert likeliest_concentration(30, 20_000) < likeliest_concentration(30, 10_000)


def test_one_row_leaves_the_prior() -> None:
    """One row is one cluster whatever alpha is: the mode of log alpha is shape / rate."""
    assert likeliest_concentration(1, 1, shape=2.0, rate=0.5) == pytest.approx(4.0)


def test_gibbs_steps_draw_from_the_posterior() -> None:
    clusters, rows, shape, rate = 12, 500, 2.0, 0.5
    generator = torch.Generator().manual_seed(0)
    alpha, draws = 1.0, []
    for _ in range(6000):
        alpha = sample_concentration(alpha, clusters, rows, generator, (shape, rate))
        draws.append(alpha)
    log_alpha_A = np.linspace(-4, 4, 4001)
    log_A = _log_posterior(log_alpha_A, clusters, rows, shape, rate)
    density_A = np.exp(log_A - log_A.max())
    mean, mean_square = (np.average(np.exp(power * log_alpha_A), weights=density_A) for power in (1, 2))
    sd = math.sqrt(mean_square - mean**2)
    assert np.mean(draws[100:]) == pytest.approx(mean, abs=0.06 * sd)  # 4 standard errors, of 4,500 effective draws
    assert np.std(draws[100:]) == pytest.approx(sd, rel=0.08)


def test_draws_repeat_with_their_seed() -> None:
    first, second = (sample_concentration(10.0, 5, 100, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first == second > 0
    assert sample_concentration(10.0, 5, 100, torch.Generator().manual_seed(4)) != first


def test_extreme_counts_stay_finite() -> None:
    generator = torch.Generator().manual_seed(0)
    for clusters, rows in ((1, 1), (1, 10**9), (10**6, 10**6), (10**5, 10**9)):
        assert 0 < likeliest_concentration(clusters, rows) < math.inf
        assert 0 < sample_concentration(10.0, clusters, rows, generator) < math.inf
        assert 0 < sample_concentration(1e-6, clusters, rows, generator, (0.01, 0.1)) < math.inf


def test_impossible_values_are_refused_in_a_sentence() -> None:
    with pytest.raises(ShoalError, match="11 clusters of 10 rows are impossible"):
        likeliest_concentration(11, 10)
    with pytest.raises(ShoalError, match="shape 0 and rate 1 but needs"):
        likeliest_concentration(2, 10, shape=0, rate=1)
    with pytest.raises(ShoalError, match="no upper limit"):
        likeliest_concentration(10, 10, rate=0)
    with pytest.raises(ShoalError, match="concentration is 0 but must be more than 0"):
        sample_concentration(0.0, 2, 10, torch.Generator())
