"""Laws that every family of covariances obeys, and where the families agree with each other."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import invgamma, invwishart, multivariate_normal, multivariate_t, norm
from scipy.stats import t as student
from torch import Tensor

from models.dpm import batches as batches_module
from models.dpm.moves import log_joint, log_split_ratio
from models.dpm.prior import NIW, Diagonal, Prior, Spherical, Tied, load_prior
from models.moments import Moments, moments_of_sets

KINDS = ["full", "diagonal", "spherical", "tied"]
MEAN_D = torch.tensor([0.5, -1.0, 2.0]).double()
PSI_DD = torch.tensor([[2.0, 0.3, 0.1], [0.3, 1.0, -0.2], [0.1, -0.2, 0.5]]).double()
each_family = pytest.mark.parametrize("kind", KINDS)


def _prior(kind: str) -> Prior:
    return {
        "full": NIW(MEAN_D, 0.7, 4.5, PSI_DD),
        "diagonal": Diagonal(MEAN_D, 0.7, 2.5, PSI_DD.diagonal().clone()),
        "spherical": Spherical(MEAN_D, 0.7, 3.5, 2.2),
        "tied": Tied(MEAN_D, 0.7, 4.5, torch.eye(3).double(), PSI_DD),
    }[kind]


def _flat(kind: str, kappa: float, nu: float, psi: float) -> Prior:
    """The same law in one dimension."""
    zero, scale = torch.zeros(1).double(), torch.tensor([psi], dtype=torch.float64)
    families: dict[str, Prior] = {
        "full": NIW(zero, kappa, nu, scale[None]),
        "diagonal": Diagonal(zero, kappa, nu, scale),
        "spherical": Spherical(zero, kappa, nu, psi),
        "tied": Tied(zero, kappa, nu, scale[None], scale[None]),
    }
    return families[kind]


def _rows(count: int, seed: int = 0, dim: int = 3) -> Tensor:
    return 1.5 * torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1


def _moments(prior: Prior, x_ND: Tensor, set_N: Tensor | None = None) -> Moments:
    set_N = torch.zeros(len(x_ND), dtype=torch.int64) if set_N is None else set_N
    return moments_of_sets(x_ND, set_N, int(set_N.max()) + 1, prior.mean_D, diagonal=prior.diagonal)


def _empty(prior: Prior) -> Moments:
    return moments_of_sets(torch.zeros(0, prior.dim), torch.zeros(0).long(), 1, prior.mean_D, diagonal=prior.diagonal)


@each_family
def test_log_marginal_is_the_product_of_predictives(kind: str) -> None:
    prior, x_ND = _prior(kind), _rows(7)
    total = 0.0
    for n in range(len(x_ND)):
        seen = _moments(prior, x_ND[:n]) if n else _empty(prior)
        total += prior.predictive(seen).log_density(x_ND[n : n + 1]).item()
    assert prior.log_marginal(_moments(prior, x_ND)).item() == pytest.approx(total, abs=1e-9)


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical"])
def test_log_marginal_is_the_integral_over_mean_and_variance(kind: str) -> None:
    kappa, nu, psi = 0.7, 3.0, 1.5
    prior, x_N = _flat(kind, kappa, nu, psi), torch.tensor([0.3, -0.4, 1.1]).double()
    mean_A1 = np.linspace(-14, 14, 1201)[:, None]
    log_variance_1B = np.linspace(-8, 14, 1201)[None, :]
    sd_1B = np.exp(log_variance_1B / 2)
    density_AB = norm.pdf(mean_A1, 0.0, sd_1B / math.sqrt(kappa)) * invgamma.pdf(sd_1B**2, nu / 2, scale=psi / 2)
    density_AB = density_AB * sd_1B**2  # d variance = variance d log
    for x in x_N.tolist():
        density_AB = density_AB * norm.pdf(x, mean_A1, sd_1B)
    integral = np.trapezoid(np.trapezoid(density_AB, log_variance_1B[0], axis=1), mean_A1[:, 0])
    assert prior.log_marginal(_moments(prior, x_N[:, None])).item() == pytest.approx(math.log(integral), abs=1e-5)


def test_log_marginal_of_tied_is_that_of_correlated_rows() -> None:
    """Rows that share a mean of covariance S / kappa are jointly normal: covariance S between rows over kappa."""
    prior, x_ND = _prior("tied"), _rows(4)
    between_NN = np.eye(4) + np.ones((4, 4)) / 0.7
    joint = multivariate_normal(np.tile(MEAN_D.numpy(), 4), np.kron(between_NN, PSI_DD.numpy()))
    expected = joint.logpdf(x_ND.flatten().numpy())
    assert prior.log_marginal(_moments(prior, x_ND)).item() == pytest.approx(expected, abs=1e-9)


def test_log_marginal_of_spherical_is_that_of_tied_integrated_over_the_variance() -> None:
    prior, x_ND = _prior("spherical"), _rows(4)
    moments = moments_of_sets(x_ND, torch.zeros(4).long(), 1, MEAN_D)
    eye_DD = torch.eye(3).double()
    log_variance_B = np.linspace(-10, 12, 501)
    density_B = [
        math.exp(Tied(MEAN_D, 0.7, 5.0, eye_DD, math.exp(log) * eye_DD).log_marginal(moments).item())
        * invgamma.pdf(math.exp(log), 3.5 / 2, scale=2.2 / 2)
        * math.exp(log)
        for log in log_variance_B.tolist()
    ]
    integral = np.trapezoid(density_B, log_variance_B)
    assert prior.log_marginal(moments).item() == pytest.approx(math.log(integral), abs=1e-8)


def test_log_marginals_by_hand() -> None:
    """One row at the prior mean. Diagonal: two Cauchy densities of scale sqrt 2, each 1 / (pi sqrt 2) at its centre.
    Spherical: t of 2 degrees in the plane with scale 2 I, 1 / (2 pi 2). Tied: a normal of covariance 2 I.
    """
    zero_D, one_D = torch.zeros(2).double(), torch.ones(2).double()
    row = moments_of_sets(zero_D[None], torch.zeros(1).long(), 1, zero_D)
    diagonal = Diagonal(zero_D, 1.0, 1.0, one_D).log_marginal(row).item()
    assert diagonal == pytest.approx(-math.log(2 * math.pi**2), abs=1e-12)
    assert Spherical(zero_D, 1.0, 2.0, 2.0).log_marginal(row).item() == pytest.approx(-math.log(4 * math.pi), abs=1e-12)
    tied = Tied(zero_D, 1.0, 4.0, one_D.diag(), one_D.diag()).log_marginal(row).item()
    assert tied == pytest.approx(-math.log(4 * math.pi), abs=1e-12)


def test_predictives_are_scipys() -> None:
    """Full: t of nu + N - D + 1 degrees; diagonal: a product of t; spherical: t of nu + N D degrees."""
    x_ND, query_ND = _rows(5), _rows(4, seed=1)
    mean_D = (0.7 * MEAN_D + x_ND.sum(dim=0)) / 5.7
    centred_ND = x_ND - x_ND.mean(dim=0)
    shift_D = x_ND.mean(dim=0) - MEAN_D
    psi_DD = PSI_DD + centred_ND.T @ centred_ND + 0.7 * 5 / 5.7 * torch.outer(shift_D, shift_D)
    grow = 6.7 / 5.7

    full = multivariate_t(mean_D.numpy(), psi_DD.numpy() * grow / 7.5, df=4.5 + 5 - 3 + 1)
    _assert_density("full", x_ND, query_ND, np.log(full.pdf(query_ND.numpy())))
    scale_D = (psi_DD.diagonal() * grow / 7.5).sqrt().numpy()
    product_M = student.logpdf(query_ND.numpy(), df=7.5, loc=mean_D.numpy(), scale=scale_D).sum(axis=1)
    _assert_density("diagonal", x_ND, query_ND, product_M)
    psi = 2.2 + float((psi_DD - PSI_DD).trace())
    sphere = multivariate_t(mean_D.numpy(), np.eye(3) * psi * grow / 18.5, df=3.5 + 15)
    _assert_density("spherical", x_ND, query_ND, np.log(sphere.pdf(query_ND.numpy())))
    normal = multivariate_normal(mean_D.numpy(), PSI_DD.numpy() * grow)
    _assert_density("tied", x_ND, query_ND, normal.logpdf(query_ND.numpy()))


def _assert_density(kind: str, x_ND: Tensor, query_ND: Tensor, expected_M: np.ndarray) -> None:
    prior = _prior(kind)
    density_M = prior.predictive(_moments(prior, x_ND)).log_density(query_ND)[:, 0]
    np.testing.assert_allclose(density_M.numpy(), expected_M, atol=1e-10)


def _log_prior_of(kind: str) -> Callable[[Tensor], float]:
    """Log density of a covariance under the family's prior."""
    return {
        "full": lambda c_DD: float(invwishart(4.5, PSI_DD.numpy()).logpdf(c_DD.numpy())),
        "diagonal": lambda c_DD: float(
            invgamma.logpdf(c_DD.diagonal().numpy(), 1.25, scale=PSI_DD.diagonal().numpy() / 2).sum()
        ),
        "spherical": lambda c_DD: float(invgamma.logpdf(float(c_DD[0, 0]), 1.75, scale=1.1)),
        "tied": lambda c_DD: 0.0,
    }[kind]


