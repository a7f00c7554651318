"""Which cluster of a partition is which of the partition before, and what became of each.

Identity is overlap: the number of rows that two clusters share. Everything here takes counts, never rows by themselves,
so partitions of any size are compared file by file. Shapes: N rows, O old clusters, C new clusters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from models.clusterer import NOISE

_LEAST = 0.25  # of either cluster's rows that both must share to be the same one
_OFFSHOOT = 0.05  # of an old cluster's rows in a new one that make it a parent

Kind = Literal["kept", "born", "split", "merged", "died"]
Overlap = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Event:
    """What became of one cluster from a generation to the next."""

    cluster: int
    event: Kind
    parents: tuple[int, ...]  # clusters of the generation before that its rows come from


def overlap(old_N: np.ndarray, new_N: np.ndarray) -> Overlap:
    """Ids of the old clusters (O,) and of the new ones (C,), ascending, and the rows that each pair shares, (O, C).

    Rows are those in both partitions, in one order; those that either leaves out (NOISE) are not counted. O(N log N).
    """
    both_N = (old_N != NOISE) & (new_N != NOISE)
    old_O, row_N = np.unique(old_N[both_N], return_inverse=True)
    new_C, column_N = np.unique(new_N[both_N], return_inverse=True)
    pair_N = row_N * len(new_C) + column_N
    count_OC = np.bincount(pair_N, minlength=len(old_O) * len(new_C)).reshape(len(old_O), len(new_C))
    return old_O.astype(np.int64), new_C.astype(np.int64), count_OC


def summed(parts: Iterable[Overlap]) -> Overlap:
    """The overlap of all rows from those of disjoint parts of them."""
    parts = list(parts)
    old_O, new_C = (np.unique(np.concatenate([_NO_IDS, *(part[side] for part in parts)])) for side in (0, 1))
    count_OC = np.zeros((len(old_O), len(new_C)), np.int64)
    for old_o, new_c, count_oc in parts:
        count_OC[np.ix_(np.searchsorted(old_O, old_o), np.searchsorted(new_C, new_c))] += count_oc
    return old_O, new_C, count_OC


def matched(count_OC: np.ndarray, old_ids: np.ndarray, next_id: int) -> tuple[np.ndarray, int]:
    """Ids of the new clusters, int64 (C,), and the next free id.

    The pairing of old and new clusters that shares most rows (Hungarian method, Kuhn 1955) among pairs that may be the
    same cluster. So the larger child of a split keeps the id, and a merge the larger parent's, also one after the
    other. The clusters that are left get fresh ids in the order of columns. O((O + C)^3) time at worst.
    """
    old_ids = np.asarray(old_ids, np.int64)
    ids_C = np.full(count_OC.shape[1], NOISE, np.int64)
    shared_OC = np.where(_may_be_same(count_OC), count_OC, 0)
    for o, c in zip(*linear_sum_assignment(shared_OC, maximize=True), strict=True):
        if shared_OC[o, c] > 0:
            ids_C[c] = old_ids[o]
    fresh_C = ids_C == NOISE
    ids_C[fresh_C] = np.arange(next_id, next_id + fresh_C.sum())
    return ids_C, next_id + int(fresh_C.sum())


def events(
    old_ids: np.ndarray, new_ids: np.ndarray, count_OC: np.ndarray, size_O: np.ndarray, size_C: np.ndarray
) -> list[Event]:
    """What became of every old cluster and how every new one came to be, by id; those that died come last.

    `size_O` are rows of the old clusters that are still there, `size_C` all rows of the new ones; `new_ids` are final.
    A survivor that took in at least half of an old cluster which is gone is `merged`, its own id first among the
    parents, then by rows. A new id is `born` where most of its rows were in no cluster, and else `split` from those of
    which it has at least 5 % or that are half of it; so is the parent, unless it is merged.
    """
    old, new = old_ids.tolist(), new_ids.tolist()
    gone_O = ~np.isin(old_ids, new_ids)
    absorbed_OC = (2 * count_OC >= size_O[:, None]) & (count_OC > 0) & gone_O[:, None]
    source_OC = (count_OC >= _OFFSHOOT * size_O[:, None]) | (2 * count_OC >= size_C)
    source_OC &= (count_OC > 0) & ~np.isin(new_ids, old_ids) & (2 * count_OC.sum(axis=0) >= size_C)
    parted = {old[o] for o in np.flatnonzero(source_OC.any(axis=1))}
    found = []
    for c, cluster in enumerate(new):
        own = (cluster,) if cluster in old else ()
        taken = _by_rows(old, count_OC[:, c], absorbed_OC[:, c])
        sources = _by_rows(old, count_OC[:, c], source_OC[:, c])
        if own:
            alone: Kind = "split" if cluster in parted else "kept"
            found.append(Event(cluster, "merged" if taken else alone, own + taken))
        elif not sources:
            found.append(Event(cluster, "born", ()))
        else:
            found.append(Event(cluster, "merged", taken) if len(taken) > 1 else Event(cluster, "split", sources))
    found.sort(key=lambda event: event.cluster)
    return found + [Event(cluster, "died", (cluster,)) for cluster in sorted(np.asarray(old_ids)[gone_O].tolist())]


_NO_IDS = np.empty(0, np.int64)


def _may_be_same(count_OC: np.ndarray) -> np.ndarray:
    """Pairs with a quarter of either's rows in common. Where most rows of the old one went, nothing else is it.

    The second rule makes a split followed by a merge what each of them is alone: the larger child has the id and then
    loses it to a larger parent, and no remnant of few rows inherits it.
    """
    row_O1, column_C = count_OC.sum(axis=1, keepdims=True), count_OC.sum(axis=0)
    large_OC = (count_OC >= _LEAST * row_O1) | (count_OC >= _LEAST * column_C)
    most_OC = 2 * count_OC > row_O1
    same_OC: np.ndarray = (count_OC > 0) & large_OC & (most_OC | ~most_OC.any(axis=1, keepdims=True))
    return same_OC


def _by_rows(old: list[int], count_O: np.ndarray, among_O: np.ndarray) -> tuple[int, ...]:
    """Ids of the old clusters chosen, most rows first, then by id."""
    return tuple(sorted((old[o] for o in np.flatnonzero(among_O)), key=lambda each: (-count_O[old.index(each)], each)))
