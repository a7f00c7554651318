"""The optimizer of an objective's parameter groups: schedule, state as plain tensors, and surgery on that state.

State is known by the names of parameters, so that it survives parameters that are replaced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ShoalError
from models.objective import Objective, Surgery
from pipeline.train.config import TrainConfig

State = dict[str, dict[str, Tensor]]  # parameter name -> what the optimizer remembers of it


def make_optimizer(config: TrainConfig, objective: Objective, net: nn.Module) -> torch.optim.Optimizer:
    """A fresh optimizer of the objective's groups. Raises ShoalError for a parameter that is not the net's."""
    groups = [dict(group) for group in objective.groups(net)]
    known = set(net.parameters())
    if not all(parameter in known for group in groups for parameter in group["params"]):
        raise ShoalError(
            "The objective's groups hold a parameter that its network does not have; build them from net.parameters()."
        )
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, **common)
    common |= {"momentum": config.momentum, "nesterov": config.nesterov}
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, **common)
    # You, Gitman and Ginsburg (2017): every tensor's step is scaled by its length, as SwAV does it; without
    # `always_adapt` timm would leave tensors without decay out, and take steps a thousand times longer there.
    from timm.optim.lars import Lars  # noqa: PLC0415  timm takes seconds to import

    return Lars(groups, trust_coeff=config.trust, always_adapt=True, **common)


def schedule(config: TrainConfig, optimizer: torch.optim.Optimizer, epochs: float) -> None:
    """Set each group's learning rate for a step that is taken after `epochs` (a fraction, too) of training."""
    risen = min(1.0, epochs / config.warmup_epochs) if config.warmup_epochs else 1.0
    factor = config.warmup_start + (1 - config.warmup_start) * risen
    if config.schedule == "cosine" and epochs > config.warmup_epochs:
        done = (epochs - config.warmup_epochs) / max(config.epochs - config.warmup_epochs, 1e-9)
        factor = config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
        group["lr"] = group["initial_lr"] * factor


def read_state(optimizer: torch.optim.Optimizer, net: nn.Module) -> State:
    """What it remembers; the tensors are its own, not copies."""
    found: State = {}
    for name, parameter in net.named_parameters():
        known = {key: value for key, value in optimizer.state.get(parameter, {}).items() if value is not None}
        if known:
            found[name] = known
    return found


def write_state(optimizer: torch.optim.Optimizer, net: nn.Module, state: State) -> None:
    """The inverse of `read_state`, for an optimizer that has taken no step."""
    for name, parameter in net.named_parameters():
        if name in state:
            optimizer.state[parameter] = dict(state[name])


def operate(state: State, surgery: Surgery, before: Mapping[str, torch.Size], net: nn.Module) -> State:
    """The state of a net whose parameters were replaced; `before` are the shapes that they had.

    A row continues the state of the row it comes from, and begins with zeros where it comes from none; numbers that
    belong to a whole parameter (Adam's count of steps) stay. A parameter all of whose rows are fresh has no state.

    Raises ShoalError when a parameter has another shape than before and the surgery says nothing of it.
    """
    result: State = {}
    for name, parameter in net.named_parameters():
        source = surgery.source.get(name)
        if source is not None:
            kept = source.to(parameter.device)
            if name in state and bool((kept >= 0).any()):
                result[name] = {key: _gather(value, kept, before[name]) for key, value in state[name].items()}
        elif name in state:
            if parameter.shape != before[name]:
                raise ShoalError(
                    f"Parameter {name} has shape {tuple(parameter.shape)} and had {tuple(before[name])}, but the "
                    "surgery does not say where its rows come from; name it in Surgery.source."
                )
            result[name] = state[name]
    return result


def _gather(value: Tensor, source: Tensor, before: torch.Size) -> Tensor:
    if value.shape != before or value.ndim == 0:
        return value
    fresh = (source < 0).reshape(-1, *[1] * (value.ndim - 1))
    return torch.where(fresh, torch.zeros((), dtype=value.dtype, device=value.device), value[source.clamp_min(0)])


def flatten(state: State) -> dict[str, Tensor]:
    """For a checkpoint: names of parameters hold dots, so what is remembered comes first."""
    return {f"{key}/{name}": value for name, known in state.items() for key, value in known.items()}


def unflatten(tensors: Mapping[str, Tensor], net: nn.Module) -> State:
    """The inverse of `flatten`."""
    state: State = {}
    device: dict[str, Any] = {name: parameter.device for name, parameter in net.named_parameters()}
    for full, value in tensors.items():
        key, name = full.split("/", 1)
        # Adam keeps its count of steps on the CPU whatever the device.
        state.setdefault(name, {})[key] = value if key == "step" else value.to(device[name])
    return state
