"""Components grouped anew beside clusters that there were."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import about, blobs, fitted, noise, ring, same_partition
from torch import Tensor

from models.dpm.grouping import Grouping, GroupingConfig, grouped
from models.dpm.regrouping import Holds
from models.gaussians import Gaussians

CONFIG = GroupingConfig()
NARROW = GroupingConfig(wide=2.0)  # planted components may be wide beside the data
Criterion = Literal["valley", "overlap", "shade"]


def _regrouped(
    rows: tuple[Tensor, Tensor], hold: list[int], free: list[bool] | bool, config: GroupingConfig = CONFIG
) -> Grouping:
    x_MD, component_M = rows
    free_K = torch.tensor([free] * len(hold) if isinstance(free, bool) else free)
    return grouped(*fitted(x_MD, component_M), x_MD.float(), component_M, config, Holds(torch.tensor(hold), free_K))


CROWD = about([[0, 0], [1, 0], [2, 1], [0, 3], [5, 5], [6, 6]], rows=100)  # one cluster, when nothing is held


@settings(deadline=None, max_examples=20)
@given(hold=st.lists(st.integers(-1, 3), min_size=6, max_size=6))
def test_where_nothing_is_free_nothing_changes(hold: list[int]) -> None:
    whole = _regrouped(CROWD, hold, False, NARROW)
    own = torch.tensor([each if each >= 0 else 10 + k for k, each in enumerate(hold)])
    assert same_partition(whole.cluster_K, own)
    assert whole.joins == ()


@settings(deadline=None, max_examples=30)
@given(hold=st.lists(st.integers(-1, 2), min_size=6, max_size=6), free=st.lists(st.booleans(), min_size=6, max_size=6))
def test_what_stays_is_neither_parted_nor_joined(hold: list[int], free: list[bool]) -> None:
    cluster_K = _regrouped(CROWD, hold, free, NARROW).cluster_K
    stays_k = torch.nonzero(~torch.tensor(free) & (torch.tensor(hold) >= 0)).flatten()
    assert same_partition(cluster_K[stays_k], torch.tensor(hold)[stays_k])


@pytest.mark.parametrize("rows", [CROWD, blobs(5, 3, 1.6), ring(2000, 1.0, 8, 0)], ids=["crowd", "blobs", "ring"])
def test_newborn_alone_are_grouped_as_if_there_had_been_no_clusters(rows: tuple[Tensor, Tensor]) -> None:
    count = int(rows[1].max()) + 1
    whole, plain = _regrouped(rows, [-1] * count, True), grouped(*fitted(*rows), rows[0].float(), rows[1], CONFIG)
    assert whole.joins == plain.joins != ()
    assert whole.cluster_K.tolist() == plain.cluster_K.tolist()
    assert whole.resolution == plain.resolution


@pytest.mark.parametrize("dim", [2, 10])
def test_a_newborn_joins_the_cluster_that_it_overlaps_and_no_other(dim: int) -> None:
    """Three old clusters, the first of two components; one newborn in the first's flank, one far from all."""
    rest = [0.0] * (dim - 1)
    rows = about([[0, *rest], [2, *rest], [20, *rest], [40, *rest], [1, *rest], [60, *rest]])
    whole = _regrouped(rows, [7, 7, 9, 4, -1, -1], [False] * 4 + [True] * 2)
    assert whole.cluster_K.tolist() == [0, 0, 1, 2, 0, 3]
    assert [(join.left, join.right, join.kind) for join in whole.joins if join.applied] == [(0, 4, "continuity")]
    assert whole.cut(0).tolist() == [0, 0, 1, 2, 3, 4]


@pytest.mark.parametrize("free", [True, False])
def test_a_newborn_is_no_bridge_between_two_old_clusters(free: bool) -> None:
    """Six deviations apart with a third cloud halfway: one cluster, if all three were newborn."""
    for place, expected in ((0.4, [0, 1, 1]), (-0.4, [0, 1, 0])):
        rows = about([[-3, 0], [3, 0], [place, 0]])
        assert _regrouped(rows, [-1, -1, -1], True).cluster_K.tolist() == [0, 0, 0]
        assert _regrouped(rows, [5, 6, -1], [free, free, True]).cluster_K.tolist() == expected


