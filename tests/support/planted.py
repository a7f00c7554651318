"""Rows in planted components, and the mixture that fits them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.gaussians import Gaussians


def noise(rows: int, dim: int, seed: int) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fitted(x_MD: Tensor, component_M: Tensor) -> tuple[Tensor, Gaussians]:
    """Weight, mean and covariance of the rows of every component."""
    parts = [x_MD[component_M == k].double() for k in range(int(component_M.max()) + 1)]
    origin_D = x_MD.double().mean(dim=0)
    chol_KDD = torch.stack([torch.linalg.cholesky(torch.cov(part.T, correction=0)) for part in parts])
    mean_KD = torch.stack([part.mean(dim=0) for part in parts]) - origin_D
    return torch.tensor([float(len(part)) for part in parts]).double() / len(x_MD), Gaussians(
        origin_D, mean_KD, chol_KDD
    )


def ring(rows: int, radius: float, sectors: int, seed: int, arc: float = 1.0) -> tuple[Tensor, Tensor]:
    """A noisy circle, or an arc of it, cut into equal sectors."""
    turn_M = torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    angle_M = 2 * math.pi * arc * turn_M
    x_M2 = radius * torch.stack([angle_M.cos(), angle_M.sin()], dim=1) + 0.15 * noise(rows, 2, seed)
    return x_M2, (turn_M * sectors).long()


def blobs(count: int, dim: int, apart: float, rows: int = 300) -> tuple[Tensor, Tensor]:
    """Spheres of deviation 1 about random points of deviation `apart`."""
    component_M = torch.arange(count * rows) % count
    return apart * noise(count, dim, 5)[component_M] + noise(count * rows, dim, 6), component_M


def about(centres: list[list[float]], rows: int = 500) -> tuple[Tensor, Tensor]:
    """Spheres of deviation 1 about these points."""
    centre_KD = torch.tensor(centres, dtype=torch.float64)
    component_M = torch.arange(len(centres) * rows) % len(centres)
    return centre_KD[component_M] + noise(len(component_M), centre_KD.shape[1], 8), component_M


def same_partition(first: Tensor, second: Tensor) -> bool:
    return bool(((first[:, None] == first) == (second[:, None] == second)).all())
