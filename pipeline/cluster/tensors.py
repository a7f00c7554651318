"""Between torch and `pipeline.tables`, which knows numpy only."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def to_numpy(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """For `pipeline.tables`."""
    return {name: value.detach().cpu().numpy() for name, value in tensors.items()}


def to_torch(tensors: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Back from `pipeline.tables`; copied, since safetensors hands out read-only memory."""
    return {name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}
