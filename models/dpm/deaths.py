"""Clusters that end: those too small, and those whose rows the others explain better.

A fit from many cells leaves behind small clusters of rows that belong to nobody in particular. They refuse every merge,
since no single other cluster wants all of their rows; row by row the others do.

Shapes: K clusters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.clusterer import Move
from models.dpm.config import DPMConfig
from models.dpm.population import Population
from models.moments import Moments
from models.neighbors import nearest_centroids_of

_PROTECTED = 3  # nearest clusters of a dying one, which have to take its rows in and so stay for this sweep


def deaths(
    config: DPMConfig, old: Population, whole: Moments, weight_K: Tensor, runner_up_K: Tensor, *, over: bool
) -> tuple[Tensor, list[Move]]:
    """Which clusters live on, (K,) bool, and a move for each that does not.

    Without cluster k its rows add about sum_i log(N pi_c N_c(x_i)), c the second best of row i, to the log joint, which
    loses k's own weight. The approximation takes the others' parameters as they are, so it is close where k is small
    beside them; it is not used for a cluster whose neighbours are dying, nor under metropolis, where moves are exact.
    """
    rows = float(whole.count_K.sum())
    small_K = whole.count_K < min(config.min_size, float(whole.count_K.max()))
    moves = [
        Move("death", (int(old.id_K[k]),), math.nan, True, f"{int(whole.count_K[k])} rows, fewer than min_size")
        for k in torch.nonzero(small_K).flatten().tolist()
    ]
    living_K = ~small_K
    if over or config.metropolis or int(living_K.sum()) < 2:
        return living_K, moves
    gain_K = runner_up_K + whole.count_K * math.log(rows) - weight_K
    gain_K = torch.where(small_K | gain_K.isnan(), -torch.inf, gain_K)
    wanting = torch.argsort(gain_K, descending=True, stable=True)[: int((gain_K > 0).sum())].tolist()
    if not wanting:
        return living_K, moves
    stay = torch.nonzero(~small_K).flatten()
    near_Sn = stay[nearest_centroids_of(whole.mean_KD[stay].float(), min(_PROTECTED, len(stay) - 1))]
    heirs = dict(zip(stay.tolist(), near_Sn.tolist(), strict=True))
    needed: set[int] = set()
    for k in wanting:
        if k not in needed and all(living_K[other] for other in heirs[k]):
            living_K[k] = False
            needed.update(heirs[k])
            why = f"each of its {int(whole.count_K[k])} rows in its second best cluster is likelier"
            moves.append(Move("death", (int(old.id_K[k]),), float(gain_K[k]), True, why))
    return living_K, moves