def _neighbours(kind: str, covariance_DD: Tensor) -> list[Tensor]:
    """Covariances of the family that are near this one."""
    steps = []
    for i in range(3):
        for j in range(i + 1 if kind == "full" else 1):
            step_DD = torch.zeros(3, 3).double()
            if kind == "spherical":
                step_DD = torch.eye(3).double()
            elif kind == "full":
                step_DD[i, j] = step_DD[j, i] = 1.0
            else:
                step_DD[i, i] = 1.0
            steps += [covariance_DD + 0.003 * sign * step_DD for sign in (-1, 1)]
    return [] if kind == "tied" else steps


@each_family
def test_mode_is_the_top_of_the_posterior(kind: str) -> None:
    prior, x_ND = _prior(kind), _rows(6)
    mode = prior.mode(_moments(prior, x_ND))
    mean_D, covariance_DD = MEAN_D + mode.mean_KD[0], mode.covariance_KDD[0]
    log_prior = _log_prior_of(kind)

    def log_posterior(mean_D: Tensor, c_DD: Tensor) -> float:
        likelihood = multivariate_normal(mean_D.numpy(), c_DD.numpy()).logpdf(x_ND.numpy()).sum()
        of_mean = multivariate_normal(MEAN_D.numpy(), c_DD.numpy() / 0.7).logpdf(mean_D.numpy())
        return float(likelihood + of_mean + log_prior(c_DD))

    top = log_posterior(mean_D, covariance_DD)
    for step_D in 0.01 * torch.cat([torch.eye(3), -torch.eye(3)]).double():
        assert log_posterior(mean_D + step_D, covariance_DD) < top
    for near_DD in _neighbours(kind, covariance_DD):
        assert log_posterior(mean_D, near_DD) < top


