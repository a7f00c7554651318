"""DeepDPM's losses by hand, and the targets they are measured against."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.deepdpm.losses import Divergence, cluster_loss, subcluster_loss
from models.deepdpm.mixture import Mixture, whiten
from models.gaussians import Gaussians, factorize


def test_the_papers_divergence_by_hand() -> None:
    # r = (1/4, 3/4), r^E = (1/2, 1/2): 1/4 log(1/2) + 3/4 log(3/2)
    logit_BK, target_BK = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.5, 0.5]]).log()
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert cluster_loss(logit_BK, target_BK, "paper", 0.0).tolist() == pytest.approx([expected])


def test_the_references_divergence_by_hand() -> None:
    # 1/2 log((1/2) / (1/4)) + 1/2 log((1/2) / (3/4))
    logit_BK, target_BK = torch.tensor([[0.0, math.log(3.0)]]), torch.tensor([[0.5, 0.5]]).log()
    expected = 0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0)
    assert cluster_loss(logit_BK, target_BK, "reference", 0.0).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("divergence", ["paper", "reference"])
def test_an_impossible_cluster_costs_no_more_than_smoothing_allows(divergence: Divergence) -> None:
    # r = (1/2, 1/2), r^E = (1, e^-5000) mixed with 1/100 of the uniform: (0.995, 0.005)
    loss = cluster_loss(torch.zeros(1, 2), torch.tensor([[0.0, -5000.0]]), divergence, 0.01)
    r, target = (0.5, 0.5), (0.995, 0.005)
    p, q = (r, target) if divergence == "paper" else (target, r)
    assert loss.tolist() == pytest.approx([sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))], rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), divergence=st.sampled_from(["paper", "reference"]))
def test_a_divergence_is_positive_and_zero_at_the_target(seed: int, divergence: Divergence) -> None:
    logit_BK, other_BK = 3 * torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(seed)).double()
    target_BK = torch.log_softmax(logit_BK, dim=1)
    assert (cluster_loss(logit_BK, target_BK, divergence, 0.0).abs() < 1e-12).all()
    assert (cluster_loss(other_BK, target_BK, divergence, 0.0) > 0).all()


def test_the_subcluster_loss_by_hand() -> None:
    # Responsibilities (1/3, 2/3); squared distances 1 and 25.
    pair_B2, x_BD = torch.tensor([[0.0, math.log(2.0)]]), torch.tensor([[1.0, 0.0]])
    half_B2D = torch.tensor([[[0.0, 0.0], [4.0, 4.0]]])
    assert subcluster_loss(pair_B2, x_BD, half_B2D).tolist() == pytest.approx([1 / 3 + 2 / 3 * 25])


def test_whitened_responsibilities_are_those_of_the_mixture_in_any_unit() -> None:
    generator = torch.Generator().manual_seed(0)
    factor_KDD = torch.randn(70, 4, 4, generator=generator).double()
    gaussians = Gaussians(
        torch.full((4,), 100.0).double(),
        torch.randn(70, 4, generator=generator).double(),
        factorize(factor_KDD @ factor_KDD.mT + torch.eye(4)),
    )
    mixture = Mixture(torch.arange(70), torch.randn(70, generator=generator).double().log_softmax(0), gaussians)
    x_BD = 100 + 2 * torch.randn(30, 4, generator=generator).double()
    expected_BK = mixture.log_joint(x_BD).log_softmax(dim=1)
    got_BK = whiten(mixture, scale=7.0).log_responsibilities(((x_BD - 100) / 7).float())
    torch.testing.assert_close(got_BK, expected_BK.float(), rtol=1e-4, atol=1e-3)
