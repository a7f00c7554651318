"""Groups of components that are joined two at a time, the nearest first."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from models.dpm.regrouping import Groups


@dataclass(frozen=True, order=True)
class Link:
    """What two groups share: log of the summed overlaps, and the shallowest valley between two of their components."""

    overlap: float
    valley: float = 0.0

    def __add__(self, other: Link) -> Link:
        high, low = max(self.overlap, other.overlap), min(self.overlap, other.overlap)
        overlap = high + math.log1p(math.exp(low - high)) if low > -math.inf else high
        return Link(overlap, min(self.valley, other.valley))


Links = dict[tuple[int, int], Link]  # smaller name first


def between(links: Links, name_K: Tensor) -> Links:
    """Links of components summed over the groups that they are in."""
    name, summed = name_K.tolist(), Links()
    for (i, j), link in links.items():
        pair = (min(name[i], name[j]), max(name[i], name[j]))
        if pair[0] != pair[1]:
            summed[pair] = summed[pair] + link if pair in summed else link
    return summed


@dataclass(frozen=True, order=True)
class _Offer:
    """A pair of groups that may be joined, in the order in which pairs are."""

    rank: tuple[float, float, float]  # level up to rounding, weight of the smaller group, what they do not share
    left: int
    right: int
    level: float  # height on the pair's terms
    height: float
    measured: bool  # otherwise the height may be more
    link: Link


@dataclass
class Forest:
    """Groups under agglomeration: the pair of the least level is joined first, then what it was linked to is measured
    anew. Among equal levels (often 0: no valley at all) the smallest group goes first, to where it overlaps most: so
    the order of components decides nothing, and small groups find their own before large ones have grown over them.

    A pair is measured when `least`, a lower bound of its height, comes first. `level` makes of a height and a factor
    (`Groups.factor`) what is compared.
    """

    groups: Groups
    least: Callable[[int, int, Link], float]
    height: Callable[[int, int, Link], float]
    level: Callable[[float, float], float]
    near: dict[int, dict[int, _Offer]] = field(default_factory=dict)
    queue: list[_Offer] = field(default_factory=list)

    def joins(self, links: Links, highest: float) -> Iterator[tuple[int, int, float, float]]:
        """Join until the least level is above `highest` or no link is left: the pair, its height and its level."""
        for (i, j), link in links.items():
            self._offer(i, j, link)
        while self.queue:
            best = heapq.heappop(self.queue)
            left, right = best.left, best.right
            if self.near.get(left, {}).get(right) is not best:
                continue  # offered anew since, or gone
            if best.level > highest:
                return
            if not best.measured:
                self._offer(left, right, best.link, self.height(left, right, best.link))
                continue
            yield left, right, best.height, best.level
            self._join(left, right)

    def _offer(self, i: int, j: int, link: Link, height: float | None = None) -> None:
        """Queue a pair of groups, at its measured height if given, in place of any earlier offer of the same."""
        left, right = min(i, j), max(i, j)
        factor = self.groups.factor(left, right)
        if factor == math.inf:
            for one, other in ((left, right), (right, left)):
                self.near.get(one, {}).pop(other, None)
            return
        at = self.least(left, right, link) if height is None else height
        level = self.level(at, factor)
        rank = (round(level, 9), min(self.groups.weight[left], self.groups.weight[right]), -link.overlap)
        new = _Offer(rank, left, right, level, at, height is not None, link)
        self.near.setdefault(left, {})[right] = self.near.setdefault(right, {})[left] = new
        heapq.heappush(self.queue, new)

    def _join(self, left: int, right: int) -> None:
        """Make `right` part of `left`; whatever was linked to either is linked to both."""
        self.groups.join(left, right)
        mine, theirs = self.near.pop(left), self.near.pop(right)
        del mine[right], theirs[left]
        for other in sorted(mine.keys() | theirs.keys()):
            self.near[other].pop(right, None)
            links = [near[other].link for near in (mine, theirs) if other in near]
            self._offer(left, other, links[0] + links[1] if len(links) > 1 else links[0])
