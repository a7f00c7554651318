"""Groups of clusters that are likelier as one: what a branch gains, and what is left alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dpm.agglomerate import Group, agglomerate
from models.dpm.moves import log_joint, merge_proposals, neighbor_pairs
from models.dpm.prior import NIW
from models.moments import Moments, moments_of_sets

PRIOR = NIW(torch.zeros(2).double(), 1.0, 4.0, torch.eye(2).double())


def _groups(clusters: Moments, pair_P2: torch.Tensor, *, only_gains: bool = False) -> list[Group]:
    proposals = merge_proposals(PRIOR, 10.0, clusters, pair_P2)
    return agglomerate(PRIOR, 10.0, clusters, proposals, only_gains=only_gains)


def _slices(count: int, rows: int = 4000) -> Moments:
    """One Gaussian cloud cut into slices of equal size along its first axis."""
    x_ND = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    set_N = (x_ND[:, 0].argsort().argsort() * count) // rows
    return moments_of_sets(x_ND, set_N, count, PRIOR.mean_D)


def _chain(count: int) -> torch.Tensor:
    return torch.stack([torch.arange(count - 1), torch.arange(1, count)], dim=1)


def test_the_gain_of_a_branch_is_that_of_the_log_joint() -> None:
    slices = _slices(6)
    ((group, gain),) = _groups(slices, _chain(6))
    assert group == list(range(6))
    assert gain == pytest.approx(log_joint(PRIOR, 10.0, slices.total()) - log_joint(PRIOR, 10.0, slices), abs=1e-8)


def test_a_branch_leaves_a_far_cluster_alone() -> None:
    far = Moments(
        torch.tensor([50.0]).double(), torch.full((1, 2), 5000.0).double(), torch.full((1, 2, 2), 5e5).double()
    )
    ((group, _),) = _groups(Moments.cat([_slices(5), far]), _chain(6))
    assert group == list(range(5))


def test_clusters_that_are_apart_stay_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(300, 2, generator=generator, dtype=torch.float64)
    set_N = torch.arange(300) % 3
    x_ND += 30.0 * set_N[:, None]
    assert _groups(moments_of_sets(x_ND, set_N, 3, PRIOR.mean_D), _chain(3)) == []


@pytest.mark.parametrize("only_gains", [False, True])
@settings(max_examples=40)
@given(seed=st.integers(0, 999), count=st.integers(2, 12), spread=st.floats(0, 4))
def test_groups_are_disjoint_and_gain_exactly_what_they_say(
    only_gains: bool, seed: int, count: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    set_N = torch.arange(10 * count) % count
    x_ND = torch.randn(10 * count, 2, generator=generator, dtype=torch.float64)
    x_ND += (spread * torch.randn(count, 2, generator=generator, dtype=torch.float64))[set_N]
    clusters = moments_of_sets(x_ND, set_N, count, PRIOR.mean_D)
    groups = _groups(clusters, neighbor_pairs(clusters.mean_KD, 3), only_gains=only_gains)
    members = [k for group, _ in groups for k in group]
    assert len(members) == len(set(members))
    assert [group for group, _ in groups] == sorted(group for group, _ in groups)
    for group, gain in groups:
        parts = clusters[torch.tensor(group)]
        assert len(group) > 1
        assert gain > 0
        assert gain == pytest.approx(log_joint(PRIOR, 10.0, parts.total()) - log_joint(PRIOR, 10.0, parts), abs=1e-7)


def test_joining_gains_alone_misses_a_branch_whose_pairs_refuse() -> None:
    """A cloud cut into its core and three sectors around it: no two of them want to merge, and all together do."""
    x_ND = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sector_N = ((torch.atan2(x_ND[:, 1], x_ND[:, 0]) / (2 * math.pi) + 0.5) * 3).long().clamp_max(2)
    clusters = moments_of_sets(x_ND, torch.where(x_ND.norm(dim=1) < 0.6, 3, sector_N), 4, PRIOR.mean_D)
    pair_P2 = torch.combinations(torch.arange(4))
    assert merge_proposals(PRIOR, 10.0, clusters, pair_P2).ratio_P.max() < -10
    assert _groups(clusters, pair_P2, only_gains=True) == []
    ((group, gain),) = _groups(clusters, pair_P2)
    assert group == [0, 1, 2, 3]
    assert gain > 100
