"""DeepDPM's networks: one that tells K clusters apart, and one for each cluster that tells its two halves apart.

Source: Ronen, Finder and Freifeld (2022). Shapes: B rows of a batch, D dimensions, K clusters, H hidden
units, T tiles of S rows. The last layer and the blocks of the subclustering nets grow and shrink with K.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Responses(NamedTuple):
    """What the networks say of each row."""

    logit_BK: Tensor  # of the clusters
    cluster_B: Tensor  # int64, the most probable cluster
    pair_B2: Tensor  # logits of that cluster's halves


class Subclusterers(nn.Module):
    """K networks Linear(D, H), ReLU, Linear(H, 2) as one; each row passes through the network of its own cluster only.

    O(B D H) time and O(B + K) rows of temporaries, whatever K is.
    """

    def __init__(self, clusters: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.weight_in = nn.Parameter(torch.zeros(clusters, dim, hidden))
        self.bias_in = nn.Parameter(torch.zeros(clusters, hidden))
        self.weight_out = nn.Parameter(torch.zeros(clusters, hidden, 2))
        self.bias_out = nn.Parameter(torch.zeros(clusters, 2))

    def forward(self, x_BD: Tensor, cluster_B: Tensor) -> Tensor:
        """Logits (B, 2)."""
        slot_B, tile_T, size = _tiles(cluster_B, len(self.bias_in))
        tiled_TSD = x_BD.new_zeros(len(tile_T) * size, x_BD.shape[1]).index_copy(0, slot_B, x_BD)
        tiled_TSD = tiled_TSD.view(len(tile_T), size, x_BD.shape[1])
        hidden_TSH = torch.baddbmm(self.bias_in[tile_T][:, None], tiled_TSD, self.weight_in[tile_T]).relu()
        logit_TS2 = torch.baddbmm(self.bias_out[tile_T][:, None], hidden_TSH, self.weight_out[tile_T])
        return logit_TS2.flatten(0, 1)[slot_B]


class DeepDPMNet(nn.Module):
    """Clustering net Linear(D, H), ReLU, Linear(H, K) and the subclustering nets, on rows of unit mean variance."""

    origin_D: Tensor
    scale: Tensor

    def __init__(self, dim: int, clusters: int, hidden: int, sub_hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, hidden)
        self.last = nn.Linear(hidden, clusters)
        self.sub = Subclusterers(clusters, dim, sub_hidden)
        self.register_buffer("origin_D", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def standardize(self, x_BD: Tensor) -> Tensor:
        """Rows about the data's mean in units of its mean standard deviation, float32; far-off data lose no digits."""
        return ((x_BD.double() - self.origin_D) / self.scale).float()

    def forward(self, x_BD: Tensor) -> Responses:
        """O(B H (D + K)) time; for rows in the data's own units."""
        standard_BD = self.standardize(x_BD)
        logit_BK = self.last(self.hidden(standard_BD).relu())
        cluster_B = logit_BK.detach().argmax(dim=1)
        return Responses(logit_BK, cluster_B, self.sub(standard_BD, cluster_B))


def _tiles(cluster_B: Tensor, clusters: int) -> tuple[Tensor, Tensor, int]:
    """Rows of one cluster packed into tiles of S = B / K rows: slot of each row, cluster of each tile, S.

    There are at most 2 K tiles, so the rows are padded to at most 2 B and the weights copied at most twice.
    """
    size = max(1, math.ceil(len(cluster_B) / clusters))
    count_K = torch.bincount(cluster_B, minlength=clusters)
    tiles_K = (count_K + size - 1) // size
    tile_T = torch.arange(clusters, device=cluster_B.device).repeat_interleave(tiles_K)
    order_B = torch.argsort(cluster_B, stable=True)
    sorted_B = cluster_B[order_B]
    first_row_K, first_tile_K = count_K.cumsum(0) - count_K, tiles_K.cumsum(0) - tiles_K
    rank_B = torch.arange(len(cluster_B), device=cluster_B.device) - first_row_K[sorted_B]
    slot_B = torch.empty_like(cluster_B)
    slot_B[order_B] = first_tile_K[sorted_B] * size + rank_B  # a cluster's tiles follow one another
    return slot_B, tile_T, size
