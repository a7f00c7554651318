from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.dpm import moves
from models.dpm.moves import (
    cluster_weight,
    disjoint_pairs,
    joint_of,
    log_joint,
    log_split_ratio,
    merge_proposals,
    neighbor_pairs,
)
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


@given(seed=st.integers(0, 20), first=st.integers(1, 30), second=st.integers(1, 30), apart=st.floats(0, 8))
def test_a_merge_is_worth_minus_its_split(seed: int, first: int, second: int, apart: float) -> None:
    pair = _pair(seed, first, second, apart)
    weight_K = cluster_weight(PRIOR, 10.0, pair)
    merge_P = merge_proposals(PRIOR, 10.0, pair, torch.tensor([[0, 1], [1, 0]]), weight_K).ratio_P
    split = log_split_ratio(PRIOR, 10.0, pair[torch.tensor([0])], pair[torch.tensor([1])]).item()
    assert merge_P.tolist() == pytest.approx([-split, -split], abs=1e-9)


def test_merge_ratios_do_not_depend_on_how_many_are_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    clusters = moments_of_sets(x_ND, torch.arange(60) % 6, 6, PRIOR.mean_D)
    pair_P2, weight_K = torch.combinations(torch.arange(6)), cluster_weight(PRIOR, 10.0, clusters)
    whole_P = merge_proposals(PRIOR, 10.0, clusters, pair_P2, weight_K).ratio_P
    assert whole_P.unique().numel() == 15
    monkeypatch.setattr(moves, "_BYTES", 4 * clusters.second_KDD[0].nbytes)
    torch.testing.assert_close(merge_proposals(PRIOR, 10.0, clusters, pair_P2, weight_K).ratio_P, whole_P)
    assert merge_proposals(PRIOR, 10.0, clusters, pair_P2[:0], weight_K).ratio_P.tolist() == []


def test_the_log_joint_by_hand() -> None:
    """Clusters of 2 and 3 rows, alpha 10: 10^2 1! 2! G(10) / G(15) times the marginal likelihoods."""
    pair = _pair(0, 2, 3, 4.0)
    expected = (
        2 * math.log(10) + math.log(2) + math.lgamma(10) - math.lgamma(15) + PRIOR.log_marginal(pair).sum().item()
    )
    assert log_joint(PRIOR, 10.0, pair) == pytest.approx(expected, abs=1e-10)
    assert joint_of(cluster_weight(PRIOR, 10.0, pair), 10.0, 5.0) == pytest.approx(expected, abs=1e-10)


def test_neighbours_make_each_pair_once() -> None:
    mean_KD = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    assert neighbor_pairs(mean_KD, 1).tolist() == [[0, 1], [2, 3]]
    assert neighbor_pairs(mean_KD, 2).tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3]]
    assert len(neighbor_pairs(mean_KD, 9)) == 6


def test_conflicting_merges_are_resolved_by_the_largest_gain() -> None:
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3], [4, 5]])
    assert disjoint_pairs(pairs, torch.tensor([1.0, 5.0, 2.0, 0.5])) == [1, 3]
