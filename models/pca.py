"""Principal components as a reducer: the directions of largest variance, found from the covariance.

Shapes: N rows, D dimensions in, C components out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from models.config import Config
from models.rows import BLOCK, check_rows, in_blocks


class PCAConfig(Config):
    """Keep at most `n_components` directions: never more than the rows have dimensions, nor than rows − 1."""

    kind: Literal["pca"] = "pca"
    n_components: int = Field(50, ge=1, description="directions of largest variance to keep")


@dataclass(frozen=True)
class PCA:
    """Centred rows projected on orthonormal directions (Pearson 1901), largest variance first."""

    mean_D: Tensor  # float32
    direction_DC: Tensor  # float32; the largest entry of each column is positive
    explained: float  # share of the variance that the directions keep
    note: str = ""  # why PCA stands in for another reducer, if it does

    @property
    def dim_in(self) -> int:
        """Columns of the rows it takes."""
        return int(self.direction_DC.shape[0])

    @property
    def dim(self) -> int:
        """Columns of the rows it gives."""
        return int(self.direction_DC.shape[1])

    @property
    def fidelity(self) -> dict[str, float]:
        """How much of the rows survives: the share of their variance."""
        return {"explained_variance": self.explained}

    def transform(self, x_ND: Tensor) -> Tensor:
        """Float32 (N, C). Raises ShoalError for rows of another width or that are not finite."""
        check_rows(x_ND, self.dim_in)
        # A product rounds by its layout too, and what was read from a file has another than what was fitted. In this
        # one, each direction as a row, fewer widths round a row by its place in the block, too (50 to 10 or fewer do).
        direction_CD = self.direction_DC.T.contiguous()
        return in_blocks(lambda x_BD: functional.linear(x_BD - self.mean_D, direction_CD), x_ND)

    def tensors(self) -> dict[str, Tensor]:
        """What `load_pca` needs."""
        return {
            "pca.mean": self.mean_D,
            "pca.direction": self.direction_DC,
            "pca.explained": torch.tensor(self.explained, dtype=torch.float64),
            "pca.note": torch.tensor(list(self.note.encode()), dtype=torch.uint8),
        }


def fit_pca(x_ND: Tensor, n_components: int, note: str = "") -> PCA:
    """Eigenvectors of the covariance; constant columns get no weight, fewer rows than dimensions are fine.

    Costs O(N D^2 + D^3) time and O(D^2) memory. Raises ShoalError for rows that are not finite.
    """
    check_rows(x_ND, x_ND.shape[-1])
    mean_D, covariance_DD = _moments(x_ND)
    variance_D, vector_DD = torch.linalg.eigh(covariance_DD)
    keep = min(n_components, x_ND.shape[1], max(1, x_ND.shape[0] - 1))
    direction_DC = vector_DD.flip(1)[:, :keep]
    kept, total = float(variance_D.flip(0)[:keep].sum()), float(variance_D.sum())
    explained = min(1.0, kept / total) if total > 0 else 1.0
    return PCA(mean_D.float(), _with_fixed_signs(direction_DC).float(), explained, note)


def load_pca(tensors: dict[str, Tensor]) -> PCA:
    """The PCA that `tensors` came from."""
    note = bytes(tensors["pca.note"].tolist()).decode()
    return PCA(tensors["pca.mean"], tensors["pca.direction"], float(tensors["pca.explained"]), note)


def _moments(x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased covariance in float64, two passes over blocks: a float32 sum of squares loses small variances."""
    rows, dim = x_ND.shape
    total_D = torch.zeros(dim, dtype=torch.float64)
    for block in x_ND.split(BLOCK):
        total_D += block.double().sum(dim=0)
    mean_D = total_D / max(rows, 1)
    scatter_DD = torch.zeros(dim, dim, dtype=torch.float64)
    for block in x_ND.split(BLOCK):
        centred_BD = block.double() - mean_D
        scatter_DD += centred_BD.T @ centred_BD
    return mean_D, scatter_DD / max(rows, 1)


def _with_fixed_signs(direction_DC: Tensor) -> Tensor:
    """An eigenvector is one up to its sign; choose the one whose largest entry is positive."""
    largest_C = direction_DC.abs().argmax(dim=0)
    sign_C = direction_DC.gather(0, largest_C[None]).sign()
    return direction_DC * torch.where(sign_C == 0, 1.0, sign_C)