def test_a_bridge_of_several_newborn_does_not_join_either() -> None:
    rows = about([[-6, 0], [6, 0], [-4, 0], [-2, 0], [0.1, 0], [2, 0], [4, 0]])
    assert _regrouped(rows, [-1] * 7, True).cluster_K.tolist() == [0] * 7
    cluster_K = _regrouped(rows, [5, 6, *[-1] * 5], True).cluster_K
    assert set(cluster_K.tolist()) == {0, 1}
    assert cluster_K[0] != cluster_K[1]


def test_old_clusters_that_qualify_by_themselves_are_joined() -> None:
    rows = about([[0, 0], [0.3, 0], [30, 0]])
    assert _regrouped(rows, [5, 6, 7], True).cluster_K.tolist() == [0, 0, 1]
    assert _regrouped(rows, [5, 6, 7], False).cluster_K.tolist() == [0, 1, 2]


def _criterion(kind: Criterion, margin: float) -> tuple[tuple[Tensor, Tensor], GroupingConfig]:
    """Two components that `margin` times the least asked of them are joined by, and by nothing else."""
    if kind == "shade":  # a knot in the flank
        large, knot = noise(2000, 2, 0), 0.05 * noise(200, 2, 1) + torch.tensor([1.3, 0.0]).double()
        rows, only = (torch.cat([large, knot]), (torch.arange(2200) >= 2000).long()), {"overlap": 1e9, "wide": 2.0}
    else:
        rows, only = about([[0, 0], [3.8, 0]], 2000), {"bound": 1e9, "wide": 2.0}
    if kind == "overlap":
        gaussians = fitted(*rows)[1]
        means, covariance_KDD = gaussians.mean_KD, gaussians.covariance_KDD
        middle_DD, gap_D = covariance_KDD.mean(dim=0), means[1] - means[0]
        distance = gap_D @ torch.linalg.solve(middle_DD, gap_D) / 8
        distance += (middle_DD.logdet() - covariance_KDD.logdet().mean()) / 2
        return rows, GroupingConfig(overlap=math.exp(-distance) / margin, valley=1e9, **only)
    generous = GroupingConfig.model_validate(only | {"valley": 1e9} if kind == "valley" else only)
    (join,) = _regrouped(rows, [-1, -1], True, generous).joins
    height = join.height
    if kind == "shade":
        return rows, GroupingConfig.model_validate(only | {"bound": math.exp(-height) / margin})
    assert height > 0
    return rows, GroupingConfig.model_validate(only | {"valley": height * margin})


@pytest.mark.parametrize("kind", ["valley", "overlap", "shade"])
@pytest.mark.parametrize("free", [(True, True), (False, True)])
@pytest.mark.parametrize(
    ("margin", "joined"),
    [(0.4, ()), (0.6, ("same",)), (1.7, ("same", "newborn")), (2.3, ("same", "newborn", "different"))],
)
def test_clusters_are_kept_by_half_and_given_up_by_twice(
    kind: Criterion, free: tuple[bool, bool], margin: float, joined: tuple[str, ...]
) -> None:
    rows, config = _criterion(kind, margin)
    for relation, hold in (("same", [3, 3]), ("newborn", [3, -1]), ("different", [3, 8])):
        clusters = set(_regrouped(rows, hold, list(free), config).cluster_K.tolist())
        assert (len(clusters) == 1) == (relation in joined), relation


