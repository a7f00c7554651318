"""Many clusters merged at once: a whole branch of a dendrogram judged as one move.

Pairs of fragments of one cloud often refuse to merge although all of them together are likelier as one cluster. So the
clusters are joined pair by pair, best first and whatever the sign of the gain, into a dendrogram; because the log joint
is a sum over clusters, its best cut follows exactly by dynamic programming from the leaves up (as for Bayesian
hierarchical clustering, Heller and Ghahramani 2005). Costs O(K n) marginal likelihoods of O(D^3), n neighbours.

Shapes: K clusters.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.dpm.moves import cluster_weight, log_split_ratio
from models.dpm.prior import NIW
from models.moments import Moments


@dataclass
class _Forest:
    """Dendrogram under construction: nodes 0 .. K-1 are the clusters."""

    prior: NIW
    concentration: float
    moments: list[Moments]
    near: list[set[int]]  # neighbours among the roots
    children: dict[int, tuple[int, int]] = field(default_factory=dict)
    heap: list[tuple[float, int, int]] = field(default_factory=list)

    def propose(self, node: int, others: list[int]) -> None:
        """Queue the merges of a root with its neighbours."""
        if others:
            mine = Moments.cat([self.moments[node]] * len(others))
            gain = -log_split_ratio(
                self.prior, self.concentration, mine, Moments.cat([self.moments[i] for i in others])
            )
            for other, value in zip(others, gain.tolist(), strict=True):
                heapq.heappush(self.heap, (-value, min(node, other), max(node, other)))

    def join(self, left: int, right: int) -> None:
        """Make two roots one, with the neighbours of both."""
        node = len(self.moments)
        self.moments.append(self.moments[left] + self.moments[right])
        self.children[node] = (left, right)
        self.near.append((self.near[left] | self.near[right]) - {left, right})
        for other in self.near[node]:
            self.near[other] = (self.near[other] - {left, right}) | {node}
        self.near[left] = self.near[right] = set()
        self.propose(node, sorted(self.near[node]))


def agglomerate(prior: NIW, concentration: float, clusters: Moments, pair_P2: Tensor) -> list[tuple[list[int], float]]:
    """Groups of at least two clusters that raise the log joint when each becomes one cluster, and by how much.

    `pair_P2` are the neighbours that may be joined directly. Groups are disjoint and in order of their first cluster.
    """
    count = len(clusters.count_K)
    forest = _Forest(
        prior, concentration, [clusters[torch.tensor([k])] for k in range(count)], _adjacency(count, pair_P2)
    )
    for node in range(count):
        forest.propose(node, [other for other in sorted(forest.near[node]) if other > node])
    joined: set[int] = set()
    while forest.heap:
        _, left, right = heapq.heappop(forest.heap)
        if left not in joined and right not in joined:
            joined |= {left, right}
            forest.join(left, right)
    return _best_cut(forest, count)


def _best_cut(forest: _Forest, count: int) -> list[tuple[list[int], float]]:
    """Each node is worth the more of itself as one cluster and its children's best cuts."""
    alone = cluster_weight(forest.prior, forest.concentration, Moments.cat(forest.moments)).tolist()
    leaves: list[list[int]] = [[k] for k in range(count)]
    base, best = alone[:count], alone[:count]
    groups: list[list[tuple[list[int], float]]] = [[] for _ in range(count)]
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
