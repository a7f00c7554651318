"""DeepDPM's networks: the batched ones are K separate ones, and surgery leaves alone what it does not concern."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from models.deepdpm.mixture import cut_in_two
from models.deepdpm.network import DeepDPMNet, Subclusterers
from models.deepdpm.surgery import SUB, rebase, regrow, renew, resize
from models.gaussians import Gaussians


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(net: nn.Module, seed: int = 0) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng(seed)))


def separate(sub: Subclusterers, k: int) -> nn.Sequential:
    """Network k as a user would write it."""
    dim, hidden = sub.weight_in.shape[1:]
    net = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    parts = (sub.weight_in[k].T, sub.bias_in[k], sub.weight_out[k].T, sub.bias_out[k])
    for parameter, value in zip(net.parameters(), parts, strict=True):
        parameter.data = value.detach().clone()
    return net


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(0, 40), clusters=st.integers(1, 9), seed=st.integers(0, 99))
def test_batched_subclustering_nets_are_separate_networks(rows: int, clusters: int, seed: int) -> None:
    sub = Subclusterers(clusters, dim=3, hidden=5)
    filled(sub, seed)
    x_BD = torch.randn(rows, 3, generator=rng(seed))
    cluster_B = torch.randint(0, clusters, (rows,), generator=rng(seed + 1)) // 2  # some clusters have no rows
    got_B2 = sub(x_BD, cluster_B)
    assert got_B2.shape == (rows, 2)
    for row, k in enumerate(cluster_B.tolist()):
        torch.testing.assert_close(got_B2[row], separate(sub, k)(x_BD[row]), rtol=1e-4, atol=1e-4)


def test_gradients_reach_only_the_network_of_a_rows_cluster() -> None:
    sub = Subclusterers(3, dim=2, hidden=4)
    filled(sub)
    x_BD, cluster_B = torch.randn(6, 2, generator=rng()), torch.tensor([0, 2, 2, 0, 2, 0])
    sub(x_BD, cluster_B).square().sum().backward()
    alone = separate(sub, 2)
    alone(x_BD[cluster_B == 2]).square().sum().backward()
    assert sub.weight_in.grad is not None
    assert alone[0].weight.grad is not None
    torch.testing.assert_close(sub.weight_in.grad[2], alone[0].weight.grad.T)
    assert not sub.weight_in.grad[1].any()


def test_rows_far_from_zero_lose_no_digits() -> None:
    net = DeepDPMNet(dim=2, clusters=1, hidden=4, sub_hidden=4)
    net.origin_D.copy_(torch.tensor([1e6, -1e6]))
    net.scale.fill_(2.0)
    x_BD = torch.tensor([[1e6 + 1, -1e6 - 0.5]])
    assert net.standardize(x_BD).tolist() == [[0.5, -0.25]]


def grown(row_K: list[int], share_K: list[float], anew: list[bool]) -> tuple[DeepDPMNet, DeepDPMNet, dict[str, Tensor]]:
    """A network before and after the operation, and where optimizer state comes from."""
    before, after = (DeepDPMNet(dim=3, clusters=3, hidden=6, sub_hidden=5) for _ in range(2))
    filled(before)
    after.load_state_dict(before.state_dict())
    surgery = regrow(after, torch.tensor(row_K), torch.tensor(share_K), torch.tensor(anew))
    return before, after, dict(surgery.source)


def test_a_split_leaves_other_responsibilities_as_they_were() -> None:
    # Cluster 1 splits 30 : 70; the second child comes last.
    before, after, _ = grown([0, 1, 2, 1], [0.0, math.log(0.3), 0.0, math.log(0.7)], [False, True, False, True])
    x_BD = torch.randn(50, 3, generator=rng(1))
    old_BK, new_BL = before(x_BD).logit_BK.softmax(1), after(x_BD).logit_BK.softmax(1)
    torch.testing.assert_close(new_BL[:, [0, 2]], old_BK[:, [0, 2]])
    torch.testing.assert_close(new_BL[:, 1], 0.3 * old_BK[:, 1])
    torch.testing.assert_close(new_BL[:, 3], 0.7 * old_BK[:, 1])


def test_kept_subclustering_nets_keep_their_outputs_and_their_optimizer_state() -> None:
    before, after, source = grown([2, 0], [0.0, 0.0], [False, True])
    x_BD = torch.randn(20, 3, generator=rng(1))
    ones = torch.ones(20, dtype=torch.int64)
    torch.testing.assert_close(after.sub(x_BD, 0 * ones), before.sub(x_BD, 2 * ones))
    assert source.keys() == {"last.weight", "last.bias", *(f"sub.{name}" for name in SUB)}
    assert source["last.weight"].tolist() == [2, 0]
    assert source["sub.weight_in"].tolist() == [2, -1]
    assert {name for name, _ in after.named_parameters()} == {name for name, _ in before.named_parameters()}


def test_a_resized_network_takes_the_weights_of_one_of_that_size() -> None:
    small, large = (DeepDPMNet(dim=3, clusters=k, hidden=6, sub_hidden=5) for k in (1, 4))
    filled(large)
    resize(small, 4)
    small.load_state_dict(large.state_dict())
    x_BD = torch.randn(5, 3, generator=rng(1))
    torch.testing.assert_close(small(x_BD).logit_BK, large(x_BD).logit_BK)


def test_a_renewed_subclustering_net_is_the_cut_by_hand() -> None:
    # Variance 4 along the first axis, 1 along the second, about (1, 0); rows in units of 2 about an origin of (5, 5).
    gaussians = Gaussians(
        torch.tensor([5.0, 5.0]).double(),
        torch.tensor([[1.0, 0.0]]).double(),
        torch.diag(torch.tensor([2.0, 1.0])).double()[None],
    )
    cut = cut_in_two(gaussians, torch.tensor([0]))
    step = 2 * math.sqrt(2 / math.pi)
    torch.testing.assert_close(cut.half_K2D, torch.tensor([[[1 - step, 0.0], [1 + step, 0.0]]]).double())
    net = DeepDPMNet(dim=2, clusters=2, hidden=4, sub_hidden=4)
    net.origin_D.fill_(5.0)
    net.scale.fill_(2.0)
    renew(net, torch.tensor([1]), cut, rng())
    x_BD = torch.tensor([[6.0, 9.0], [8.0, 5.0], [4.0, 2.0]])  # on the cut; one deviation above; one below
    pair_B2 = net.sub(net.standardize(x_BD), torch.tensor([1, 1, 1]))
    torch.testing.assert_close(pair_B2[:, 1] - pair_B2[:, 0], torch.tensor([0.0, 3.0, -3.0]))


def test_the_second_axis_is_the_next_widest_and_the_sign_is_fixed() -> None:
    chol_KDD = torch.diag(torch.tensor([1.0, 3.0, 2.0])).double()[None]
    gaussians = Gaussians(torch.zeros(3).double(), torch.zeros(1, 3).double(), chol_KDD)
    assert cut_in_two(gaussians, torch.tensor([0])).axis_KD.tolist() == [[0.0, 1.0, 0.0]]
    assert cut_in_two(gaussians, torch.tensor([1])).axis_KD.tolist() == [[0.0, 0.0, 1.0]]
    assert cut_in_two(gaussians, torch.tensor([9])).axis_KD.tolist() == [[1.0, 0.0, 0.0]]


def test_other_units_leave_the_outputs_as_they_were() -> None:
    before, after = (DeepDPMNet(dim=3, clusters=4, hidden=6, sub_hidden=5) for _ in range(2))
    filled(before)
    before.origin_D.fill_(1.0)
    before.scale.fill_(2.0)
    after.load_state_dict(before.state_dict())
    rebase(after, torch.tensor([2.0, 0.0, -1.0]).double(), 0.5)
    x_BD = 3 * torch.randn(40, 3, generator=rng(1))
    for name, value in before(x_BD)._asdict().items():
        torch.testing.assert_close(after(x_BD)._asdict()[name], value, rtol=1e-4, atol=1e-4)
    assert (after.scale, after.origin_D.tolist()) == (0.5, [2.0, 0.0, -1.0])
