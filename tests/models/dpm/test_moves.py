from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.dpm.agglomerate import agglomerate
from models.dpm.moves import disjoint_pairs, log_joint, log_split_ratio
from models.dpm.prior import NIW
from models.moments import Moments, moments_of_sets

PRIOR = NIW(torch.zeros(2).double(), 1.0, 4.0, torch.eye(2).double())


def _pair(seed: int, first: int, second: int, apart: float) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    x_ND = torch.randn(first + second, 2, generator=generator, dtype=torch.float64)
    x_ND[first:] += apart
    set_N = (torch.arange(first + second) >= first).long()
    return moments_of_sets(x_ND, set_N, 2, PRIOR.mean_D)


def test_log_split_ratio_by_hand() -> None:
    """ln alpha + ln G(2) + f(X1) + ln G(3) + f(X2) - ln G(5) - f(X) with alpha 10."""
    pair = _pair(0, 2, 3, 4.0)
    f1, f2 = PRIOR.log_marginal(pair).tolist()
    union = pair[torch.tensor([0])] + pair[torch.tensor([1])]
    expected = math.log(10) + 0 + f1 + math.log(2) + f2 - math.log(24) - PRIOR.log_marginal(union).item()
    ratio = log_split_ratio(PRIOR, 10.0, pair[torch.tensor([0])], pair[torch.tensor([1])])
    assert ratio.item() == pytest.approx(expected, abs=1e-10)


@given(seed=st.integers(0, 20), first=st.integers(1, 30), second=st.integers(1, 30), apart=st.floats(0, 8))
def test_a_split_changes_the_log_joint_by_its_log_ratio(seed: int, first: int, second: int, apart: float) -> None:
    pair = _pair(seed, first, second, apart)
    left, right = pair[torch.tensor([0])], pair[torch.tensor([1])]
    gain = log_joint(PRIOR, 10.0, pair) - log_joint(PRIOR, 10.0, left + right)
    assert log_split_ratio(PRIOR, 10.0, left, right).item() == pytest.approx(gain, abs=1e-8)


def test_an_empty_half_makes_a_split_impossible() -> None:
    pair = _pair(0, 5, 5, 0.0)
    empty = Moments(torch.zeros(1).double(), torch.zeros(1, 2).double(), torch.zeros(1, 2, 2).double())
    assert log_split_ratio(PRIOR, 10.0, pair[torch.tensor([0])], empty).item() == -math.inf


def test_far_clouds_prefer_two_clusters_and_one_cloud_prefers_one() -> None:
    far, near = _pair(0, 50, 50, 20.0), _pair(0, 50, 50, 0.0)
    one, two = torch.tensor([0]), torch.tensor([1])
    assert log_split_ratio(PRIOR, 10.0, far[one], far[two]).item() > 0
    assert log_split_ratio(PRIOR, 10.0, near[one], near[two]).item() < 0


def test_conflicting_merges_are_resolved_by_the_largest_gain() -> None:
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3], [4, 5]])
    assert disjoint_pairs(pairs, torch.tensor([1.0, 5.0, 2.0, 0.5])) == [1, 3]


def _slices(count: int, rows: int = 4000) -> Moments:
    """One Gaussian cloud cut into slices of equal size along its first axis."""
    x_ND = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    set_N = (x_ND[:, 0].argsort().argsort() * count) // rows
    return moments_of_sets(x_ND, set_N, count, PRIOR.mean_D)


def _chain(count: int) -> torch.Tensor:
    return torch.stack([torch.arange(count - 1), torch.arange(1, count)], dim=1)


def test_the_gain_of_a_branch_is_that_of_the_log_joint() -> None:
    slices = _slices(6)
    ((group, gain),) = agglomerate(PRIOR, 10.0, slices, _chain(6))
    assert group == list(range(6))
    assert gain == pytest.approx(log_joint(PRIOR, 10.0, slices.total()) - log_joint(PRIOR, 10.0, slices), abs=1e-8)


def test_a_branch_leaves_a_far_cluster_alone() -> None:
    far = Moments(
        torch.tensor([50.0]).double(), torch.full((1, 2), 5000.0).double(), torch.full((1, 2, 2), 5e5).double()
    )
    ((group, _),) = agglomerate(PRIOR, 10.0, Moments.cat([_slices(5), far]), _chain(6))
    assert group == list(range(5))


def test_clusters_that_are_apart_stay_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    set_N = torch.arange(300) % 3
    x_ND += 30.0 * set_N[:, None]
    assert agglomerate(PRIOR, 10.0, moments_of_sets(x_ND, set_N, 3, PRIOR.mean_D), _chain(3)) == []
