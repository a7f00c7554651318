"""A small network fitted to a map that is known only on some rows.

Shapes: N rows, B rows of a batch, D dimensions in, C coordinates out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.config import Config
from models.rows import in_blocks

SMOOTH_L1_BETA = 0.1  # quadratic below, linear above: a few rows between clusters must not pull the rest along


class MLPConfig(Config):
    """The network's shape and how it is trained; a step is one batch."""

    width: int = Field(256, ge=1, description="units of a hidden layer")
    hidden_layers: int = Field(3, ge=1)
    epochs: int = Field(200, ge=1, description="passes over the rows, as far as max_steps allows")
    max_steps: int = Field(3000, ge=1, description="a bound on batches, so that time stops growing with rows")
    batch_rows: int = Field(128, ge=1, description="smallest batch; grows to 512 as rows are many")
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    noise: float = Field(0.3, ge=0, description="Gaussian noise on inputs, in standard deviations of the rows")


class MLP(nn.Module):
    """Input scaled as a whole, hidden layers with GELU, coordinates in their own units. O(D W + W^2) per row."""

    mean_in_D: Tensor
    scale_in: Tensor
    mean_out_C: Tensor
    scale_out_C: Tensor

    def __init__(self, config: MLPConfig, dim_in: int, dim_out: int) -> None:
        super().__init__()
        widths = [dim_in, *[config.width] * config.hidden_layers]
        hidden = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.GELU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], dim_out))
        self.register_buffer("mean_in_D", torch.zeros(dim_in))
        self.register_buffer("scale_in", torch.ones(()))
        self.register_buffer("mean_out_C", torch.zeros(dim_out))
        self.register_buffer("scale_out_C", torch.ones(dim_out))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Coordinates (B, C)."""
        standard_BC: Tensor = self.layers((x_BD - self.mean_in_D) / self.scale_in)
        return standard_BC * self.scale_out_C + self.mean_out_C

    @torch.inference_mode()
    def transform(self, x_ND: Tensor) -> Tensor:
        """Coordinates (N, C), whichever rows come together."""
        return in_blocks(self, x_ND)


def fit_mlp(config: MLPConfig, x_ND: Tensor, y_NC: Tensor, seed: int) -> MLP:
    """The network that minimises smooth L1 distance to `y_NC` in units of its columns' standard deviations.

    AdamW with a one-cycle cosine schedule. The same seed gives the same network: it runs on one thread, which for
    layers this small is also the fastest when other processes want the cores. Costs O(steps × batch × W^2).
    """
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = _scaled(config, x_ND.float(), y_NC.float())
        _train(config, net, x_ND.float(), (y_NC.float() - net.mean_out_C) / net.scale_out_C)
    return net.eval().requires_grad_(False)


def load_mlp(config: MLPConfig, state: dict[str, Tensor]) -> MLP:
    """The network whose state_dict this is."""
    net = MLP(config, len(state["mean_in_D"]), len(state["mean_out_C"]))
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def _scaled(config: MLPConfig, x_ND: Tensor, y_NC: Tensor) -> MLP:
    """An untrained network that knows the scales. One scale for all inputs keeps distances what they were."""
    net = MLP(config, x_ND.shape[1], y_NC.shape[1])
    net.mean_in_D.copy_(x_ND.mean(dim=0))
    net.scale_in.copy_(_positive(x_ND.var(dim=0, correction=0).mean().sqrt()))
    net.mean_out_C.copy_(y_NC.mean(dim=0))
    net.scale_out_C.copy_(_positive(y_NC.std(dim=0, correction=0)))
    return net


def _train(config: MLPConfig, net: MLP, x_ND: Tensor, target_NC: Tensor) -> None:
    batch_rows = min(len(x_ND), max(config.batch_rows, min(512, len(x_ND) // 50)))
    steps = min(config.max_steps, config.epochs * max(1, len(x_ND) // batch_rows))
    optimizer = torch.optim.AdamW(net.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, steps + 1, pct_start=0.1)
    for row_B in itertools.islice(_batches(len(x_ND), batch_rows), steps):
        x_BD = x_ND[row_B]
        noisy_BD = x_BD + config.noise * net.scale_in * torch.randn_like(x_BD)
        standard_BC = net.layers((noisy_BD - net.mean_in_D) / net.scale_in)
        loss = functional.smooth_l1_loss(standard_BC, target_NC[row_B], beta=SMOOTH_L1_BETA)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def _batches(rows: int, batch_rows: int) -> Iterator[Tensor]:
    """Whole batches of shuffled rows, without end."""
    while True:
        for batch in torch.randperm(rows).split(batch_rows):
            if len(batch) == batch_rows:
                yield batch


def _positive(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
