"""Batch norm over workers is torch's batch norm of the parts put together."""

from __future__ import annotations

import copy

import pytest
import timm.layers
import torch
from torch import Tensor, nn
from worlds import run_workers

from models.batch_norm import SynchronisedBatchNorm
from models.objective import Reduce

PARTS = {1: (11,), 2: (7, 4), 3: (1, 8, 2)}  # rows of each worker; torch alone refuses the single row


def images(seed: int = 0, channels: int = 6) -> Tensor:
    x_BCHW = torch.randn(11, channels, 3, 5, generator=torch.Generator().manual_seed(seed))
    return 3 * x_BCHW + 5 * torch.arange(channels).reshape(1, -1, 1, 1)


def network(norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(norm(6), nn.Conv2d(6, 4, 3, padding=1), norm(4), nn.Flatten(), nn.Linear(60, 8))
    net = net.append(nn.BatchNorm1d(8, affine=False)).append(nn.BatchNorm1d(8, momentum=None))
    for parameter in net.parameters():
        nn.init.normal_(parameter, mean=0.3)
    return net


def step(net: nn.Module, x: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Output, and gradient of the input, of a loss that is a mean over rows."""
    x = x.clone().requires_grad_()
    out = net(x)
    (share * (out.sin() * out).sum(dim=1).mean()).backward()
    assert x.grad is not None
    return out.detach(), x.grad


def over_workers(net: nn.Module, x: Tensor, workers: int) -> tuple[list[nn.Module], Tensor, Tensor]:
    rows = PARTS[workers]
    nets, parts = [copy.deepcopy(net) for _ in rows], x.split(rows)

    def work(rank: int, reduce: Reduce) -> tuple[Tensor, Tensor]:
        with SynchronisedBatchNorm(reduce):
            return step(nets[rank], parts[rank], len(parts[rank]) / len(x))

    found = run_workers(workers, work)
    return nets, torch.cat([out for out, _ in found]), torch.cat([grad for _, grad in found])


@pytest.mark.parametrize("workers", PARTS)
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, timm.layers.BatchNormAct2d])
def test_parts_are_normalised_as_the_whole(workers: int, norm: type[nn.Module]) -> None:
    net, x = network(norm).double(), images().double()
    nets, out, grad = over_workers(net, x, workers)
    expected_out, expected_grad = step(net, x, 1.0)
    torch.testing.assert_close(out, expected_out, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-9, atol=1e-12)
    for name, parameter in net.named_parameters():
        summed = sum(each.get_parameter(name).grad for each in nets)
        torch.testing.assert_close(summed, parameter.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("workers", PARTS)
def test_running_statistics_are_those_of_the_whole_on_every_worker(workers: int) -> None:
    net, x = network(), images()
    nets, _, _ = over_workers(net, x, workers)
    step(net, x, 1.0)
    assert len(dict(net.named_buffers())) == 12
    for name, buffer in net.named_buffers():
        for each in nets:
            assert torch.equal(each.get_buffer(name), nets[0].get_buffer(name))
            torch.testing.assert_close(each.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", PARTS)
def test_half_precision_stays_half_and_near(workers: int) -> None:
    norm, x = nn.BatchNorm2d(6), images().bfloat16().to(memory_format=torch.channels_last)
    _, out, grad = over_workers(norm, x, workers)
    expected_out, expected_grad = step(norm, x, 1.0)
    assert out.dtype == grad.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected_out, rtol=0.02, atol=0.02)
    torch.testing.assert_close(grad, expected_grad, rtol=0.02, atol=1e-3)


def test_autocast_reaches_the_convolutions_only() -> None:
    net, x = network(), images()
    with torch.autocast("cpu", torch.bfloat16):
        expected = net(x)
    again = network()

    def work(rank: int, reduce: Reduce) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16), SynchronisedBatchNorm(reduce):
            return again(x)

    (found,) = run_workers(1, work)
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


def test_a_mean_far_from_zero_costs_no_variance() -> None:
    x = images() * 1e-2 + 1e3
    _, out, _ = over_workers(nn.BatchNorm2d(6), x, 3)
    torch.testing.assert_close(out, step(nn.BatchNorm2d(6).double(), x.double(), 1.0)[0].float(), rtol=0, atol=0.05)
    assert (out.std(dim=(0, 2, 3)) - 1).abs().max() < 0.02


def test_evaluation_is_left_alone() -> None:
    net = network().eval()
    expected = net(images())

    def work(rank: int, reduce: Reduce) -> Tensor:
        with SynchronisedBatchNorm(reduce):
            return net(images())

    assert torch.equal(run_workers(1, work)[0], expected)


def test_outside_of_the_block_norms_are_torchs() -> None:
    def work(rank: int, reduce: Reduce) -> None:
        with SynchronisedBatchNorm(reduce):
            pass
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            nn.BatchNorm1d(2)(torch.zeros(1, 2))

    run_workers(2, work)
