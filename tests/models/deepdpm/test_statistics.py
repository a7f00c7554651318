"""What DeepDPM keeps of the rows, against dense sums."""

from __future__ import annotations

import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.deepdpm.network import DeepDPMNet
from models.deepdpm.statistics import NetStats, largest, net_statistics
from models.moments import Moments, moments_of_sets, weighted_moments

ORIGIN_D = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def network(clusters: int, seed: int = 0) -> DeepDPMNet:
    net = DeepDPMNet(dim=3, clusters=clusters, hidden=8, sub_hidden=5)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return net.requires_grad_(False)


def rows(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))


def assert_moments(got: Moments, expected: Moments, tolerance: float = 1e-6) -> None:
    for name, value in expected.tensors().items():
        torch.testing.assert_close(got.tensors()[name], value, rtol=tolerance, atol=tolerance * 100)


def test_with_enough_candidates_clusters_are_the_full_weighted_moments() -> None:
    net, x_ND = network(5), rows(200)
    stats = net_statistics(net, x_ND, ORIGIN_D, candidates=8)
    assert_moments(stats.clusters, weighted_moments(x_ND, net(x_ND).logit_BK.double().softmax(1), ORIGIN_D), 1e-5)


def test_the_largest_candidates_share_a_row_by_hand() -> None:
    logit_NK = torch.tensor([[0.5, 0.1, 0.0, 0.4], [1.0, 0.0, 0.0, 0.0]]).log()
    row_E, cluster_E, weight_E = largest(logit_NK, candidates=2)
    dense = torch.zeros(2, 4, dtype=torch.float64).index_put((row_E, cluster_E), weight_E)
    torch.testing.assert_close(dense, torch.tensor([[5 / 9, 0, 0, 4 / 9], [1, 0, 0, 0]]).double(), rtol=1e-6, atol=0)


def test_halves_share_the_rows_of_their_cluster_and_members_do_not_share() -> None:
    net, x_ND = network(4), rows(200)
    said = net(x_ND)
    stats = net_statistics(net, x_ND, ORIGIN_D, candidates=2)
    weight_NH = torch.zeros(200, 8, dtype=torch.float64)
    pair_N2 = said.pair_B2.double().softmax(1)
    for row, k in enumerate(said.logit_BK.argmax(1).tolist()):
        weight_NH[row, 2 * k : 2 * k + 2] = pair_N2[row]
    assert_moments(stats.halves, weighted_moments(x_ND, weight_NH, ORIGIN_D))
    assert_moments(stats.members, moments_of_sets(x_ND, weight_NH.argmax(1), 8, ORIGIN_D))
    assert stats.members.count_K.sum() == stats.clusters.count_K.sum().round() == 200


@settings(max_examples=20, deadline=None)
@given(cut=st.integers(0, 60))
def test_statistics_of_two_parts_add_up(cut: int) -> None:
    net, x_ND = network(4), rows(60)
    whole = net_statistics(net, x_ND, ORIGIN_D, candidates=3)
    parts = net_statistics(net, x_ND[:cut], ORIGIN_D, 3) + net_statistics(net, x_ND[cut:], ORIGIN_D, 3)
    for part in ("clusters", "halves", "members"):
        assert_moments(getattr(parts, part), getattr(whole, part), 1e-5)


def test_statistics_come_back_from_their_tensors() -> None:
    stats = net_statistics(network(3), rows(50), ORIGIN_D, candidates=3)
    payload = safetensors.torch.save({name: value.contiguous() for name, value in stats.tensors().items()})
    again: NetStats = stats.with_tensors(safetensors.torch.load(payload))
    assert again.tensors().keys() == stats.tensors().keys()
    assert all(torch.equal(again.tensors()[name], value) for name, value in stats.tensors().items())
