"""A round of DeepDPM's moves: which clusters die, split and merge, and what the next ones are made of.

Source: Ronen, Finder and Freifeld (2022). Splits and merges are judged by the partition (whole rows), so
that the ratio is the exact change of the log joint; new clusters start from the soft moments. Both kinds are
proposed in the same round, of different clusters. Shapes: K clusters, P pairs. Costs O(K D^3), never sees a row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.clusterer import Move
from models.deepdpm.config import DeepDPMConfig
from models.deepdpm.statistics import NetStats
from models.dpm.moves import disjoint_pairs, log_split_ratio, neighbor_pairs
from models.dpm.prior import NIW
from models.moments import Moments

_DRIFT = 0.05  # a cluster whose size has changed by this fraction since its axes were tried deserves a new trial


@dataclass(frozen=True)
class Member:
    """A cluster to be: where its networks and its Gaussian come from."""

    identity: int
    row: int  # of the last layer
    log_share: float  # added to the bias: what part of the row's mass it takes
    whole: Moments  # one set
    axis: int  # principal axis that its halves are cut along
    tried: float  # rows when the first axis was tried
    anew: bool  # new halves and a new subclustering net


@dataclass(frozen=True)
class Round:
    """One round's view of the clusters."""

    config: DeepDPMConfig
    prior: NIW
    stats: NetStats
    id_K: Tensor
    row_K: Tensor  # rows of the last layer
    axis_K: Tensor
    tried_K: Tensor
    rng: torch.Generator
    over: bool  # nothing is split any more

    @property
    def first(self) -> Moments:
        """Rows of the first half of each cluster."""
        return self.stats.members[torch.arange(0, 2 * len(self.id_K), 2)]

    @property
    def second(self) -> Moments:
        """Rows of the second half of each cluster."""
        return self.stats.members[torch.arange(1, 2 * len(self.id_K), 2)]

    def accepts(self, log_ratio_P: Tensor) -> Tensor:
        """Greedy: H > 1. Metropolis: with probability min(1, H)."""
        if not self.config.metropolis:
            return log_ratio_P > 0
        return torch.rand(len(log_ratio_P), generator=self.rng, dtype=torch.float64).log() < log_ratio_P

    def splits(self) -> tuple[Tensor, list[Move]]:
        """Which clusters split, (K,) bool, and every split proposed: of those with an axis left to try."""
        ratio_K = log_split_ratio(self.prior, self.config.concentration, self.first, self.second)
        smaller_K = torch.minimum(self.first.count_K, self.second.count_K)
        large_K, ripe_K = smaller_K >= self.config.min_size, self.axis_K < self.config.axes
        wanted_K = self.accepts(ratio_K) & ripe_K & large_K
        split_K = wanted_K & (not self.over)
        moves = []
        for k in torch.nonzero(ripe_K).flatten().tolist():
            why = f"halves of {int(self.first.count_K[k])} and {int(self.second.count_K[k])} rows"
            if not large_K[k]:
                why += f": fewer than min_size {self.config.min_size}"
            else:
                why += f" are {_verdict(float(ratio_K[k]), bool(wanted_K[k]), 'apart', 'together')}"
                why += ", but nothing is split any more" if wanted_K[k] and self.over else ""
            moves.append(Move("split", (int(self.id_K[k]),), float(ratio_K[k]), bool(split_K[k]), why))
        return split_K, moves

    def merges(self, free_K: Tensor) -> tuple[list[list[int]], list[Move]]:
        """Pairs that merge, larger first, and every merge proposed: of free clusters with their nearest free ones."""
        free = torch.nonzero(free_K).flatten()
        if len(free) < 2:
            return [], []
        clusters = self.first + self.second
        pair_P2 = free[neighbor_pairs(clusters.mean_KD[free], self.config.merge_neighbors)]
        left, right = clusters[pair_P2[:, 0]], clusters[pair_P2[:, 1]]
        ratio_P = -log_split_ratio(self.prior, self.config.concentration, left, right)
        accepted_P = self.accepts(ratio_P)
        wanted = torch.nonzero(accepted_P).flatten()
        chosen = {int(wanted[i]) for i in disjoint_pairs(pair_P2[wanted], ratio_P[wanted])}
        merged, moves = [], []
        for p, pair in enumerate(pair_P2.tolist()):
            ordered = sorted(pair, key=lambda k: -float(clusters.count_K[k]))
            why = _verdict(float(ratio_P[p]), bool(accepted_P[p]), "together", "apart")
            if accepted_P[p] and p not in chosen:
                why += ", but one of them has a better merge in this round"
            ids = (int(self.id_K[ordered[0]]), int(self.id_K[ordered[1]]))
            moves.append(Move("merge", ids, float(ratio_P[p]), p in chosen, why))
            if p in chosen:
                merged.append(ordered)
        return merged, moves

    def same(self, k: int) -> Member:
        """A cluster between rounds."""
        return self._member(k, self._whole(k), axis=int(self.axis_K[k]), tried=float(self.tried_K[k]), anew=False)

    def kept(self, k: int) -> Member:
        """A cluster that neither split nor merged: its halves go on, or are cut along the next axis."""
        whole, rows = self._whole(k), float(self.first.count_K[k] + self.second.count_K[k])
        axis, tried, axes = int(self.axis_K[k]), float(self.tried_K[k]), min(self.config.axes, self.prior.dim)
        if abs(rows - tried) > _DRIFT * tried:
            return self._member(k, whole, axis=0, tried=rows, anew=True)
        if axis + 1 < axes:
            return self._member(k, whole, axis=axis + 1, tried=tried, anew=True)
        return self._member(k, whole, axis=self.config.axes, tried=tried, anew=False)

    def children(self, k: int, next_id: int) -> list[Member]:
        """The halves of a cluster as clusters; the larger keeps the id."""
        rows = [float(self.first.count_K[k]), float(self.second.count_K[k])]
        larger = int(rows[1] > rows[0])
        members = []
        for half, identity in ((larger, int(self.id_K[k])), (1 - larger, next_id)):
            whole = self.stats.halves[torch.tensor([2 * k + half])]
            share = math.log(rows[half] / sum(rows))
            members.append(Member(identity, int(self.row_K[k]), share, whole, 0, rows[half], anew=True))
        return members

    def union(self, pair: list[int]) -> Member:
        """Two clusters as one, with the id of the larger and the networks of the likelier per row."""
        members = (self.first + self.second)[torch.tensor(pair)]
        per_row_2 = self.prior.log_marginal(members) / members.count_K.clamp_min(1)
        better = int(per_row_2.argmax())
        rows = float(members.count_K.sum())
        share = math.log(rows / max(1.0, float(members.count_K[better])))
        whole = self._whole(pair[0]) + self._whole(pair[1])
        return Member(int(self.id_K[pair[0]]), int(self.row_K[pair[better]]), share, whole, 0, rows, anew=True)

    def _whole(self, k: int) -> Moments:
        return self.stats.clusters[torch.tensor([k])]

    def _member(self, k: int, whole: Moments, *, axis: int, tried: float, anew: bool) -> Member:
        return Member(int(self.id_K[k]), int(self.row_K[k]), 0.0, whole, axis, tried, anew)


