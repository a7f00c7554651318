"""How much Gaussians overlap: by hand, by quadrature, and where they are flat."""

from __future__ import annotations

import math

import pytest
import torch

from models.dpm.overlap import bhattacharyya, compared_pairs, covariances, lifted
from models.gaussians import Gaussians


def test_bhattacharyya_by_hand_in_one_dimension() -> None:
    """N(0, 1), N(2, 1) and N(0, 4): 4 / 8, log(2.5 / 2) / 2, and 4 / 2.5 / 8 + log(2.5 / 2) / 2."""
    mean_KD, covariance = torch.tensor([[0.0], [2.0], [0.0]]).double(), torch.tensor([1.0, 1.0, 4.0]).double()
    pair_P2 = torch.tensor([[0, 1], [0, 2], [1, 2], [2, 2]])
    expected = [0.5, math.log(1.25) / 2, 0.2 + math.log(1.25) / 2, 0.0]
    assert bhattacharyya(mean_KD, covariance[:, None, None], pair_P2).tolist() == pytest.approx(expected)
    assert bhattacharyya(mean_KD, covariance[:, None], pair_P2).tolist() == pytest.approx(expected)


def test_bhattacharyya_is_the_integral_of_the_root_of_the_product() -> None:
    x_N = torch.linspace(-30, 30, 60_001, dtype=torch.float64)
    normal = [torch.distributions.Normal(mean, std) for mean, std in ((0.0, 1.3), (1.5, 2.2))]
    integral = sum(each.log_prob(x_N) for each in normal).div(2).exp().sum() * (x_N[1] - x_N[0])  # type: ignore[union-attr]
    mean_KD, covariance = torch.tensor([[0.0], [1.5]]).double(), torch.tensor([1.3**2 - 0.5, 2.2**2 - 0.5]).double()
    distance = bhattacharyya(mean_KD, covariance[:, None, None], torch.tensor([[0, 1]]), 0.5)
    assert distance.item() == pytest.approx(-math.log(float(integral)), abs=1e-6)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 3)])
def test_no_pairs_have_no_distance(shape: tuple[int, ...]) -> None:
    covariance, none_P2 = lifted(torch.ones(shape).double()), torch.empty(0, 2, dtype=torch.int64)
    assert bhattacharyya(torch.ones(0, 3).double(), covariance, none_P2).shape == (0,)


def test_every_pair_of_few_is_compared_and_neighbours_of_many() -> None:
    assert compared_pairs(torch.arange(4.0)[:, None]).tolist() == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    pair_P2 = compared_pairs(torch.arange(100.0).double()[:, None])
    assert bool((pair_P2[:, 0] < pair_P2[:, 1]).all())
    assert len({tuple(pair) for pair in pair_P2.tolist()}) == len(pair_P2)
    assert int((pair_P2[:, 1] - pair_P2[:, 0]).max()) == 8


def test_student_scales_become_covariances_where_there_are_any() -> None:
    """Degrees over degrees - 2; a density of 2 or fewer has none and gives its scale."""
    std_KD, degrees_K = torch.full((3, 2), 2.0).double(), torch.tensor([4.0, 2.0, 1.0]).double()
    zero = torch.zeros(3, 2).double()
    diagonal = covariances(Gaussians(zero[0], zero, std_KD, degrees_K))
    assert diagonal.tolist() == [[8, 8], [4, 4], [4, 4]]
    full = covariances(Gaussians(zero[0], zero, torch.diag_embed(std_KD), degrees_K))
    assert torch.equal(full, torch.diag_embed(diagonal))


def test_flat_covariances_are_lifted_and_others_are_not() -> None:
    flat_KDD = torch.tensor([[[1.0, 1], [1, 1]], [[2.0, 1], [1, 2]]]).double()
    lifted_KDD = lifted(flat_KDD.clone())
    assert bool((torch.linalg.eigvalsh(lifted_KDD[0]) > 0).all())
    torch.testing.assert_close(lifted_KDD, flat_KDD, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lifted_KDD[1], flat_KDD[1], rtol=1e-14, atol=0)
