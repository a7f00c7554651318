from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.dpm.moves import disjoint_pairs, log_joint, log_split_ratio
from models.dpm.prior import NIW
from models.gaussians import Moments, moments_of_sets

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
