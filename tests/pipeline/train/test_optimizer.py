from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import nn
from toy_objective import Toy

from models.errors import ShoalError
from models.objective import Objective, Surgery
from pipeline.train.config import TrainConfig
from pipeline.train.optimizer import flatten, make_optimizer, operate, read_state, schedule, unflatten, write_state


class _Everything:
    """As much of an Objective as an optimizer needs."""

    def groups(self, net: nn.Module) -> list[dict[str, object]]:
        return [{"params": list(net.parameters())}]


EVERYTHING = cast(Objective, _Everything())


def _net(rows: int = 3) -> nn.Module:
    torch.manual_seed(rows)
    return nn.Linear(2, rows)


def _stepped(config: TrainConfig, net: nn.Module, steps: int = 3) -> torch.optim.Optimizer:
    optimizer = make_optimizer(config, EVERYTHING, net)
    for step in range(steps):
        net.zero_grad()
        net(torch.tensor([[1.0, step]])).square().sum().backward()
        optimizer.step()
    return optimizer


def _shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in net.named_parameters()}


def test_rows_that_stay_keep_their_adam_state_and_new_ones_begin_at_zero() -> None:
    net = _net(3)
    old = read_state(_stepped(TrainConfig(), net), net)
    source = torch.tensor([2, -1, 0, 2])
    new = operate(old, Surgery({"weight": source, "bias": source}), _shapes(net), _net(4))
    for name in ("weight", "bias"):
        assert float(new[name]["step"]) == 3.0
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(new[name][key][[0, 2, 3]], old[name][key][[2, 0, 2]])
            assert new[name][key][1].abs().sum() == 0
            assert old[name][key].abs().min() > 0  # else zeros would prove nothing


def test_a_parameter_of_fresh_rows_only_has_no_state() -> None:
    net = _net(3)
    old = read_state(_stepped(TrainConfig(), net), net)
    new = operate(old, Surgery({"weight": torch.tensor([-1, -1, -1])}), _shapes(net), net)
    assert set(new) == {"bias"}


def test_another_shape_that_surgery_does_not_name_is_a_sentence() -> None:
    net = _net(3)
    old = read_state(_stepped(TrainConfig(), net), net)
    with pytest.raises(ShoalError, match=r"bias has shape \(4,\) and had \(3,\)"):
        operate(old, Surgery({"weight": torch.tensor([0, 1, 2, -1])}), _shapes(net), _net(4))


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lars"])
def test_an_optimizer_goes_on_from_its_state_to_the_same_bits(optimizer: str) -> None:
    config = TrainConfig.model_validate({"optimizer": optimizer})
    net = _net()
    whole = _net()
    _stepped(config, whole, steps=3)
    first = _stepped(config, net, steps=2)
    state = unflatten({name: value.clone() for name, value in flatten(read_state(first, net)).items()}, net)
    second = make_optimizer(config, EVERYTHING, net)
    write_state(second, net, state)
    net.zero_grad()
    net(torch.tensor([[1.0, 2.0]])).square().sum().backward()
    second.step()
    for name, value in whole.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_the_schedule_by_hand() -> None:
    config = TrainConfig(lr=0.1, epochs=10, schedule="cosine", warmup_epochs=2)
    net = _net()
    optimizer = make_optimizer(config, EVERYTHING, net)
    rates = []
    for epochs in (0.0, 1.0, 2.0, 6.0, 10.0):
        schedule(config, optimizer, epochs)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.05, 0.0])


def test_groups_may_have_rates_of_their_own() -> None:
    toy = Toy()
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = make_optimizer(TrainConfig(lr=0.5), toy, net)
    schedule(TrainConfig(lr=0.5), optimizer, 3.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 2e-2]


def test_a_parameter_of_another_net_is_a_sentence() -> None:
    class Foreign(_Everything):
        def groups(self, net: nn.Module) -> list[dict[str, object]]:
            return [{"params": [nn.Parameter(torch.zeros(1))]}]

    with pytest.raises(ShoalError, match="a parameter that its network does not have"):
        make_optimizer(TrainConfig(), cast(Objective, Foreign()), _net())


def test_the_schedule_of_swav_by_hand() -> None:
    """Caron et al. (2020), batch 4096: from .3 up to 4.8 in 10 epochs, then down to .0048 by a cosine."""
    config = TrainConfig(
        lr=4.8, epochs=110, schedule="cosine", warmup_epochs=10, warmup_start=0.3 / 4.8, final_lr=0.0048 / 4.8
    )
    optimizer = make_optimizer(config, EVERYTHING, _net())
    rates = []
    for epochs in (0.0, 5.0, 10.0, 60.0, 110.0):
        schedule(config, optimizer, epochs)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.3, 2.55, 4.8, (4.8 + 0.0048) / 2, 0.0048])


def test_a_step_of_lars_by_hand() -> None:
    """You, Gitman and Ginsburg (2017): the step is lr x trust x |w| / (|g| + decay |w|) times (g + decay w)."""

    class Groups(_Everything):
        def groups(self, net: nn.Module) -> list[dict[str, object]]:
            return [{"params": [net.weight]}, {"params": [net.bias], "weight_decay": 0.0}]

    net = nn.Linear(2, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3.0, 4.0]]))
        net.bias.fill_(1.0)
    config = TrainConfig(optimizer="lars", lr=0.5, trust=0.01, weight_decay=0.1)  # of the weight; the bias has none
    optimizer = make_optimizer(config, cast(Objective, Groups()), net)
    net.weight.grad, net.bias.grad = torch.tensor([[0.0, 2.0]]), torch.tensor([2.0])
    optimizer.step()
    rate = 0.01 * 5 / (2 + 0.1 * 5)  # of the weight's length and the gradient's
    expected = torch.tensor([[3.0, 4.0]]) - 0.5 * rate * (torch.tensor([[0.0, 2.0]]) + 0.1 * torch.tensor([[3.0, 4.0]]))
    torch.testing.assert_close(net.weight.detach(), expected)
    assert float(net.bias.detach()) == pytest.approx(1.0 - 0.5 * (0.01 * 1 / 2) * 2.0)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="accumulate is 9 but a step has batch_size = 8 rows"):
        TrainConfig(batch_size=8, accumulate=9)
    with pytest.raises(ValueError, match="min_workers is 3 but workers, the most there may be, 2"):
        TrainConfig(workers=2, min_workers=3)