def test_a_cluster_keeps_its_pieces_by_way_of_newborn_ones() -> None:
    """A ring of eight pieces, two opposite ones newborn: the halves of the old cluster do not touch."""
    hold = [4, 4, 4, -1, 4, 4, 4, -1]
    assert _regrouped(ring(4000, 1.0, 8, 0), hold, True).cluster_K.tolist() == [0] * 8
    rows = ring(4000, 1.0, 8, 0)
    kept_M = (rows[1] != 3) & (rows[1] != 7)
    without = torch.tensor([0, 1, 2, -1, 3, 4, 5, -1])[rows[1][kept_M]]
    assert _regrouped((rows[0][kept_M], without), [4] * 6, True).cluster_K.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_newborn_inside_a_ring_that_stays_is_a_cluster_of_its_own() -> None:
    """Its mean is the ring's, so only the ring's pieces tell them apart; a ninth piece is part of the ring."""
    (x_MD, component_M), centre_MD = ring(4500, 3.0, 9, 0), 0.3 * noise(500, 2, 4)
    rows = torch.cat([x_MD, centre_MD]), torch.cat([component_M, torch.full((500,), 9)])
    whole = _regrouped(rows, [2] * 8 + [-1, -1], [False] * 8 + [True, True])
    assert whole.cluster_K.tolist() == [0] * 9 + [1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_components_only_names_them(seed: int) -> None:
    x_MD, component_M = blobs(12, 2, 3.0)
    generator = torch.Generator().manual_seed(seed)
    hold_K, free_K = torch.randint(-1, 4, (12,), generator=generator), torch.rand(12, generator=generator) < 0.6
    order_K = torch.randperm(12, generator=generator)  # old name of every new one
    whole = _regrouped((x_MD, component_M), hold_K.tolist(), free_K.tolist())
    other_rows = x_MD, torch.argsort(order_K)[component_M]
    other = _regrouped(other_rows, hold_K[order_K].tolist(), free_K[order_K].tolist())
    assert any(join.applied for join in whole.joins)
    assert same_partition(other.cluster_K, whole.cluster_K[order_K])


def test_wide_components_stay_where_they_were() -> None:
    whole = _regrouped(
        about([[0, 0], [1, 0], [0, 1], [1, 1], [0, 0]]), [3, 8, 3, -1, -1], True, GroupingConfig(wide=0.1)
    )
    assert whole.cluster_K.tolist() == [0, 1, 0, 2, 3]
    assert (whole.joins, whole.resolution) == ((), 0.0)


def test_of_many_components_only_the_neighbours_of_the_free_count() -> None:
    """Forty pairs that touch, held apart, so that what is not free is seen to stay; two of 82 are newborn."""
    centres = [[30.0 * (k // 2), float(k % 2)] for k in range(80)]
    rows = about([*centres, [300.5, 0.5], [-40.0, 0.0]], 40)
    whole = _regrouped(rows, [*range(80), -1, -1], [False] * 80 + [True, True])
    assert whole.cluster_K[:80].tolist() == list(range(80))
    assert int(whole.cluster_K[80]) in (20, 21)
    assert int(whole.cluster_K[81]) == 80


def test_components_without_rows_have_a_grouping() -> None:
    """One that stays with another, before it in the order of components and after, and one that is newborn."""
    x_MD, component_M = about([[0, 0], [9, 0]])
    mean_KD = torch.tensor([[0.0, 0], [0, 0], [9, 0], [9, 0], [0.5, 0]]).double()
    chol_KDD = torch.eye(2).double().repeat(5, 1, 1)
    weight_K = torch.tensor([0.2, 0.2, 0.2, 0.2, 0.2]).double()
    holds = Holds(torch.tensor([1, 1, 2, 2, -1]), torch.tensor([False] * 4 + [True]))
    model = Gaussians(torch.zeros(2).double(), mean_KD, chol_KDD)
    component_M = torch.tensor([1, 2])[component_M]
    whole = grouped(weight_K, model, x_MD.float(), component_M, CONFIG, holds)
    assert whole.cluster_K[:4].tolist() == [0, 0, 1, 1]
    assert not any(math.isnan(join.height) for join in whole.joins)
