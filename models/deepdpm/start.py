"""The first clusters.

Shapes: M sampled rows, D dimensions, K clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.clusterer import DataSummary
from models.moments import Moments, sparse_moments
from models.neighbors import kmeans_seeds, nearest


def first_cells(data: DataSummary, clusters: int, origin_D: Tensor) -> Moments:
    """Moments of the k-means cells of the sample, scaled to all rows; of the whole data when only one is asked for.

    Cells without rows are left out. Raises ShoalError when the sample holds values that are not finite.
    """
    rows = torch.tensor([float(data.rows)], dtype=torch.float64)
    if clusters == 1:
        return Moments(rows, torch.zeros(1, data.dim, dtype=torch.float64), (data.covariance_DD * rows)[None].double())
    sample_MD = data.sample_MD
    seed_KD = kmeans_seeds(sample_MD, min(clusters, len(sample_MD)), data.seed, restarts=1)
    cell_M = nearest(sample_MD, seed_KD, 1)[1][:, 0]
    one_M = torch.full((len(sample_MD),), data.rows / len(sample_MD), dtype=torch.float64)
    cells = sparse_moments(sample_MD, torch.arange(len(sample_MD)), cell_M, one_M, len(seed_KD), origin_D)
    return cells[torch.nonzero(cells.count_K > 0).flatten()]
