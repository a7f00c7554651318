"""PCA: by hand, by its laws, and where data is poor."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.errors import ShoalError
from models.pca import fit_pca, load_pca
from models.rows import BLOCK, in_blocks


def normal(rows: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def test_rows_on_a_line_by_hand() -> None:
    x_ND = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    pca = fit_pca(x_ND, 1)
    assert pca.direction_DC[:, 0].tolist() == pytest.approx([1 / math.sqrt(5), 2 / math.sqrt(5)])
    assert pca.transform(x_ND)[:, 0].tolist() == pytest.approx([-math.sqrt(5), 0.0, math.sqrt(5)], abs=1e-6)
    assert pca.fidelity == {"explained_variance": pytest.approx(1.0)}


def test_explained_variance_by_hand() -> None:
    x_ND = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # variances 4.5 and 0.5
    assert fit_pca(x_ND, 1).explained == pytest.approx(0.9)


@given(rows=st.integers(3, 30), dim=st.integers(1, 8), seed=st.integers(0, 99))
def test_components_are_uncorrelated_sorted_and_keep_distances(rows: int, dim: int, seed: int) -> None:
    x_ND = normal(rows, dim, seed)
    pca = fit_pca(x_ND, dim)
    z_NC = pca.transform(x_ND).double()
    covariance_CC = torch.cov(z_NC.T, correction=0).reshape(pca.dim, pca.dim)
    variance_C = covariance_CC.diagonal()
    torch.testing.assert_close(covariance_CC, variance_C.diag(), atol=1e-5, rtol=0)
    assert bool((variance_C.diff() < 1e-6).all())
    torch.testing.assert_close(torch.cdist(z_NC, z_NC), torch.cdist(x_ND.double(), x_ND.double()), atol=1e-4, rtol=0)


def test_signs_do_not_depend_on_the_solver() -> None:
    pca = fit_pca(normal(50, 6), 6)
    largest_C = pca.direction_DC.gather(0, pca.direction_DC.abs().argmax(dim=0)[None])
    assert bool((largest_C > 0).all())


def test_fewer_rows_than_dimensions_give_rows_minus_one_components() -> None:
    x_ND = normal(4, 10)
    pca = fit_pca(x_ND, 50)
    assert pca.transform(x_ND).shape == (4, 3) and pca.explained == pytest.approx(1.0)


def test_never_more_components_than_dimensions() -> None:
    assert fit_pca(normal(20, 5), 50).dim == 5


def test_constant_columns_get_no_weight() -> None:
    x_ND = torch.cat([normal(20, 2), torch.full((20, 2), 7.0)], dim=1)
    torch.testing.assert_close(fit_pca(x_ND, 2).direction_DC[2:], torch.zeros(2, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_all_alike_become_zeros(rows: int) -> None:
    x_ND = torch.full((rows, 3), 0.1)
    pca = fit_pca(x_ND, 2)
    torch.testing.assert_close(pca.transform(x_ND), torch.zeros(rows, pca.dim))
    assert pca.explained == 1.0


def test_a_small_variance_survives_a_large_mean() -> None:
    """In float32 the second moment would be 1e8 and its last digit 8."""
    x_ND = normal(5000, 2) * torch.tensor([0.1, 1.0]) + 1e4
    direction_D = fit_pca(x_ND, 1).direction_DC[:, 0]
    assert abs(float(direction_D[1])) > 0.99


def test_a_row_alone_is_the_row_among_others() -> None:
    x_ND = normal(3 * BLOCK // 2, 7)
    pca = fit_pca(x_ND, 3)
    together_NC = pca.transform(x_ND)
    assert torch.equal(torch.cat([pca.transform(part) for part in x_ND.split(97)]), together_NC)
    assert torch.equal(pca.transform(x_ND.flip(0)).flip(0), together_NC)


def test_blocks_of_no_rows_keep_the_width() -> None:
    assert in_blocks(lambda x_BD: x_BD[:, :2], torch.zeros(0, 5)).shape == (0, 2)


def test_what_was_saved_transforms_alike() -> None:
    x_ND = normal(30, 4)
    pca = fit_pca(x_ND, 2, note="It stands in: ≤ 2 rows.")
    again = load_pca(pca.tensors())
    assert torch.equal(again.transform(x_ND), pca.transform(x_ND))
    assert (again.note, again.fidelity, again.dim_in, again.dim) == (pca.note, pca.fidelity, 4, 2)


def test_rows_that_are_not_finite_or_not_as_wide_are_one_sentence() -> None:
    x_ND = normal(10, 4)
    pca = fit_pca(x_ND, 2)
    with pytest.raises(ShoalError, match="5-d but the reducer was fitted on 4-d"):
        pca.transform(normal(3, 5))
    x_ND[2, 1], x_ND[7, 0] = math.nan, math.inf
    with pytest.raises(ShoalError, match="2 of 10 embeddings hold NaN or infinity"):
        fit_pca(x_ND, 2)


@pytest.mark.parametrize(("dim", "components"), [(12, 6), (64, 1), (64, 8), (64, 64)])
def test_a_file_of_its_tensors_transforms_to_the_bit_alike(dim: int, components: int, tmp_path: Path) -> None:
    """A file keeps rows one after the other, however they lay in memory: a product of another layout rounds apart."""
    x_ND = 6 * normal(1500, dim)
    pca = fit_pca(x_ND, components)
    save_file({name: value.contiguous() for name, value in pca.tensors().items()}, tmp_path / "pca.safetensors")
    again = load_pca(load_file(tmp_path / "pca.safetensors"))
    whole_NC = pca.transform(x_ND)
    assert torch.equal(again.transform(x_ND), whole_NC)
    assert torch.equal(torch.cat([again.transform(part) for part in x_ND.split(97)]), whole_NC)