def test_modes_by_hand() -> None:
    """Rows (1, 0) and (3, 0) about 0, kappa 1: mean 4 / 3, squares 2 + 2 / 3 * 4 along the first axis, none else."""
    zero_D, one_D = torch.zeros(2).double(), torch.ones(2).double()
    moments = moments_of_sets(torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.zeros(2).long(), 1, zero_D, diagonal=True)
    diagonal = Diagonal(zero_D, 1.0, 3.0, one_D).mode(moments)
    assert diagonal.mean_KD[0].tolist() == pytest.approx([4 / 3, 0])
    assert diagonal.chol_KDD[0].square().tolist() == pytest.approx([(1 + 14 / 3) / 8, 1 / 8])
    spherical = Spherical(zero_D, 1.0, 4.0, 1.0).mode(moments)
    assert spherical.chol_KDD[0].square().tolist() == pytest.approx([(1 + 14 / 3) / 12] * 2)


@settings(max_examples=30)
@given(
    rows=st.lists(st.floats(-5, 5), min_size=1, max_size=8),
    kappa=st.floats(0.01, 10),
    nu=st.floats(0.1, 20),
    psi=st.floats(0.01, 10),
)
def test_in_one_dimension_full_diagonal_and_spherical_are_one(
    rows: list[float], kappa: float, nu: float, psi: float
) -> None:
    full, *others = (_flat(kind, kappa, nu, psi) for kind in ("full", "diagonal", "spherical"))
    x_N1 = torch.tensor(rows).double()[:, None]
    moments = moments_of_sets(x_N1, torch.arange(len(rows)) % 2, 2, torch.zeros(1).double())
    for other in others:
        torch.testing.assert_close(other.log_marginal(moments), full.log_marginal(moments), atol=1e-8, rtol=1e-9)
        torch.testing.assert_close(other.mode(moments).log_density(x_N1), full.mode(moments).log_density(x_N1))
        mine, theirs = other.predictive(moments), full.predictive(moments)
        torch.testing.assert_close(mine.log_density(x_N1), theirs.log_density(x_N1))


