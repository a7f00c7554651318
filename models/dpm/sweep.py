"""What one sweep does to the clusters, given the moments of their subclusters: deaths, splits, merges, new parameters.

Shapes: K clusters before the sweep, H = 2K subclusters, P merge candidates. Costs O(K D^3) and never sees a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.clusterer import Move
from models.dpm.agglomerate import agglomerate
from models.dpm.config import DPMConfig
from models.dpm.moves import disjoint_pairs, log_joint, log_split_ratio
from models.dpm.population import Population, Roster
from models.dpm.prior import NIW
from models.moments import Moments
from models.neighbors import nearest_centroids_of

_DRIFT = 0.02  # a cluster whose size has changed by this fraction since its axes were tried deserves a new trial


@dataclass(frozen=True)
class _Sweep:
    """One sweep's view: the living clusters, their two halves, and what is known of each."""

    config: DPMConfig
    prior: NIW
    first: Moments
    second: Moments
    clusters: Moments
    old: Population  # restricted to the living
    rng: torch.Generator
    over: bool  # the search has ended: proposals are still recorded, none is accepted

    def accepts(self, log_ratio_P: Tensor) -> Tensor:
        """Greedy: H > 1. Metropolis: with probability min(1, H)."""
        if self.over:
            return torch.zeros_like(log_ratio_P, dtype=torch.bool)
        if not self.config.metropolis:
            return log_ratio_P > 0
        return torch.rand(len(log_ratio_P), generator=self.rng, dtype=torch.float64).log() < log_ratio_P

    def splits(self) -> tuple[Tensor, list[Move]]:
        """Which clusters split, and every split proposed: those whose subclusters have had time to settle."""
        ratio_K = log_split_ratio(self.prior, self.config.concentration, self.first, self.second)
        ripe_K = self.old.age_K + 1 >= self.config.patience
        large_K = torch.minimum(self.first.count_K, self.second.count_K) >= self.config.min_size
        split_K = ripe_K & large_K & self.accepts(ratio_K)
        moves, next_id = [], self.old.next_id
        for k in torch.nonzero(ripe_K).flatten().tolist():
            child = (next_id,) if split_K[k] else ()
            next_id += len(child)
            why = self._why_split(float(ratio_K[k]), bool(split_K[k]), bool(large_K[k]), k)
            moves.append(Move("split", (int(self.old.id_K[k]), *child), float(ratio_K[k]), bool(split_K[k]), why))
        return split_K, moves

    def _why_split(self, log_ratio: float, accepted: bool, large: bool, k: int) -> str:
        halves = f"halves of {int(self.first.count_K[k])} and {int(self.second.count_K[k])} rows"
        if not large:
            return f"{halves}: fewer than min_size {self.config.min_size}"
        return f"{halves} are {self._verdict(log_ratio, accepted, 'likelier apart', 'likelier together')}"

    def _verdict(self, log_ratio: float, accepted: bool, above: str, below: str) -> str:
        """What the ratio says and, where the outcome is another, what decided."""
        says = above if log_ratio > 0 else below
        if accepted == (log_ratio > 0):
            return says
        return f"{says}, but {'the search has ended' if self.over else 'chance decided otherwise'}"

    def merges(self, free_K: Tensor) -> tuple[list[list[int]], list[Move]]:
        """Pairs that merge (larger first), and every merge proposed: of free clusters with their nearest free ones."""
        free = torch.nonzero(free_K).flatten()
        if len(free) < 2:
            return [], []
        pair_P2 = free[_neighbor_pairs(self.clusters.mean_KD[free], self.config.merge_neighbors)]
        left, right = self.clusters[pair_P2[:, 0]], self.clusters[pair_P2[:, 1]]
        ratio_P = -log_split_ratio(self.prior, self.config.concentration, left, right)
        wanted = torch.nonzero(self.accepts(ratio_P)).flatten()
        chosen = {int(wanted[i]) for i in disjoint_pairs(pair_P2[wanted], ratio_P[wanted])}
        outdone = set(wanted.tolist()) - chosen
        moves: list[Move] = []
        merged: list[list[int]] = []
        for p, (a, b) in enumerate(pair_P2.tolist()):
            keeper, other = (a, b) if self.clusters.count_K[a] >= self.clusters.count_K[b] else (b, a)
            accepted = p in chosen
            why = self._verdict(float(ratio_P[p]), accepted, "likelier together", "likelier apart")
            if p in outdone and ratio_P[p] > 0:
                why = "likelier together, but one of them has a better merge in this sweep"
            moves.append(
                Move("merge", (int(self.old.id_K[keeper]), int(self.old.id_K[other])), float(ratio_P[p]), accepted, why)
            )
            if accepted:
                merged.append([keeper, other])
        return merged, moves

    def branches(self) -> tuple[list[list[int]], list[Move]]:
        """Groups of clusters that are likelier as one although no two of them are (largest first)."""
        if self.over or len(self.clusters.count_K) < 3:  # a pair was tried as such
            return [], []
        pair_P2 = _neighbor_pairs(self.clusters.mean_KD, self.config.merge_neighbors)
        merged, moves = [], []
        for group, gain in agglomerate(self.prior, self.config.concentration, self.clusters, pair_P2):
            ordered = sorted(group, key=lambda k: -float(self.clusters.count_K[k]))
            ids = tuple(int(self.old.id_K[k]) for k in ordered)
            why = f"the {len(ids)} of them are likelier together, as a whole branch of their dendrogram"
            moves.append(Move("merge", ids, gain, True, why))
            merged.append(ordered)
        return merged, moves


