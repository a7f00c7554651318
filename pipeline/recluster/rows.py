"""Rows of a file by mask, and components by their stable ids. Shapes: N rows, K components."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.clusterer import NOISE
from pipeline.cluster.label import Rows


def only(rows: Rows, mask_N: Tensor) -> Rows:
    """Those rows that the mask names."""
    if bool(mask_N.all()):
        return rows
    return Rows(rows.names.filter(pa.array(mask_N.numpy())), rows.x_ND[mask_N], rows.row_N[mask_N])


def index_of(component_K: Tensor, stored_N: np.ndarray) -> Tensor:
    """Index in the model of stable component ids; NOISE for one that the model lacks."""
    order = torch.argsort(component_K)
    sorted_K, wanted_N = component_K[order], torch.from_numpy(np.array(stored_N, np.int64))
    place_N = torch.searchsorted(sorted_K, wanted_N).clamp_max(len(sorted_K) - 1)
    return torch.where(sorted_K[place_N] == wanted_N, order[place_N], NOISE)
