from __future__ import annotations

import itertools
import math

import pytest
import torch
from planted import blobs, fitted, noise, ring, same_partition
from torch import Tensor

from models.dpm import overlap
from models.dpm.grouping import Grouping, GroupingConfig, grouped
from models.dpm.spread import blur
from models.gaussians import Gaussians

CONFIG = GroupingConfig()


def _grouped(x_MD: Tensor, component_M: Tensor, config: GroupingConfig = CONFIG) -> Grouping:
    return grouped(*fitted(x_MD, component_M), x_MD.float(), component_M, config)


def _rings() -> tuple[Tensor, Tensor]:
    (inner, first), (outer, second) = ring(3000, 1.0, 8, 0), ring(3000, 3.0, 8, 1)
    return torch.cat([inner, outer]), torch.cat([first, second + 8])


def test_blur_by_hand() -> None:
    """Two components of variance 1 at -3 and 3: V = 1, T = 10, so 10 (1/11)^(2/3) 0.9."""
    mean_KD, weight_K = torch.tensor([[-3.0], [3.0]]).double(), torch.tensor([0.5, 0.5]).double()
    value = blur(weight_K, mean_KD, torch.ones(2, 1, 1).double())
    assert value == pytest.approx(10 * (1 / 11) ** (2 / 3) * 0.9)
    assert blur(weight_K, 0 * mean_KD, torch.ones(2, 1, 1).double()) == 0.0


@pytest.mark.parametrize("arc", [0.55, 1.0])
def test_pieces_of_a_curve_are_one_cluster(arc: float) -> None:
    """By continuity alone: a banana, and a ring."""
    whole = _grouped(*ring(4000, 1.0, 8, 0, arc))
    assert whole.cluster_K.tolist() == [0] * 8
    assert [join.kind for join in whole.joins] == ["continuity"] * 7


def test_concentric_rings_stay_two() -> None:
    assert _grouped(*_rings()).cluster_K.tolist() == [0] * 8 + [1] * 8


def test_separated_gaussians_stay_apart() -> None:
    whole = _grouped(*blobs(6, 5, 6.0))
    assert whole.cluster_K.tolist() == list(range(6))
    assert len(whole.joins) == 5
    assert whole.cut(5).tolist() == [0] * 6


def test_close_means_of_different_shapes_stay_apart_in_many_dimensions() -> None:
    """Means 0.55 per coordinate, spreads 0.6 to 1.2: no axis has a valley, and yet rows hardly ever overlap."""
    dim, count = 20, 12
    generator = torch.Generator().manual_seed(7)
    component_M = torch.arange(6000) % count
    mean_KD = 0.55 * torch.randn(count, dim, generator=generator, dtype=torch.float64)
    scale_K11 = 0.6 + 0.6 * torch.rand(count, 1, 1, generator=generator, dtype=torch.float64)
    shape_KDD = 0.15 * torch.randn(count, dim, dim, generator=generator, dtype=torch.float64)
    shape_KDD = shape_KDD + scale_K11 * torch.eye(dim).double()
    z_MD = torch.randn(6000, dim, generator=generator, dtype=torch.float64)
    x_MD = mean_KD[component_M] + (shape_KDD[component_M] @ z_MD[..., None])[..., 0]
    assert _grouped(x_MD, component_M).cluster_K.tolist() == list(range(count))
    assert _grouped(x_MD, component_M, GroupingConfig(wide=2.0)).cluster_K.tolist() == list(range(count))
    ungated = _grouped(x_MD, component_M, GroupingConfig(overlap=0.0, wide=2.0))
    assert int(ungated.cluster_K.max()) + 1 < count  # so it is the overlap that keeps them apart


def test_a_knot_in_a_large_cluster_is_shade() -> None:
    """A dense knot in the flank has a valley beside it; blurred, it is part of its cluster. Other clusters are not."""
    large, knot, far = noise(4000, 2, 0), 0.05 * noise(400, 2, 1), noise(4000, 2, 2)
    knot[:, 0] += 1.3
    far[:, 0] += 9
    x_MD, component_M = torch.cat([large, knot, far]), torch.tensor([0] * 4000 + [1] * 400 + [2] * 4000)
    whole = _grouped(x_MD, component_M)
    assert whole.cluster_K.tolist() == [0, 0, 1]
    assert [(join.left, join.right, join.kind) for join in whole.joins if join.applied] == [(0, 1, "shade")]
    assert whole.joins[0].height <= -math.log(0.7) < whole.joins[1].height
    assert 0.05 < whole.resolution < 9


def test_cuts_are_nested() -> None:
    whole = _grouped(*_rings())
    cuts = [whole.cut(count) for count in range(len(whole.joins) + 1)]
    for count, (finer, coarser) in enumerate(itertools.pairwise(cuts)):
        assert int(finer.max()) + 1 == 16 - count
        assert bool(((finer[:, None] != finer) | (coarser[:, None] == coarser)).all())
    applied = sum(join.applied for join in whole.joins)
    assert 0 < applied < len(whole.joins)
    assert torch.equal(cuts[applied], whole.cluster_K)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_components_only_names_them(seed: int) -> None:
    x_MD, component_M = _rings()
    order_K = torch.randperm(16, generator=torch.Generator().manual_seed(seed))  # old name of every new one
    whole, other = _grouped(x_MD, component_M), _grouped(x_MD, torch.argsort(order_K)[component_M])
    assert same_partition(other.cluster_K, whole.cluster_K[order_K])
    for count in range(len(whole.joins)):
        assert same_partition(other.cut(count), whole.cut(count)[order_K])


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e4])
def test_rotation_shift_and_unit_change_nothing(unit: float) -> None:
    (x_MD, component_M), turn_DD = blobs(5, 3, 3.0), torch.linalg.qr(noise(3, 3, 9))[0]
    whole, other = _grouped(x_MD, component_M), _grouped(unit * (x_MD @ turn_DD + 3), component_M)
    assert len({int(each) for each in whole.cluster_K}) in (2, 3, 4)  # some are joined and some are not
    assert [(a.left, a.right, a.kind, a.applied) for a in whole.joins] == [
        (b.left, b.right, b.kind, b.applied) for b in other.joins
    ]
    assert [a.height for a in other.joins] == pytest.approx([b.height for b in whole.joins], abs=1e-2)
    assert other.resolution == pytest.approx(unit * whole.resolution)