@pytest.mark.parametrize("kind", ["full", "diagonal", "spherical"])
def test_a_prior_of_many_rows_is_the_tied_one(kind: str) -> None:
    """With nu large and psi = nu S, covariances cannot leave S; without correlations every family can say so."""
    nu = 1e9
    variance_D = torch.full((3,), 0.8).double() if kind == "spherical" else torch.tensor([0.5, 1.0, 2.0]).double()
    prior = {
        "full": NIW(MEAN_D, 0.7, nu, nu * variance_D.diag()),
        "diagonal": Diagonal(MEAN_D, 0.7, nu, nu * variance_D),
        "spherical": Spherical(MEAN_D, 0.7, nu, nu * 0.8),
    }[kind]
    moments = moments_of_sets(_rows(6), torch.arange(6) % 2, 2, MEAN_D)
    tied = Tied(MEAN_D, 0.7, 5.0, variance_D.diag(), variance_D.diag())
    torch.testing.assert_close(prior.log_marginal(moments), tied.log_marginal(moments), atol=1e-4, rtol=0)
    mode, expected = prior.mode(moments), tied.mode(moments)
    torch.testing.assert_close(mode.covariance_KDD, expected.covariance_KDD, atol=1e-6, rtol=0)
    torch.testing.assert_close(mode.mean_KD, expected.mean_KD)


@each_family
def test_an_empty_set_says_nothing(kind: str) -> None:
    prior = _prior(kind)
    assert prior.log_marginal(_empty(prior)).tolist() == [0.0]
    mode = prior.mode(_empty(prior))
    assert mode.mean_KD.tolist() == [[0.0] * 3]
    expected_D = {"full": PSI_DD.diagonal() / 9.5, "diagonal": PSI_DD.diagonal() / 5.5, "tied": PSI_DD.diagonal()}
    expected_D["spherical"] = torch.full((3,), 2.2 / 8.5).double()
    torch.testing.assert_close(mode.covariance_KDD[0].diagonal(), expected_D[kind])


@each_family
def test_sets_do_not_see_each_other_nor_the_order_of_rows(kind: str) -> None:
    prior, x_ND, set_N = _prior(kind), _rows(30), torch.arange(30) % 4
    whole = _moments(prior, x_ND, set_N)
    order_N = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled = _moments(prior, x_ND[order_N[:11]], set_N[order_N[:11]]) + _moments(
        prior, x_ND[order_N[11:]], set_N[order_N[11:]]
    )
    torch.testing.assert_close(prior.log_marginal(shuffled), prior.log_marginal(whole))
    alone = torch.cat([prior.log_marginal(_moments(prior, x_ND[set_N == k])) for k in range(4)])
    torch.testing.assert_close(alone, prior.log_marginal(whole))


