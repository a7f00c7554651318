"""The concentration of a Dirichlet process, learnt from how many clusters there are.

Given a partition, alpha depends on it through the numbers of clusters and rows alone: p(alpha | K, N) is proportional
to a Gamma(shape, rate) prior times alpha^K G(alpha) / G(alpha + N), G the gamma function.
Source: Escobar and West (1995), Bayesian density estimation and inference using mixtures, section 6; Antoniak (1974)
for the law of K.
"""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from scipy.special import digamma
from torch import Tensor

from models.errors import ShoalError


def expected_clusters(concentration: float, rows: int) -> float:
    """E[K | alpha, N]: the sum over n = 0 .. N-1 of alpha / (alpha + n), from 1 (alpha near 0) to N (alpha large)."""
    return float(concentration * (digamma(concentration + rows) - digamma(concentration)))


def likeliest_concentration(clusters: int, rows: int, shape: float = 1.0, rate: float = 0.1) -> float:
    """The mode of the posterior of log alpha: where E[K | alpha, N] + rate alpha = K + shape. Deterministic.

    The left side grows with alpha, so there is exactly one. In the logarithm, because there the mode is never at 0 and
    does not depend on whether alpha or its inverse is asked for. Rate 0 leaves no prior against large alpha, and then
    fewer clusters than rows - shape are needed. Raises ShoalError for impossible counts or a prior without a density.
    """
    _check(clusters, rows, shape, rate)
    target = clusters + shape
    if rate == 0 and target >= rows:
        raise ShoalError(
            f"{clusters} clusters of {rows} rows put no upper limit on the concentration when the rate of its prior is "
            "0; set a rate above 0."
        )

    def excess(log_concentration: float) -> float:
        concentration = math.exp(log_concentration)
        return expected_clusters(concentration, rows) + rate * concentration - target

    least = math.log((target - 1) / (rows + rate)) - 1  # E[K] <= 1 + alpha (N - 1)
    # E[K] >= N alpha / (alpha + N - 1), which bounds alpha where the prior does not.
    most = math.log(target / rate if rate > 0 else target * (rows - 1) / (rows - target)) + 1
    return math.exp(float(brentq(excess, least, most, xtol=1e-12)))


def sample_concentration(
    concentration: float, clusters: int, rows: int, rng: torch.Generator, prior: tuple[float, float] = (1.0, 0.1)
) -> float:
    """One Gibbs step from `concentration`, which leaves p(alpha | K, N) invariant (Escobar and West, eq. 13-14).

    eta ~ Beta(alpha + 1, N), then alpha ~ Gamma of shape + K or shape + K - 1 and rate - log eta, the former with odds
    (shape + K - 1) / (N (rate - log eta)). `prior` holds shape and rate. Raises ShoalError as
    `likeliest_concentration` does.
    """
    shape, rate = prior
    _check(clusters, rows, shape, rate)
    if not concentration > 0:
        raise ShoalError(f"concentration is {concentration:g} but must be more than 0; 10 is the default.")
    one, other = _gamma(concentration + 1, rng), _gamma(float(rows), rng)
    rate_given_eta = rate + math.log1p(other / one)  # - log eta, eta = one / (one + other)
    odds = (shape + clusters - 1) / (rows * rate_given_eta)
    more = float(torch.rand((), generator=rng, dtype=torch.float64)) * (1 + odds) < odds
    return _gamma(shape + clusters - (0 if more else 1), rng) / rate_given_eta


def _gamma(shape: float, rng: torch.Generator) -> float:
    """A draw from Gamma(shape, 1). torch.distributions.Gamma takes no generator, so what it calls is called here."""
    draw: Tensor = torch._standard_gamma(torch.tensor(shape, dtype=torch.float64), generator=rng)
    return max(float(draw), 1e-300)  # a small shape may round to 0, which is no concentration


def _check(clusters: int, rows: int, shape: float, rate: float) -> None:
    if not 1 <= clusters <= rows:
        raise ShoalError(f"{clusters} clusters of {rows} rows are impossible; count the clusters that have rows.")
    if not shape > 0 or not rate >= 0:
        raise ShoalError(
            f"The concentration's prior has shape {shape:g} and rate {rate:g} but needs a shape above 0 and a rate of "
            "at least 0; 1 and 0.1 expect 10."
        )
