"""Rows of embeddings: whether they are fit for use, and how they pass through a matrix product one by one.

Shapes: N rows, B rows of a block, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from models.errors import ShoalError

BLOCK = 1024  # rows per call into a matrix product; always the same, so that a row's result is too


def in_blocks(function: Callable[[Tensor], Tensor], x_ND: Tensor) -> Tensor:
    """Apply a row-wise function to blocks of exactly BLOCK float32 rows, the last one padded with zeros.

    Matrix products round differently for different shapes; of one shape, a row's result depends on that row only.
    """
    if not len(x_ND):
        return function(torch.zeros(BLOCK, x_ND.shape[1]))[:0]
    blocks = [function(_padded(block.float().cpu()))[: len(block)] for block in x_ND.split(BLOCK)]
    return torch.cat(blocks)


def check_rows(x_ND: Tensor, dim: int) -> None:
    """Raise ShoalError unless the rows are `dim` wide and finite."""
    if x_ND.ndim != 2 or x_ND.shape[1] != dim:
        raise ShoalError(
            f"Embeddings are {x_ND.shape[-1]}-d but the reducer was fitted on {dim}-d; "
            "re-extract with the backbone it was fitted on, or fit again."
        )
    if not torch.isfinite(x_ND).all():
        bad = int((~torch.isfinite(x_ND).all(dim=1)).sum())
        raise ShoalError(
            f"{bad} of {len(x_ND)} embeddings hold NaN or infinity; extract them again without these rows."
        )


def _padded(x_BD: Tensor) -> Tensor:
    return torch.cat([x_BD, x_BD.new_zeros(BLOCK - len(x_BD), x_BD.shape[1])]) if len(x_BD) < BLOCK else x_BD
