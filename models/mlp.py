"""A small network fitted to a map that is known only on some rows.

Shapes: N rows, B rows of a batch, D dimensions in, C coordinates out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from models.config import Config
from models.pca import in_blocks


class MLPConfig(Config):
    """The network's shape and how it is trained; a step is one batch."""

    width: int = Field(512, ge=1)
    hidden_layers: int = Field(3, ge=1)
    epochs: int = Field(200, ge=1, description="passes over the rows, as far as max_steps allows")
    max_steps: int = Field(4000, ge=1, description="a bound on batches, so that time stops growing with rows")
    batch_rows: int = Field(128, ge=1, description="rows per batch while max_steps is not reached")
    max_batch_rows: int = Field(512, ge=1, description="rows per batch for many rows")
    learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    noise: float = Field(0.3, ge=0, description="Gaussian noise on inputs, in standard deviations of a column")


class MLP(nn.Module):
    """Standardised input, hidden layers with GELU, coordinates in their own units. Costs O(D W + W^2) per row."""

    mean_in_D: Tensor
    scale_in_D: Tensor
    mean_out_C: Tensor
    scale_out_C: Tensor

    def __init__(self, config: MLPConfig, dim_in: int, dim_out: int) -> None:
        super().__init__()
        widths = [dim_in, *[config.width] * config.hidden_layers]
        hidden = [layer for pair in zip(widths, widths[1:], strict=False) for layer in (nn.Linear(*pair), nn.GELU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(widths[-1], dim_out))
        self.register_buffer("mean_in_D", torch.zeros(dim_in))
        self.register_buffer("scale_in_D", torch.ones(dim_in))
        self.register_buffer("mean_out_C", torch.zeros(dim_out))
        self.register_buffer("scale_out_C", torch.ones(dim_out))

    def forward(self, x_BD: Tensor) -> Tensor:
        """Coordinates (B, C)."""
        standard_BC: Tensor = self.layers((x_BD - self.mean_in_D) / self.scale_in_D)
        return standard_BC * self.scale_out_C + self.mean_out_C

    @torch.inference_mode()
    def transform(self, x_ND: Tensor) -> Tensor:
        """Coordinates (N, C) that do not depend on how rows are batched."""
        return in_blocks(self, x_ND)