def play(one: Round, next_id: int) -> tuple[list[Member], list[Move], int]:
    """The next clusters, every move proposed, and the next free id. Second children come last, as new outputs do."""
    split_K, split_moves = one.splits()
    merged, merge_moves = one.merges(~split_K)
    partner = {pair[0]: pair for pair in merged}
    absorbed = {pair[1] for pair in merged}
    members, born, moves = [], [], []
    by_id = {move.clusters[0]: move for move in split_moves}
    for k, identity in enumerate(one.id_K.tolist()):
        if split_K[k]:
            first, second = one.children(k, next_id)
            members.append(first)
            born.append(second)
            proposal = by_id[identity]
            by_id[identity] = Move("split", (identity, next_id), proposal.log_ratio, True, proposal.why)
            next_id += 1
        elif k in partner:
            members.append(one.union(partner[k]))
        elif k not in absorbed:
            members.append(one.kept(k))
    moves = [*by_id.values(), *merge_moves]
    return members + born, moves, next_id


def _verdict(log_ratio: float, accepted: bool, above: str, below: str) -> str:
    """What the ratio says and, where the outcome is another, what decided."""
    says = f"likelier {above if log_ratio > 0 else below}"
    return says if accepted == (log_ratio > 0) else f"{says}, but chance decided otherwise"
