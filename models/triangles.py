"""Lower triangles of square matrices: what there is to store of a Cholesky factor or of a symmetric matrix.

Shapes: K matrices of D dimensions, T = D (D + 1) / 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def packed(matrix_KDD: Tensor) -> Tensor:
    """Lower triangles row by row, diagonals included, (K, T). What is above the diagonal is left out."""
    row_T, column_T = torch.tril_indices(*matrix_KDD.shape[1:], device=matrix_KDD.device)
    return matrix_KDD[:, row_T, column_T]


def unpacked(triangle_KT: Tensor, *, symmetric: bool = False) -> Tensor:
    """The inverse of `packed`, (K, D, D), with zeros above the diagonal or mirrored."""
    dim = (math.isqrt(8 * triangle_KT.shape[1] + 1) - 1) // 2
    row_T, column_T = torch.tril_indices(dim, dim, device=triangle_KT.device)
    matrix_KDD = triangle_KT.new_zeros(len(triangle_KT), dim, dim)
    matrix_KDD[:, row_T, column_T] = triangle_KT
    if symmetric:
        matrix_KDD[:, column_T, row_T] = triangle_KT
    return matrix_KDD
