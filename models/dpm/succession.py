"""Which cluster a group of components is, when groups have changed: an id goes where most of its rows are.

Shapes: K components, G groups.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models.clusterer import NOISE, Move
from models.dpm.grouping import GroupingConfig, Join, grouped
from models.dpm.mixture import DPM, JOINED
from models.dpm.regrouping import Holds


def regrouped(model: DPM, holds: Holds, count_K: Tensor, rows: tuple[Tensor, Tensor]) -> tuple[DPM, list[Move]]:
    """The mixture with its components grouped again, and which clusters came together or apart.

    `count_K` says how many rows each component has; `rows` are sampled ones (M, D) and their components (M,).
    """
    population, config = model.population, model.config.grouping or GroupingConfig()
    found = grouped(population.log_weight_K.exp(), population.clusters, *rows, config, holds)
    cluster_K, next_id = succeeded(found.cluster_K, holds.hold_K, count_K, model.next_id)
    moves = _joined(population.id_K, holds.hold_K, [join for join in found.joins if join.applied])
    moves += _parted(holds.hold_K, cluster_K)
    return model.renamed(cluster_K, next_id), moves


def succeeded(group_K: Tensor, hold_K: Tensor, count_K: Tensor, next_id: int) -> tuple[Tensor, int]:
    """Cluster id of each component, (K,) int64, and the next id.

    `group_K` (0 .. G-1) says which components are one cluster now. Pairs of an old cluster and a group that shares rows
    with it are taken in order of those rows: so the larger part of a split keeps the id, and what has merged has that
    of the larger. Others get ids from `next_id` on.
    """
    rows: dict[tuple[int, int], float] = {}
    for group, old, count in zip(group_K.tolist(), hold_K.tolist(), count_K.tolist(), strict=True):
        if old != NOISE:
            rows[old, group] = rows.get((old, group), 0.0) + count
    name: dict[int, int] = {}
    taken: set[int] = set()
    for old, group in sorted(rows, key=lambda pair: (-rows[pair], pair)):
        if group not in name and old not in taken:
            name[group] = old
            taken.add(old)
    for group in group_K.unique().tolist():
        if group not in name:
            name[group] = next_id
            next_id += 1
    return torch.tensor([name[group] for group in group_K.tolist()], dtype=torch.int64), next_id


def _joined(id_K: Tensor, hold_K: Tensor, joins: list[Join]) -> list[Move]:
    """A merge for each join of groups that were not one cluster before."""
    held = [{hold} if hold != NOISE else set() for hold in hold_K.tolist()]
    moves = []
    for join in joins:
        if not held[join.left] or held[join.left] != held[join.right]:
            ids = (int(id_K[join.left]), int(id_K[join.right]))
            moves.append(Move("merge", ids, math.nan, True, JOINED[join.kind].format(join.height)))
        held[join.left] = held[join.left] | held[join.right]
    return moves


def _parted(hold_K: Tensor, cluster_K: Tensor) -> list[Move]:
    """A split for each cluster that has become another's part or more than one."""
    moves = []
    for old in hold_K.unique().tolist():
        for other in cluster_K[hold_K == old].unique().tolist():
            if NOISE != old != other and bool((cluster_K == old).any()) and not bool((hold_K == other).any()):
                why = "components of one cluster no longer are"
                moves.append(Move("split", (old, other), math.nan, True, why))
    return moves
