"""DeepDPM's two losses, per row.

Source: Ronen, Finder and Freifeld (2022), equations of L_cl and L_sub. Shapes: B rows, K clusters, D dimensions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["paper", "reference"]


def cluster_loss(logit_BK: Tensor, log_target_BK: Tensor, divergence: Divergence, smoothing: float) -> Tensor:
    """Divergence between the network's responsibilities r and the mixture's r^E, (B,).

    paper: KL(r || r^E); reference: KL(r^E || r). r^E is mixed with `smoothing` of the uniform, in logs: a row that lies
    a thousand nats from a cluster would otherwise outweigh all others.
    """
    log_r_BK = torch.log_softmax(logit_BK, dim=1)
    if smoothing > 0:
        uniform = log_target_BK.new_tensor(math.log(smoothing / log_target_BK.shape[1]))
        log_target_BK = torch.logaddexp(log_target_BK + math.log1p(-smoothing), uniform)
    if divergence == "paper":
        return (log_r_BK.exp() * (log_r_BK - log_target_BK)).sum(dim=1)
    return (log_target_BK.exp() * (log_target_BK - log_r_BK)).sum(dim=1)


def subcluster_loss(pair_B2: Tensor, x_BD: Tensor, half_B2D: Tensor) -> Tensor:
    """Sum over a row's two halves of responsibility times squared distance to the half's mean, (B,)."""
    squared_B2 = (x_BD[:, None, :] - half_B2D).square().sum(dim=2)
    return (torch.softmax(pair_B2, dim=1) * squared_B2).sum(dim=1)
