"""Neighbours against brute force, and where single precision or equal points would betray them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models.errors import ShoalError
from models.neighbors import cells, kmeans_seeds, nearest, nearest_centroids_of, squared_distances


def gaussian(rows: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


def direct(x_ND: Tensor, centroid_KD: Tensor) -> Tensor:
    return (x_ND.double()[:, None, :] - centroid_KD.double()[None, :, :]).square().sum(dim=2)


def grid(rows: int, seed: int) -> Tensor:
    """Integer points: many lie exactly as near to one centroid as to another."""
    return torch.randint(-3, 4, (rows, 2), generator=torch.Generator().manual_seed(seed)).float()


def test_nearest_by_hand() -> None:
    squared, index = nearest(torch.tensor([[0.0], [9.0]]), torch.tensor([[10.0], [1.0], [4.0]]), 2)
    assert index.tolist() == [[1, 2], [0, 2]]
    assert squared.tolist() == [[1.0, 16.0], [1.0, 25.0]]


def test_nearest_gives_no_more_neighbours_than_there_are() -> None:
    squared, index = nearest(gaussian(5, 3), gaussian(2, 3), 10)
    assert squared.shape == index.shape == (5, 2)


@pytest.mark.parametrize(("offset", "scale"), [(1e4, 1.0), (0.0, 1e25), (0.0, 1e-25)])
def test_nearest_holds_far_from_zero_and_at_any_scale(offset: float, scale: float) -> None:
    x_ND, centroid_KD = gaussian(200, 4) * scale + offset, gaussian(9, 4, seed=1) * scale + offset
    exact_NK = direct(x_ND, centroid_KD)
    squared_N1, index_N1 = nearest(x_ND, centroid_KD, 1)
    torch.testing.assert_close(squared_N1[:, 0], exact_NK.min(dim=1).values, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(exact_NK.gather(1, index_N1), squared_N1, rtol=1e-4, atol=0.0)


def test_nearest_other_centroids_by_hand() -> None:
    assert nearest_centroids_of(torch.tensor([[0.0], [1.0], [5.0]]), 1).tolist() == [[1], [0], [1]]


@given(num_centroids=st.integers(1, 40), k=st.integers(1, 5), distinct=st.integers(1, 3))
def test_a_centroid_is_never_its_own_neighbour_even_among_equals(num_centroids: int, k: int, distinct: int) -> None:
    centroid_KD = torch.arange(num_centroids).remainder(distinct)[:, None].repeat(1, 3).float()
    index_KJ = nearest_centroids_of(centroid_KD, k)
    assert index_KJ.shape == (num_centroids, min(k, num_centroids - 1))
    assert not (index_KJ == torch.arange(num_centroids)[:, None]).any()
    assert all(len(set(row)) == len(row) for row in index_KJ.tolist())


def test_an_equal_centroid_is_the_nearest_other() -> None:
    assert nearest_centroids_of(torch.tensor([[0.0], [7.0], [7.0]]), 1).tolist()[1:] == [[2], [1]]


@given(seed=st.integers(0, 10_000), size=st.sampled_from([1, 2, 7, 200]))
def test_rows_exactly_between_centroids_go_to_the_first_in_any_block(seed: int, size: int) -> None:
    x_ND, centroid_KD = grid(200, seed), grid(9, seed + 1).double()
    by_hand_N2 = direct(x_ND, centroid_KD).argsort(dim=1, stable=True)[:, :2]  # exact: the points are integers
    squared_NK = torch.cat([squared_distances(block_ND, centroid_KD) for block_ND in x_ND.split(size)])
    assert torch.equal(squared_NK.argsort(dim=1, stable=True)[:, :2], by_hand_N2)


def test_equal_centroids_are_at_exactly_the_same_distance() -> None:
    x_ND, centroid_KD = gaussian(300, 33), gaussian(4, 33, seed=1).double()
    squared_NK = squared_distances(x_ND, torch.cat([centroid_KD, centroid_KD]))
    nearest_N1 = squared_NK.argmin(dim=1, keepdim=True)
    assert (nearest_N1 < 4).all()
    assert torch.equal(squared_NK.gather(1, nearest_N1), squared_NK.gather(1, nearest_N1 + 4))


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_squared_distances_are_those_of_direct_differences(offset: float) -> None:
    x_ND, centroid_KD = gaussian(100, 16) + offset, gaussian(5, 16, seed=1).double() + offset
    torch.testing.assert_close(squared_distances(x_ND, centroid_KD), direct(x_ND, centroid_KD), rtol=1e-9, atol=1e-9)


def test_seeds_find_planted_centres() -> None:
    centre_KD = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    seed_KD = kmeans_seeds(centre_KD.repeat(100, 1) + 0.1 * gaussian(400, 2), 4, seed=0)
    assert direct(centre_KD, seed_KD).min(dim=1).values.max() < 0.01
    assert seed_KD.dtype == torch.float64


def test_seeds_depend_on_the_seed_alone() -> None:
    sample_MD = gaussian(300, 2)
    first = kmeans_seeds(sample_MD, 8, seed=3, restarts=1)
    torch.manual_seed(99)
    assert torch.equal(first, kmeans_seeds(sample_MD, 8, seed=3, restarts=1))
    assert not torch.equal(first, kmeans_seeds(sample_MD, 8, seed=4, restarts=1))


def test_more_restarts_are_never_worse_and_sometimes_better() -> None:
    sample_MD = gaussian(500, 2)

    def inertia(seed: int, restarts: int) -> float:
        return float(direct(sample_MD, kmeans_seeds(sample_MD, 12, seed, restarts)).min(dim=1).values.sum())

    gains = [inertia(seed, restarts=1) - inertia(seed, restarts=10) for seed in range(5)]
    assert min(gains) > -1e-3
    assert max(gains) > 1


@pytest.mark.parametrize(("offset", "scale"), [(1e4, 1.0), (0.0, 2.0**80), (0.0, 2.0**-80)])
def test_seeds_move_and_scale_with_the_data(offset: float, scale: float) -> None:
    sample_MD = (gaussian(200, 3) * 64).round() / 64  # so that the offset rounds nothing
    plain_KD = kmeans_seeds(sample_MD, 5, seed=0)
    moved_KD = kmeans_seeds(sample_MD * scale + offset, 5, seed=0)
    torch.testing.assert_close((moved_KD - offset) / scale, plain_KD, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("distinct", [1, 2])
def test_fewer_distinct_rows_than_clusters_still_give_every_row_its_own_centre(distinct: int) -> None:
    sample_MD = torch.arange(20).remainder(distinct)[:, None].repeat(1, 2).float()
    seed_KD = kmeans_seeds(sample_MD, 4, seed=0)
    assert seed_KD.shape == (4, 2)
    assert direct(sample_MD, seed_KD).min(dim=1).values.max() < 1e-5


def test_one_row_is_its_own_seed() -> None:
    assert kmeans_seeds(torch.tensor([[3.0, -2.0]]), 1, seed=0).tolist() == [[3.0, -2.0]]


def test_more_clusters_than_rows_is_a_sentence_with_both_numbers() -> None:
    with pytest.raises(ShoalError, match=r"7 clusters .* there are 3; .* at most 3"):
        kmeans_seeds(gaussian(3, 2), 7, seed=0)


def test_values_that_are_not_finite_are_a_sentence() -> None:
    sample_MD = gaussian(5, 2)
    sample_MD[1, 0], sample_MD[3, 1] = torch.nan, torch.inf
    with pytest.raises(ShoalError, match="2 of 5 sampled embeddings are not finite"):
        kmeans_seeds(sample_MD, 2, seed=0)


def test_cells_part_planted_centres() -> None:
    centre_KD = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0], [9.0, 9.0]])
    cell_M = cells(centre_KD.repeat(100, 1) + 0.1 * gaussian(400, 2), 12, seed=0)
    assert cell_M.dtype == torch.int64
    assert cell_M.shape == (400,)
    assert 0 <= int(cell_M.min()) <= int(cell_M.max()) < 12
    for cell in cell_M.unique():  # no cell spans two of them
        assert torch.nonzero(cell_M == cell).flatten().remainder(4).unique().numel() == 1


def test_every_row_is_in_the_cell_whose_mean_is_about_nearest() -> None:
    sample_MD = gaussian(2000, 3)
    cell_M = cells(sample_MD, 30, seed=1)
    assert cell_M.unique().numel() > 25
    mean_KD = torch.stack([sample_MD[cell_M == k].mean(dim=0) for k in cell_M.unique()])
    best_M = cell_M.unique()[direct(sample_MD, mean_KD).argmin(dim=1)]
    assert (best_M == cell_M).float().mean() > 0.9  # ten rounds of Lloyd are few


def test_cells_depend_on_the_seed_alone() -> None:
    sample_MD = gaussian(300, 2)
    first = cells(sample_MD, 20, seed=3)
    torch.manual_seed(99)
    assert torch.equal(first, cells(sample_MD, 20, seed=3))
    assert not torch.equal(first, cells(sample_MD, 20, seed=4))


@pytest.mark.parametrize(("offset", "scale"), [(1e4, 1.0), (0.0, 2.0**80), (0.0, 2.0**-80)])
def test_cells_move_and_scale_with_the_data(offset: float, scale: float) -> None:
    sample_MD = (gaussian(200, 3) * 64).round() / 64  # so that the offset rounds nothing
    moved_M = cells(sample_MD * scale + offset, 8, seed=0)
    assert adjusted_rand_score(cells(sample_MD, 8, seed=0), moved_M) > 0.97


def test_one_cell_holds_all_and_equal_rows_share_one() -> None:
    assert cells(gaussian(7, 2), 1, seed=0).tolist() == [0] * 7
    assert cells(torch.ones(7, 2), 3, seed=0).unique().numel() == 1
    cell_M = cells(gaussian(5, 2).repeat(20, 1), 10, seed=0)
    assert torch.equal(cell_M[:5].repeat(20), cell_M)


def test_as_many_cells_as_rows_are_at_most_that() -> None:
    cell_M = cells(gaussian(6, 2), 6, seed=0)
    assert cell_M.unique().numel() > 1
    assert int(cell_M.max()) < 6
