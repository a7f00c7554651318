from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models import triangles


def test_triangles_by_hand() -> None:
    matrix_KDD = torch.tensor([[[1, 0, 0], [2, 3, 0], [4, 5, 6]]])
    assert triangles.packed(matrix_KDD).tolist() == [[1, 2, 3, 4, 5, 6]]
    assert torch.equal(triangles.unpacked(torch.arange(1, 7)[None]), matrix_KDD)
    assert triangles.unpacked(torch.arange(1, 7)[None], symmetric=True).tolist() == [[[1, 2, 4], [2, 3, 5], [4, 5, 6]]]


@given(count=st.integers(0, 4), dim=st.integers(1, 40))
def test_nothing_is_lost(count: int, dim: int) -> None:
    matrix_KDD = torch.randn(count, dim, dim, generator=torch.Generator().manual_seed(dim), dtype=torch.float64)
    lower_KDD, both_KDD = matrix_KDD.tril(), matrix_KDD + matrix_KDD.mT
    assert triangles.packed(lower_KDD).shape == (count, dim * (dim + 1) // 2)
    assert torch.equal(triangles.unpacked(triangles.packed(lower_KDD)), lower_KDD)
    assert torch.equal(triangles.unpacked(triangles.packed(both_KDD), symmetric=True), both_KDD)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    assert triangles.unpacked(triangles.packed(torch.eye(3, dtype=dtype)[None])).dtype == dtype
