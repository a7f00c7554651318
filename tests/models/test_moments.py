"""Moments by hand, their laws of addition, and where float64 about a near origin matters."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.moments import Moments, moments_of_sets, packed, sparse_moments, unpacked, weighted_moments, zeros


def _rows(count: int, seed: int = 0, dim: int = 3) -> Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def _sets(count: int, sets: int, seed: int = 0) -> Tensor:
    return torch.randint(0, sets, (count,), generator=torch.Generator().manual_seed(seed))


def _close(left: Moments, right: Moments) -> None:
    for name, value in left.tensors().items():
        torch.testing.assert_close(value, right.tensors()[name], rtol=1e-12, atol=1e-12)


def test_moments_by_hand() -> None:
    x_ND = torch.tensor([[1.0], [3.0], [10.0]])
    moments = moments_of_sets(x_ND, torch.tensor([0, 0, 2]), 3, torch.tensor([1.0], dtype=torch.float64))
    assert moments.count_K.tolist() == [2, 0, 1]
    assert moments.mean_KD.flatten().tolist() == [1.0, 0.0, 9.0]
    assert moments.second_KDD.flatten().tolist() == [4.0, 0.0, 81.0]
    assert moments.scatter_KDD.flatten().tolist() == [2.0, 0.0, 0.0]
    assert moments.variance_KD.flatten().tolist() == [2.0, 0.0, 0.0]


def test_diagonal_moments_by_hand() -> None:
    """Rows (1, 2) and (3, 6) about 0: squares 10 and 40; about their mean (2, 4), 2 and 8."""
    x_ND = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    moments = moments_of_sets(x_ND, torch.zeros(2).long(), 1, torch.zeros(2).double(), diagonal=True)
    assert moments.diagonal
    assert moments.second_KDD.tolist() == [[10.0, 40.0]]
    assert moments.scatter_KDD.tolist() == moments.variance_KD.tolist() == [[2.0, 8.0]]


def test_diagonal_moments_are_the_diagonals_of_whole_ones() -> None:
    x_ND, set_N, origin_D = _rows(40), _sets(40, 4), torch.ones(3).double()
    whole, thin = (moments_of_sets(x_ND, set_N, 4, origin_D, diagonal=diagonal) for diagonal in (False, True))
    assert not whole.diagonal
    assert thin.dim == whole.dim == 3
    torch.testing.assert_close(thin.second_KDD, whole.second_KDD.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(thin.variance_KD, whole.variance_KD)
    torch.testing.assert_close(thin.scatter_KDD, whole.scatter_KDD.diagonal(dim1=1, dim2=2))
    torch.testing.assert_close(thin.sum_KD, whole.sum_KD)


@pytest.mark.parametrize("diagonal", [False, True])
@given(cut=st.integers(0, 60), seed=st.integers(0, 5))
def test_moments_add_over_rows(diagonal: bool, cut: int, seed: int) -> None:
    x_ND, set_N = _rows(60, seed), _sets(60, 4, seed)
    origin_D = x_ND.double().mean(dim=0)
    parts = [
        moments_of_sets(x_ND[s], set_N[s], 4, origin_D, diagonal=diagonal) for s in (slice(0, cut), slice(cut, 60))
    ]
    whole = moments_of_sets(x_ND, set_N, 4, origin_D, diagonal=diagonal)
    _close(parts[0] + parts[1], whole)
    parts[1] += parts[0]
    _close(parts[1], whole)


def test_adding_in_place_changes_the_left_side_only() -> None:
    left, right = (
        moments_of_sets(_rows(5, seed), torch.zeros(5).long(), 1, torch.zeros(3).double()) for seed in (0, 1)
    )
    kept, other, total = left, {name: value.clone() for name, value in right.tensors().items()}, left + right
    left += right
    assert left is kept
    _close(left, total)
    assert all(torch.equal(right.tensors()[name], value) for name, value in other.items())


def test_the_total_is_the_union_and_cat_keeps_the_order() -> None:
    x_ND, set_N, origin_D = _rows(30), _sets(30, 3), torch.zeros(3).double()
    moments = moments_of_sets(x_ND, set_N, 3, origin_D)
    _close(moments.total(), moments_of_sets(x_ND, torch.zeros(30).long(), 1, origin_D))
    _close(Moments.cat([moments[torch.tensor([0])], moments[torch.tensor([1, 2])]]), moments)
    assert len(moments) == 3
    _close(Moments.from_tensors({f"a.{name}": value for name, value in moments.tensors().items()}, "a."), moments)


@pytest.mark.parametrize("diagonal", [False, True])
def test_weights_of_one_hot_rows_are_sets(diagonal: bool) -> None:
    x_ND, set_N, origin_D = _rows(50), _sets(50, 3), torch.full((3,), 0.5).double()
    weight_NK = torch.nn.functional.one_hot(set_N, 3).double()
    _close(
        weighted_moments(x_ND, weight_NK, origin_D, diagonal=diagonal),
        moments_of_sets(x_ND, set_N, 3, origin_D, diagonal=diagonal),
    )


def test_weighted_moments_by_hand() -> None:
    """Rows 1 and 3, weights 1/4 and 3/4: sum 10 / 4, squares 1 / 4 + 27 / 4."""
    moments = weighted_moments(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.25], [0.75]]), torch.zeros(1).double())
    assert (moments.count_K.item(), moments.sum_KD.item(), moments.second_KDD.item()) == (1.0, 2.5, 7.0)


@given(seed=st.integers(0, 30), keep=st.integers(1, 5))
def test_sparse_moments_are_those_of_the_dense_weights(seed: int, keep: int) -> None:
    x_ND, origin_D = _rows(25, seed), torch.full((3,), -1.0).double()
    weight_NK = torch.rand(25, 5, generator=torch.Generator().manual_seed(seed)).double()
    top_NC, set_NC = weight_NK.topk(keep, dim=1)
    dense_NK = torch.zeros_like(weight_NK).scatter(1, set_NC, top_NC)
    order_E = torch.randperm(25 * keep, generator=torch.Generator().manual_seed(seed + 1))
    row_E = torch.arange(25).repeat_interleave(keep)[order_E]
    found = sparse_moments(x_ND, row_E, set_NC.flatten()[order_E], top_NC.flatten()[order_E], 5, origin_D)
    _close(found, weighted_moments(x_ND, dense_NK, origin_D))


def test_sparse_moments_of_nothing_are_zeros() -> None:
    none = torch.empty(0, dtype=torch.int64)
    _close(sparse_moments(_rows(4), none, none, torch.empty(0), 2, torch.zeros(3).double()), zeros(2, 3))


def test_scatter_survives_an_offset_a_million_times_the_spread() -> None:
    x_ND = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    near = moments_of_sets(x_ND, torch.zeros(1000, dtype=torch.int64), 1, torch.zeros(2, dtype=torch.float64))
    offset_D = torch.full((2,), 1e6, dtype=torch.float64)
    far = moments_of_sets(x_ND + offset_D, torch.zeros(1000, dtype=torch.int64), 1, offset_D)
    torch.testing.assert_close(far.scatter_KDD, near.scatter_KDD, rtol=1e-8, atol=1e-6)


@pytest.mark.parametrize("diagonal", [False, True])
def test_float32_rows_are_summed_in_float64(diagonal: bool) -> None:
    """2^24 + 1 ones of float32 sum to 2^24: here 2^24 and then ones, in one set."""
    x_ND = torch.cat([torch.tensor([[2.0**24]]), torch.ones(9, 1)])
    moments = moments_of_sets(x_ND, torch.zeros(10).long(), 1, torch.zeros(1).double(), diagonal=diagonal)
    assert moments.sum_KD.item() == 2**24 + 9
    assert moments.second_KDD.item() == 2**48 + 9


def _stored(moments: Moments) -> Moments:
    return Moments.from_tensors(unpacked(packed(moments.tensors())))


def test_packing_halves_the_second_moments_and_costs_a_rounding() -> None:
    x_ND, set_N = torch.randn(900, 17, generator=torch.Generator().manual_seed(1)), torch.arange(900) % 3
    moments = moments_of_sets(x_ND, set_N, 3, x_ND.double().mean(dim=0))
    stored = packed(moments.tensors())
    assert stored.keys() == {"count_K", "sum_KD", "second_KT"}
    assert stored["second_KT"].shape == (3, 17 * 18 // 2)
    again = _stored(moments)
    assert torch.equal(again.second_KDD, again.second_KDD.mT)
    assert (again.count_K is moments.count_K, again.sum_KD is moments.sum_KD) == (True, True)
    scale = float(moments.second_KDD.abs().max())
    torch.testing.assert_close(again.second_KDD, moments.second_KDD, rtol=0, atol=1e-15 * scale)


def test_what_was_packed_once_loses_nothing_more() -> None:
    x_ND, weight_NK = torch.randn(200, 9, generator=torch.Generator().manual_seed(2)), torch.rand(200, 4)
    once = _stored(weighted_moments(x_ND, weight_NK, torch.zeros(9).double()))
    assert torch.equal(_stored(once).second_KDD, once.second_KDD)


@settings(deadline=None)
@given(cut=st.integers(1, 299))
def test_packed_moments_add_up_to_one_pass(cut: int) -> None:
    x_ND, set_N = torch.randn(300, 6, generator=torch.Generator().manual_seed(3)) + 5, torch.arange(300) % 4
    origin_D = torch.zeros(6).double()
    first, second = (
        _stored(moments_of_sets(x_ND[part], set_N[part], 4, origin_D)) for part in (slice(cut), slice(cut, None))
    )
    whole = moments_of_sets(x_ND, set_N, 4, origin_D)
    torch.testing.assert_close((first + second).second_KDD, whole.second_KDD, rtol=1e-12, atol=0)


def test_packing_leaves_diagonals_and_other_tensors_and_goes_by_the_end_of_a_name() -> None:
    diagonal = {"second_KDD": torch.ones(3, 5).double(), "runner_up_K": torch.zeros(3)}
    assert packed(diagonal) == unpacked(diagonal) == diagonal
    named = {"stats.second_KDD": torch.eye(2).double()[None]}
    assert packed(named)["stats.second_KT"].tolist() == [[1, 0, 1]]
    assert torch.equal(unpacked(packed(named))["stats.second_KDD"], named["stats.second_KDD"])
