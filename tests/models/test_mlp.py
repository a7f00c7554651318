"""The network learns a map from some rows, repeatably, and applies it to each row alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.mlp import MLP, MLPConfig, fit_mlp, load_mlp
from models.rows import BLOCK

SMALL = MLPConfig(width=32, hidden_layers=2, epochs=60, batch_rows=32, noise=0.0)


def curve(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two coordinates of very different units, as smooth functions of three columns, one of them constant."""
    x_ND = torch.rand(rows, 3, generator=torch.Generator().manual_seed(seed)) * 4
    x_ND[:, 2] = 5
    return x_ND, torch.stack([100 + 10 * x_ND[:, 0].sin(), 0.01 * x_ND[:, 1].square()], dim=1)


@pytest.fixture(scope="module")
def net() -> MLP:
    return fit_mlp(SMALL, *curve(600, seed=0), seed=0)


def test_it_predicts_rows_that_it_has_not_seen_in_every_unit(net: MLP) -> None:
    x_ND, y_NC = curve(200, seed=1)
    error_C = (net.transform(x_ND) - y_NC).square().mean(dim=0) / y_NC.var(dim=0)
    assert bool((error_C < 0.02).all())


def test_the_seed_decides_everything_and_threads_nothing(net: MLP) -> None:
    x_ND, y_NC = curve(600, seed=0)
    before = torch.get_num_threads()
    torch.manual_seed(123)
    try:
        torch.set_num_threads(1)
        again = fit_mlp(SMALL, x_ND, y_NC, seed=0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    other = fit_mlp(SMALL, x_ND, y_NC, seed=1)
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert not torch.equal(other.state_dict()["layers.0.weight"], net.state_dict()["layers.0.weight"])


def test_what_was_saved_transforms_alike(net: MLP) -> None:
    x_ND, _ = curve(50, seed=2)
    assert torch.equal(load_mlp(SMALL, net.state_dict()).transform(x_ND), net.transform(x_ND))


def test_a_row_alone_is_the_row_among_others(net: MLP) -> None:
    x_ND, _ = curve(BLOCK + 100, seed=3)
    assert torch.equal(torch.cat([net.transform(part) for part in x_ND.split(131)]), net.transform(x_ND))


def test_steps_are_bounded() -> None:
    """One step moves a weight by at most the learning rate at the end of the warm-up, and by decay."""
    x_ND, y_NC = curve(200, seed=0)
    untrained = fit_mlp(SMALL.model_copy(update={"max_steps": 1, "learning_rate": 1e-9}), x_ND, y_NC, seed=0)
    one_step = fit_mlp(SMALL.model_copy(update={"max_steps": 1}), x_ND, y_NC, seed=0)
    moved = (one_step.layers[0].weight - untrained.layers[0].weight).abs().max()
    assert 0 < float(moved) <= SMALL.learning_rate * 1.1


def test_fewer_rows_than_a_batch_and_constant_coordinates() -> None:
    x_ND = torch.zeros(3, 2)
    net = fit_mlp(SMALL, x_ND, torch.full((3, 1), 4.0), seed=0)
    torch.testing.assert_close(net.transform(x_ND), torch.full((3, 1), 4.0), atol=0.1, rtol=0)
