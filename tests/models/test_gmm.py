"""EM against closed forms and scipy, and where covariances degenerate."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from torch import Tensor

from models.clusterer import NOISE, DataSummary, Update
from models.errors import ShoalError
from models.gaussians import Gaussians
from models.gmm import GMM, GMMConfig, GMMStats, start
from models.increment import Held


def gaussian(rows: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def summary(x_ND: Tensor, seed: int = 0) -> DataSummary:
    covariance_DD = torch.cov(x_ND.double().T, correction=0).reshape(x_ND.shape[1], -1)
    return DataSummary(len(x_ND), x_ND.double().mean(dim=0), covariance_DD, x_ND, seed)


def step(model: GMM, x_ND: Tensor) -> Update:
    return model.maximize(model.expect(x_ND, torch.arange(len(x_ND))), torch.Generator())


def passes(model: GMM, x_ND: Tensor, count: int) -> list[Update]:
    updates = []
    for _ in range(count):
        updates.append(step(model, x_ND))
        model = updates[-1].model  # type: ignore[assignment]
    return updates


def one_dimensional(*mean: float, weight: tuple[float, ...], floor: float = 1e-9) -> GMM:
    """Unit variances about origin 0."""
    gaussians = Gaussians(
        torch.zeros(1).double(), torch.tensor(mean).double()[:, None], torch.ones(len(mean), 1, 1).double()
    )
    config = GMMConfig(clusters=len(mean))
    return GMM(config, torch.tensor(weight).double().log(), gaussians, floor, -math.inf)


def covariance(model: GMM) -> Tensor:
    return model.gaussians.chol_KDD @ model.gaussians.chol_KDD.mT


def mean(model: GMM) -> Tensor:
    return model.gaussians.mean_KD + model.gaussians.origin_D


def test_one_component_is_the_mean_and_covariance_of_the_rows() -> None:
    x_ND = gaussian(50, 3) @ torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 3.0]]) + 7
    model = start(GMMConfig(clusters=1, floor=1e-12), summary(x_ND))
    torch.testing.assert_close(mean(model)[0], x_ND.double().mean(dim=0))
    torch.testing.assert_close(covariance(model)[0], torch.cov(x_ND.double().T, correction=0))


def test_statistics_by_hand() -> None:
    stats = one_dimensional(-1.0, 1.0, weight=(0.5, 0.5)).expect(torch.tensor([[0.0], [2.0]]), torch.arange(2))
    near = 1 / (1 + math.exp(-4))  # log density of 2 about 1 less about -1: (9 - 1) / 2
    assert stats.moments.count_K.tolist() == pytest.approx([0.5 + 1 - near, 0.5 + near])
    assert stats.moments.sum_KD.flatten().tolist() == pytest.approx([2 * (1 - near), 2 * near])
    assert stats.moments.second_KDD.flatten().tolist() == pytest.approx([4 * (1 - near), 4 * near])


def test_the_objective_is_the_log_likelihood_that_scipy_gives() -> None:
    x_ND = gaussian(60, 2)
    model = start(GMMConfig(clusters=3), summary(x_ND))
    density = sum(
        math.exp(log_weight) * multivariate_normal(mean_D.numpy(), covariance_DD.numpy()).pdf(x_ND.numpy())
        for log_weight, mean_D, covariance_DD in zip(
            model.log_weight_K.tolist(), mean(model), covariance(model), strict=True
        )
    )
    assert step(model, x_ND).objective == pytest.approx(float(np.log(density).sum()), rel=1e-9)


@given(seed=st.integers(0, 1000))
def test_no_pass_lowers_the_likelihood(seed: int) -> None:
    x_ND = gaussian(60, 2, seed)
    model = start(GMMConfig(clusters=3, restarts=1, floor=1e-12), summary(x_ND, seed))
    objectives = [update.objective for update in passes(model, x_ND, 6)]
    assert all(after >= before - 1e-6 for before, after in pairwise(objectives))
    assert objectives[-1] > objectives[0]


def test_settled_when_the_gain_per_row_is_below_the_tolerance() -> None:
    x_ND = gaussian(100, 2)
    updates = passes(start(GMMConfig(clusters=2, tolerance=0.01), summary(x_ND)), x_ND, 40)
    gains = [(after.objective - before.objective) / 100 for before, after in pairwise(updates)]
    assert not updates[0].settled
    assert [update.settled for update in updates[1:]] == [gain <= 0.01 for gain in gains]
    assert any(update.settled for update in updates)
    assert not updates[1].settled


def test_assignment_by_hand() -> None:
    found = one_dimensional(-1.0, 1.0, weight=(0.25, 0.75)).assign(torch.tensor([[0.0], [-3.0]]))
    assert found.cluster_N.tolist() == [1, 0]
    assert found.runner_up_N.tolist() == [0, 1]
    odds = math.exp(6) / 3  # densities of -3 about -1 and 1: exp((16 - 4) / 2); weights 1 to 3
    assert found.probability_N.tolist() == pytest.approx([0.75, odds / (1 + odds)])
    assert found.score_N.tolist() == pytest.approx([-0.5 * math.log(2 * math.pi) - d for d in (0.5, 2.0)])


def test_equal_components_share_a_row_and_the_first_has_it_in_any_block() -> None:
    x_ND = gaussian(100, 1)
    model = one_dimensional(0.0, 0.0, 0.0, weight=(1 / 3, 1 / 3, 1 / 3))
    for block_ND in (x_ND, x_ND[:1], x_ND[:7]):
        found = model.assign(block_ND)
        assert found.cluster_N.unique().tolist() == [0]
        assert found.runner_up_N.unique().tolist() == [1]
        assert found.probability_N.tolist() == pytest.approx([1 / 3] * len(block_ND))


def test_a_row_midway_between_mirrored_components_belongs_to_the_first_whatever_rounding_says() -> None:
    chol_DD = torch.eye(5).double() + 0.3 * gaussian(5, 5).double().tril()
    for seed in range(20):
        mean_KD = gaussian(2, 5, seed).double()
        gaussians = Gaussians(gaussian(1, 5, seed + 100)[0].double(), mean_KD, chol_DD.repeat(2, 1, 1))
        model = GMM(GMMConfig(clusters=2), torch.tensor([0.5, 0.5]).double().log(), gaussians, 1e-9, -math.inf)
        found = model.assign(mean(model).mean(dim=0, keepdim=True))
        assert (found.cluster_N.item(), found.runner_up_N.item()) == (0, 1)
        assert found.probability_N.item() == pytest.approx(0.5)


def test_components_that_start_without_rows_stay_inside_the_data() -> None:
    x_ND = torch.tensor([[100.0], [101.0]]).repeat(10, 1)
    model = start(GMMConfig(clusters=4), summary(x_ND))
    assert (model.log_weight_K == -math.inf).sum() == 2
    assert ((mean(model) >= 99.9) & (mean(model) <= 101.1)).all()


def test_a_component_without_rows_keeps_its_gaussian_at_weight_0_and_is_nobodys_runner_up() -> None:
    x_ND = gaussian(20, 1)
    model = step(one_dimensional(0.0, 1e6, weight=(0.5, 0.5)), x_ND).model
    assert isinstance(model, GMM)
    assert model.log_weight_K.exp().tolist() == [1.0, 0.0]
    assert mean(model)[1].item() == 1e6
    assert model.assign(x_ND).runner_up_N.unique().tolist() == [NOISE]
    assert math.isfinite(step(model, x_ND).objective)


def test_a_lone_component_has_no_runner_up() -> None:
    assert one_dimensional(0.0, weight=(1.0,)).assign(torch.zeros(3, 1)).runner_up_N.tolist() == [NOISE] * 3


@pytest.mark.parametrize(
    "x_ND",
    [
        torch.ones(20, 3),
        gaussian(2, 4).repeat(10, 1),
        gaussian(8, 30),
        torch.cat([gaussian(40, 2), torch.full((40, 1), 5.0)], dim=1),
        gaussian(40, 2)[:, [0, 1, 1]],
        gaussian(40, 3) * 1e12,
        gaussian(40, 3) * 1e-12,
    ],
    ids=["all equal", "two rows repeated", "D > N", "constant dimension", "repeated dimension", "huge", "tiny"],
)
def test_degenerate_rows_always_have_a_finite_fit(x_ND: Tensor) -> None:
    updates = passes(start(GMMConfig(clusters=3), summary(x_ND)), x_ND, 5)
    model = updates[-1].model
    assert isinstance(model, GMM)
    assert all(math.isfinite(update.objective) for update in updates)
    assert covariance(model).isfinite().all()
    assert model.assign(x_ND).probability_N.isfinite().all()


def test_the_fit_does_not_depend_on_the_unit_of_the_data() -> None:
    x_ND = torch.cat([gaussian(60, 2), gaussian(60, 2, seed=1) * 0.01 + 3])
    plain = passes(start(GMMConfig(clusters=2), summary(x_ND)), x_ND, 5)[-1].model
    scaled = passes(start(GMMConfig(clusters=2), summary(x_ND * 1024)), x_ND * 1024, 5)[-1].model
    assert isinstance(plain, GMM)
    assert isinstance(scaled, GMM)
    torch.testing.assert_close(covariance(scaled) / 1024**2, covariance(plain), rtol=1e-6, atol=1e-12)


def test_more_clusters_than_rows_is_refused() -> None:
    with pytest.raises(ShoalError, match="5 clusters"):
        start(GMMConfig(clusters=5), summary(gaussian(3, 2)))


def held(x_ND: Tensor, weight: float = 1.0) -> Held:
    none_N = torch.zeros(len(x_ND), dtype=torch.int64)
    return Held(x_ND, none_N, none_N, torch.full((len(x_ND),), weight, dtype=torch.float64), none_N.bool())


@pytest.mark.parametrize("rows", [0, 7, 60])
def test_a_refinement_is_an_m_step_and_then_new_shares_of_the_rows_at_hand(rows: int) -> None:
    x_ND = torch.cat([gaussian(30, 1) - 2, gaussian(30, 1, seed=1) + 2])
    model = one_dimensional(-1.0, 1.5, weight=(0.5, 0.5))
    row_N = torch.arange(60)
    found = model.refined(held(x_ND[:rows]), model.expect(x_ND, row_N), x_ND, torch.Generator())
    stepped = step(model, x_ND).model
    assert isinstance(found.model, GMM)
    assert isinstance(stepped, GMM)
    torch.testing.assert_close(found.model.tensors(), stepped.tensors())
    expected = model.expect(x_ND[rows:], row_N[rows:]) + stepped.expect(x_ND[:rows], row_N[:rows])
    torch.testing.assert_close(found.stats.tensors(), expected.tensors(), rtol=1e-12, atol=1e-12)
    assert torch.equal(found.component_N, stepped.assign(x_ND[:rows]).component_N)


def test_a_refinement_takes_out_no_more_than_was_put_in() -> None:
    """The row at hand was counted by an older model in one component, and would now be taken from the other."""
    model = one_dimensional(-5.0, 5.0, weight=(0.5, 0.5))
    others = one_dimensional(-5.0, 500.0, weight=(1.0, 1e-9)).expect(
        torch.tensor([[-5.0], [-4.0], [5.0]]), torch.arange(3)
    )
    found = model.refined(held(torch.tensor([[5.0]])), others, torch.empty(0, 1), torch.Generator())
    assert isinstance(found.stats, GMMStats)
    assert (found.stats.moments.count_K >= 0).all()
    assert float(found.stats.moments.count_K.sum()) == pytest.approx(3)


def test_a_mixture_of_no_components_is_refused() -> None:
    model = one_dimensional(0.0, 5.0, weight=(0.5, 0.5))
    with pytest.raises(ShoalError, match="0 of 2 components have rows left, and at least 1 is needed"):
        model.kept(torch.empty(0, dtype=torch.int64))