def test_the_order_of_rows_changes_nothing_while_all_are_used() -> None:
    x_MD, component_M = _rings()
    order_M = torch.randperm(len(x_MD), generator=torch.Generator().manual_seed(0))
    whole, other = _grouped(x_MD, component_M), _grouped(x_MD[order_M], component_M[order_M])
    assert [(a.left, a.right, a.applied) for a in other.joins] == [(b.left, b.right, b.applied) for b in whole.joins]


def test_neighbours_alone_give_what_all_pairs_give_where_far_overlaps_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten rings of seven pieces, far apart: K = 70, and the six others of its ring are a piece's nearest."""
    parts = [ring(1400, 1.0, 7, seed) for seed in range(10)]
    x_MD = torch.cat([x_M2 + torch.tensor([40.0 * i, 0.0]) for i, (x_M2, _) in enumerate(parts)])
    component_M = torch.cat([piece_M + 7 * i for i, (_, piece_M) in enumerate(parts)])
    near = _grouped(x_MD, component_M)
    monkeypatch.setattr(overlap, "_ALL_PAIRS", 70)
    every = _grouped(x_MD, component_M)
    assert near.cluster_K.tolist() == every.cluster_K.tolist() == [i // 7 for i in range(70)]
    assert [join for join in near.joins if join.applied] == [join for join in every.joins if join.applied]


def test_one_component_is_one_cluster() -> None:
    whole = _grouped(*blobs(1, 2, 1.0))
    assert whole.cluster_K.tolist() == [0]
    assert whole.joins == ()
    assert whole.resolution == 0.0


def test_student_scales_are_widened_to_covariances() -> None:
    x_MD, component_M = blobs(4, 2, 3.0)
    weight_K, plain = fitted(x_MD, component_M)
    degrees_K = torch.tensor([4.0, 5.0, 6.0, 1e9]).double()
    narrow = (1 - 2 / degrees_K).sqrt()[:, None, None] * plain.chol_KDD
    student = Gaussians(plain.origin_D, plain.mean_KD, narrow, degrees_K)
    whole = grouped(weight_K, plain, x_MD.float(), component_M, CONFIG)
    other = grouped(weight_K, student, x_MD.float(), component_M, CONFIG)
    assert [each.height for each in other.joins] == pytest.approx([each.height for each in whole.joins])
    assert other.resolution == pytest.approx(whole.resolution)
    narrower = grouped(weight_K, Gaussians(plain.origin_D, plain.mean_KD, narrow), x_MD.float(), component_M, CONFIG)
    assert narrower.resolution != pytest.approx(whole.resolution, rel=1e-3)


def test_diagonal_covariances_are_full_ones_with_zeros() -> None:
    x_MD, component_M = blobs(5, 3, 1.6)
    weight_K, full = fitted(x_MD, component_M)
    std_KD = full.covariance_KDD.diagonal(dim1=1, dim2=2).sqrt()
    models = (Gaussians(full.origin_D, full.mean_KD, chol) for chol in (std_KD, torch.diag_embed(std_KD)))
    first, second = (grouped(weight_K, model, x_MD.float(), component_M, CONFIG) for model in models)
    assert first.cluster_K.tolist() == second.cluster_K.tolist()
    assert [each.height for each in first.joins] == pytest.approx([each.height for each in second.joins])


def test_degenerate_components_have_a_grouping() -> None:
    """Equal ones, a flat one, one that is a point, one without rows, and a constant dimension."""
    x_MD = torch.cat([noise(100, 2, 0), torch.zeros(100, 1)], dim=1).float()
    component_M = torch.arange(100) % 2
    mean_KD = torch.tensor([[0.0, 0, 0], [0.0, 0, 0], [9.0, 0, 0], [0.0, 9, 0], [0.0, 0, 9]]).double()
    std_KD = torch.tensor([[1.0, 1, 0], [1.0, 1, 0], [1.0, 0, 0], [0.0, 0, 0], [1.0, 1, 1]]).double()
    weight_K = torch.tensor([0.4, 0.4, 0.1, 0.1, 0.0]).double()
    for chol in (torch.diag_embed(std_KD), std_KD):
        whole = grouped(weight_K, Gaussians(torch.zeros(3).double(), mean_KD, chol), x_MD, component_M, CONFIG)
        assert whole.cluster_K[0] == whole.cluster_K[1]
        assert len(set(whole.cluster_K[1:4].tolist())) == 3
        assert not any(math.isnan(join.height) for join in whole.joins)


def test_rows_that_are_all_equal_have_a_grouping() -> None:
    zero = torch.zeros(3, 2).double()
    same = grouped(
        torch.ones(3).double(), Gaussians(zero[0], zero, torch.diag_embed(zero)), zero.float(), torch.arange(3), CONFIG
    )
    assert same.cluster_K.tolist() == [0, 0, 0]
    assert same.resolution == pytest.approx(0.0, abs=1e-50)
