from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.dpm.valley import SampledGroups, valley_depth


def _normal(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _depth(a_n: Tensor, b_m: Tensor) -> float:
    return valley_depth(a_n, b_m, torch.ones_like(a_n), torch.ones_like(b_m))


def test_two_separated_normals_have_the_valley_of_their_densities() -> None:
    """At four deviations between the means: log phi(0) + phi(4) over 2 phi(2), widened by the kernel's variance."""
    width = 1.06 * 40_000**-0.2
    spread = math.hypot(1, width)
    peak, valley = 1 + math.exp(-8 / spread**2), 2 * math.exp(-2 / spread**2)
    depth = _depth(_normal(40_000, 0), _normal(40_000, 1) + 4)
    assert depth == pytest.approx(math.log(peak / valley), abs=0.08)


def test_halves_of_one_normal_have_no_valley() -> None:
    z_n = _normal(4000, 0)
    assert _depth(z_n[z_n < 0], z_n[z_n >= 0]) < 0.02


def test_few_rows_show_shallow_valleys() -> None:
    few = _depth(_normal(5, 0), _normal(5, 1) + 100)
    assert 0.5 < few <= math.log(5 * math.sqrt(2) + 1)
    assert _depth(_normal(500, 0), _normal(500, 1) + 100) > 5


def test_a_row_that_stands_for_two_counts_twice() -> None:
    """In where the quartiles and the density are, although not in how sure they are."""
    a_n, b_m = _normal(300, 0), _normal(300, 1) + 4
    twice = valley_depth(a_n.repeat(2), b_m, torch.full((600,), 0.5).double(), torch.ones(300).double())
    assert twice == pytest.approx(_depth(a_n, b_m), abs=0.3)
    light = valley_depth(a_n, b_m, torch.full((300,), 0.01).double(), torch.ones(300).double())
    assert light < _depth(a_n, b_m) - 0.3


@given(scale=st.floats(1e-6, 1e6), shift=st.floats(-100, 100), flip=st.booleans())
def test_depth_has_no_unit_origin_or_side(scale: float, shift: float, flip: bool) -> None:
    a_n, b_m = _normal(200, 2), _normal(200, 3) + 3
    other = [(-1 if flip else 1) * scale * (z + shift) for z in ((b_m, a_n) if flip else (a_n, b_m))]
    assert _depth(*other) == pytest.approx(_depth(a_n, b_m), rel=0.05)


def test_equal_numbers_have_no_valley() -> None:
    assert _depth(torch.ones(5).double(), torch.ones(3).double()) == 0.0
    assert math.isfinite(_depth(torch.ones(5).double(), torch.zeros(3).double()))


def test_medians_that_differ_by_which_side_is_counted_from_have_a_depth() -> None:
    """The lower median of the first is above that of the second, and its upper median below."""
    first, second = torch.tensor([0.0, 3.0]).double(), torch.tensor([-1.0, 4.0]).double()
    assert _depth(first, second) == _depth(second, first) >= 0


def test_joined_groups_have_the_moments_of_their_union() -> None:
    x_MD = torch.randn(90, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0])
    component_M = torch.arange(90) % 3
    groups = SampledGroups.of(x_MD, component_M, torch.full((3,), 1 / 3).double(), 1000)
    groups.valley(0, 2)
    groups.join(0, 2)
    union_nD = x_MD[component_M != 1].double()
    mean_D, cov_DD = groups._moments(0)
    torch.testing.assert_close(mean_D + groups.origin_D, union_nD.mean(dim=0))
    floor_DD = groups.floor * torch.eye(3).double()
    torch.testing.assert_close(cov_DD - floor_DD, torch.cov(union_nD.T, correction=0), rtol=1e-6, atol=1e-9)
    assert len(groups.row[0]) == 60


def test_a_group_without_rows_has_an_infinite_valley() -> None:
    groups = SampledGroups.of(torch.randn(9, 2), torch.zeros(9).long(), torch.tensor([0.5, 0.5]).double(), 1000)
    assert groups.valley(0, 1) == math.inf