def next_population(
    config: DPMConfig, prior: NIW, old: Population, halves: Moments, rng: torch.Generator
) -> tuple[Population, list[Move], float]:
    """The clusters after one sweep, every move proposed in it, and the log joint of the partition it was given.

    A cluster with fewer rows than `min_size` (empty ones above all) dies at once, and its rows go to the next best in
    the next sweep; a split's larger child and a merge's larger parent keep the id.
    """
    first, second = halves[torch.arange(0, len(halves.count_K), 2)], halves[torch.arange(1, len(halves.count_K), 2)]
    whole = first + second
    objective = log_joint(prior, config.concentration, whole[torch.nonzero(whole.count_K > 0).flatten()])
    living_K = whole.count_K >= min(config.min_size, int(whole.count_K.max()))
    living = torch.nonzero(living_K).flatten()
    moves = _deaths(old, whole.count_K, ~living_K)
    first, second, alive = first[living], second[living], old[living]
    # Less than the tolerance is rounding, which differs with the size of the blocks that were summed.
    better = not math.isfinite(old.best) or objective - old.best > config.tolerance * abs(old.best)
    old = replace(old, best=max(old.best, objective), stalled=0 if better else old.stalled + 1)
    sweep = _Sweep(
        config, prior, first, second, first + second, alive, rng, over=old.stalled >= config.stall(prior.dim)
    )
    split_K, split_moves = sweep.splits()
    merged, merge_moves = sweep.merges(~split_K)
    if not merged and not bool(split_K.any()):
        merged, branch_moves = sweep.branches()
        merge_moves += branch_moves
    roster = Roster(prior)
    _keep(roster, sweep, split_K, merged)
    next_id = _divide(roster, sweep, split_K)
    for group in merged:
        roster.join(int(alive.id_K[group[0]]), sweep.clusters[torch.tensor(group)])
    return roster.population(next_id, objective, old.best, old.stalled), [*moves, *split_moves, *merge_moves], objective


def _deaths(old: Population, count_K: Tensor, dying_K: Tensor) -> list[Move]:
    return [
        Move("death", (int(old.id_K[k]),), math.nan, True, f"{int(count_K[k])} rows, fewer than min_size")
        for k in torch.nonzero(dying_K).flatten().tolist()
    ]


def _divide(roster: Roster, sweep: _Sweep, split_K: Tensor) -> int:
    next_id = sweep.old.next_id
    for k in torch.nonzero(split_K).flatten().tolist():
        children = sorted((sweep.first[torch.tensor([k])], sweep.second[torch.tensor([k])]), key=_rows, reverse=True)
        roster.cut(int(sweep.old.id_K[k]), children[0], axis=0)
        roster.cut(next_id, children[1], axis=0)
        next_id += 1
    return next_id


def _rows(moments: Moments) -> float:
    return float(moments.count_K[0])


def _keep(roster: Roster, sweep: _Sweep, split_K: Tensor, merged: list[list[int]]) -> None:
    """Clusters that neither split nor merged: subclusters go on, or are cut anew along the next axis when stale."""
    gone = {k for group in merged for k in group} | set(torch.nonzero(split_K).flatten().tolist())
    axes = min(sweep.config.axes, sweep.prior.dim)
    for k in range(len(split_K)):
        if k in gone:
            continue
        one = torch.tensor([k])
        age, axis, tried = int(sweep.old.age_K[k]) + 1, int(sweep.old.axis_K[k]), float(sweep.old.tried_K[k])
        identity, whole = int(sweep.old.id_K[k]), sweep.clusters[one]
        if axis >= axes and abs(_rows(whole) - tried) > _DRIFT * tried:
            roster.cut(identity, whole, axis=0)
        elif axis + 1 < axes and _stale(sweep, k, age):
            roster.cut(identity, whole, axis=axis + 1)
        else:
            axis = axes if _stale(sweep, k, age) else axis
            roster.go_on(identity, sweep.first[one], sweep.second[one], age=age, axis=axis, tried=tried)


def _stale(sweep: _Sweep, k: int, age: int) -> bool:
    """Subclusters that had their time without a split, or of which one is empty."""
    return age >= sweep.config.patience or min(float(sweep.first.count_K[k]), float(sweep.second.count_K[k])) == 0


def _neighbor_pairs(mean_KD: Tensor, neighbors: int) -> Tensor:
    """Unordered pairs of each mean with its nearest others, each pair once, (P, 2) in ascending order."""
    near_Kn = nearest_centroids_of(mean_KD.float(), min(neighbors, len(mean_KD) - 1))
    left_P = torch.arange(len(mean_KD)).repeat_interleave(near_Kn.shape[1])
    pair_P2 = torch.stack([left_P, near_Kn.flatten()], dim=1).sort(dim=1).values
    unique_P2: Tensor = pair_P2.unique(dim=0)
    return unique_P2