@pytest.mark.parametrize("kind", ["diagonal", "spherical"])
def test_variances_alone_suffice(kind: str) -> None:
    prior, x_ND, set_N = _prior(kind), _rows(20), torch.arange(20) % 3
    assert prior.diagonal
    whole = moments_of_sets(x_ND, set_N, 3, MEAN_D)
    variances = moments_of_sets(x_ND, set_N, 3, MEAN_D, diagonal=True)
    torch.testing.assert_close(prior.log_marginal(variances), prior.log_marginal(whole))
    torch.testing.assert_close(prior.mode(variances).chol_KDD, prior.mode(whole).chol_KDD)
    torch.testing.assert_close(prior.fitted_to(variances).tensors(), prior.fitted_to(whole).tensors())


@each_family
@given(seed=st.integers(0, 20), first=st.integers(1, 20), second=st.integers(1, 20), apart=st.floats(0, 8))
def test_a_split_and_its_merge_change_the_log_joint_by_opposite_ratios(
    kind: str, seed: int, first: int, second: int, apart: float
) -> None:
    prior, x_ND = _prior(kind), _rows(first + second, seed)
    x_ND[first:] += apart
    pair = _moments(prior, x_ND, (torch.arange(first + second) >= first).long())
    left, right = pair[torch.tensor([0])], pair[torch.tensor([1])]
    split = log_split_ratio(prior, 10.0, left, right).item()  # type: ignore[arg-type]
    merge = log_joint(prior, 10.0, left + right) - log_joint(prior, 10.0, pair)  # type: ignore[arg-type]
    assert split == pytest.approx(-merge, abs=1e-7)
    assert log_split_ratio(prior, 10.0, right, left).item() == pytest.approx(split, abs=1e-9)  # type: ignore[arg-type]


@each_family
def test_results_do_not_depend_on_the_batches(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, x_ND, set_N = _prior(kind), _rows(60), torch.arange(60) % 10
    moments = _moments(prior, x_ND, set_N)
    results = [prior.log_marginal(moments), prior.mode(moments).chol_KDD, prior.predictive(moments).chol_KDD]
    monkeypatch.setattr(batches_module, "_BYTES", 3 * batches_module._TEMPORARIES * 8 * 9)
    assert [len(part) for _, part in batches_module.batches(moments)] == [3, 3, 3, 1]
    again = [prior.log_marginal(moments), prior.mode(moments).chol_KDD, prior.predictive(moments).chol_KDD]
    torch.testing.assert_close(again, results)


@each_family
def test_tensors_restore_the_prior(kind: str) -> None:
    prior = _prior(kind)
    assert isinstance(prior, Prior)
    restored = load_prior(kind, prior.tensors())  # type: ignore[arg-type]
    assert type(restored) is type(prior)
    moments = _moments(prior, _rows(5))
    assert restored.log_marginal(moments).tolist() == prior.log_marginal(moments).tolist()
    assert all(value.is_contiguous() for value in prior.tensors().values())


@each_family
@pytest.mark.parametrize("case", ["one row", "duplicates", "constant dimension", "fewer rows than dimensions", "far"])
def test_degenerate_sets_have_finite_answers(kind: str, case: str) -> None:
    x_ND = {
        "one row": _rows(1),
        "duplicates": _rows(1).repeat(20, 1),
        "constant dimension": _rows(20) * torch.tensor([1.0, 0.0, 1.0]),
        "fewer rows than dimensions": _rows(2),
        "far": _rows(20) + 1e6,
    }[case]
    prior = _prior(kind)
    moments = Moments.cat([_moments(prior, x_ND), _empty(prior)])
    for each in (prior, prior.fitted_to(moments)):
        assert torch.isfinite(each.log_marginal(moments)).all()
        assert torch.isfinite(each.mode(moments).log_density(x_ND)).all()
        assert torch.isfinite(each.predictive(moments).log_density(x_ND)).all()
        assert all(torch.isfinite(value).all() for value in each.tensors().values())
