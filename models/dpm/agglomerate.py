"""Clusters merged pair after pair, best first, and whole branches of the dendrogram judged as one move.

Pairs of fragments of one cloud often refuse to merge although all of them together are likelier as one cluster. So the
clusters are joined pair by pair, best first and whatever the sign of the gain, into a dendrogram; because the log joint
is a sum over clusters, its best cut follows exactly by dynamic programming from the leaves up (as for Bayesian
hierarchical clustering, Heller and Ghahramani 2005). Costs O(K n) marginal likelihoods of O(D^3), n neighbours.

Shapes: K clusters.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from torch import Tensor

from models.dpm.moves import MergeProposals, cluster_weight
from models.dpm.prior import Prior
from models.moments import Moments

# Nats per row. A cloud cut in two by hard assignment looks likelier by at most about log 2 a row; clusters that are
# different lose several, and a dendrogram of all of them up to the root would take most of a sweep.
_HOPELESS = 1.0

Group = tuple[list[int], float]  # clusters, and what the log joint gains when they become one


@dataclass
class _Forest:
    """Dendrogram under construction: nodes 0 .. K-1 are the clusters."""

    prior: Prior
    concentration: float
    moments: dict[int, Moments]  # of the roots
    weight: list[float]
    near: list[set[int]]  # neighbours among the roots
    only_gains: bool
    children: dict[int, tuple[int, int]] = field(default_factory=dict)
    heap: list[tuple[float, int, int, float]] = field(default_factory=list)  # - gain, pair, weight of the union

    def offer(self, gain: float, left: int, right: int) -> None:
        """Queue a merge of two roots, unless it costs more than what fragments of one cloud cost each other."""
        weight = gain + self.weight[left] + self.weight[right]
        rows = float(self.moments[left].count_K[0] + self.moments[right].count_K[0])
        if gain > (0 if self.only_gains else -_HOPELESS * rows):
            heapq.heappush(self.heap, (-gain, min(left, right), max(left, right), weight))

    def propose(self, node: int, others: list[int]) -> None:
        """Queue the merges of a root with its neighbours."""
        if others:
            mine, theirs = self.moments[node], Moments.cat([self.moments[i] for i in others])
            union = Moments(
                mine.count_K + theirs.count_K, mine.sum_KD + theirs.sum_KD, mine.second_KDD + theirs.second_KDD
            )
            for other, weight in zip(
                others, cluster_weight(self.prior, self.concentration, union).tolist(), strict=True
            ):
                self.offer(weight - self.weight[node] - self.weight[other], node, other)

    def join(self, left: int, right: int, weight: float) -> None:
        """Make two roots one of this weight, with the neighbours of both."""
        node = len(self.weight)
        self.moments[node] = self.moments.pop(left) + self.moments.pop(right)
        self.weight.append(weight)
        self.children[node] = (left, right)
        self.near.append((self.near[left] | self.near[right]) - {left, right})
        for other in self.near[node]:
            self.near[other] = (self.near[other] - {left, right}) | {node}
        self.near[left] = self.near[right] = set()
        self.propose(node, sorted(self.near[node]))

    def grow(self) -> None:
        """Join until no merge is left."""
        while self.heap:
            _, left, right, weight = heapq.heappop(self.heap)
            if left in self.moments and right in self.moments:
                self.join(left, right, weight)


def agglomerate(
    prior: Prior, concentration: float, clusters: Moments, proposals: MergeProposals, *, only_gains: bool = False
) -> list[Group]:
    """Groups of at least two clusters that raise the log joint when each becomes one cluster, and by how much.

    `proposals` are of the neighbours that may be joined directly. With `only_gains` no pair is joined that lowers the
    log joint, which is quicker and misses branches. Groups are disjoint and in order of their first cluster.
    """
    count = len(clusters)
    roots = {k: clusters.one(k) for k in range(count)}
    near = _adjacency(count, proposals.pair_P2)
    forest = _Forest(prior, concentration, roots, proposals.weight_K.tolist(), near, only_gains)
    for (left, right), gain in zip(proposals.pair_P2.tolist(), proposals.ratio_P.tolist(), strict=True):
        forest.offer(gain, left, right)
    forest.grow()
    return _best_cut(forest, count)


def _best_cut(forest: _Forest, count: int) -> list[Group]:
    """Each node is worth the more of itself as one cluster and its children's best cuts."""
    alone = forest.weight
    leaves: list[list[int]] = [[k] for k in range(count)]
    base, best = alone[:count], alone[:count]
    groups: list[list[Group]] = [[] for _ in range(count)]
    inner = set(range(len(alone)))
    for node in range(count, len(alone)):
        left, right = forest.children[node]
        inner -= {left, right}
        leaves.append(sorted(leaves[left] + leaves[right]))
        base.append(base[left] + base[right])
        apart = best[left] + best[right]
        best.append(max(alone[node], apart))
        whole = [(leaves[node], alone[node] - base[node])]
        groups.append(whole if alone[node] > apart else groups[left] + groups[right])
    return sorted(group for root in inner for group in groups[root])


def _adjacency(count: int, pair_P2: Tensor) -> list[set[int]]:
    near: list[set[int]] = [set() for _ in range(count)]
    for left, right in pair_P2.tolist():
        near[left].add(right)
        near[right].add(left)
    return near
