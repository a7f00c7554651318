"""Which components of a fitted mixture are one cluster: continuity first, then shade at a resolution.

A mixture counts Gaussians, not clusters, and has more of the former for two reasons, so there are two rules.
Continuity: two components are one cluster when they overlap and rows projected on the axis that best tells them apart
show no valley between them. This undoes what Gaussians do to a cluster that is not Gaussian: a banana, a ring or a
heavy tail takes several.
Shade: two groups are one cluster when, blurred to a resolution between the clusters' own spread and the data's, the
smaller cannot be told from the larger. This undoes what a fine prior does, which is to give every knot in a large
cluster its own component; a valley shows there, since the knot is a peak.

Where it is wrong. Clusters that touch in two dimensions without a valley between them become one, as nothing in their
rows tells them from one cluster. In embeddings without UMAP (principal components, say) clusters are as wide as the
gaps between them, and the blur that helps elsewhere may join them: set `resolution` to 0 there.

Sources: valleys, Ray and Lindsay (2005) and Hennig (2010), here in rows instead of in the model (`valley`); overlap,
Bhattacharyya (1943); that it bounds the error of Bayes' rule, Kailath (1967).

Shapes: K components, M sampled rows, D dimensions, P pairs of components, G clusters.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.config import Config
from models.dpm.spread import blur, width
from models.dpm.valley import SampledGroups
from models.gaussians import Gaussians, deviations, factorize, log_determinant
from models.neighbors import nearest_centroids_of

_ALL_PAIRS = 64  # components up to which every pair is compared
_NEIGHBORS = 8  # nearest others that a component is compared with beyond that; farther overlaps count as 0
_CHUNK = 2**21  # floats of one temporary, 16 MB
_LEAST_WEIGHT = 1e-300


class GroupingConfig(Config):
    """How components are grouped into clusters. No setting has a unit."""

    # Without it, clusters of many dimensions whose means are close but whose shapes differ would be joined: their rows
    # share next to nothing, and yet no single axis shows a valley between them.
    overlap: float = Field(
        0.06,
        ge=0,
        description="part of the smaller component that two must share before the want of a valley joins them",
    )
    # Well above 0, since sampling alone makes shallow valleys.
    valley: float = Field(
        1.0, ge=0, description="depth in nats of a valley that parts two groups: 1 is a fall to 1/e of the lower peak"
    )
    # Multiplies the variance that `blur` derives from the components' and the data's.
    resolution: float = Field(
        0.4,
        ge=0,
        description="how much is blurred before groups are compared: more gives coarser clusters, 0 blurs nothing",
    )
    bound: float = Field(
        0.7, gt=0, description="overlap, as part of the smaller group, from which on it belongs to the larger"
    )
    # Bounds the time. Few rows show shallow valleys only, so far fewer would join more.
    # Such components lie over each other, and their shapes tell them apart: neither a valley on one axis nor a
    # resolution has anything to say of them, and a broad one would draw the others in.
    wide: float = Field(
        0.5, gt=0, description="part of the data's variance inside components from which on each is a cluster"
    )
    rows: int = Field(1000, ge=1, description="sampled rows of each component in which valleys are sought")


@dataclass(frozen=True)
class Join:
    """Two groups that become one. A group goes by its smallest component."""

    left: int
    right: int
    kind: Literal["continuity", "shade"]
    height: float  # nats: depth of the valley, or minus the log of the overlap as part of the smaller group
    applied: bool  # whether the clusters have it


@dataclass(frozen=True)
class Grouping:
    """The cluster of every component, and the whole tree in the order of its joins, those applied first."""

    cluster_K: Tensor  # int64, 0 .. G-1 in order of the clusters' smallest components
    joins: tuple[Join, ...]
    resolution: float  # h, in the data's unit

    def cut(self, joins: int) -> Tensor:
        """Clusters after so many joins, (K,) int64: fewer than were applied is finer, more is coarser."""
        name_K = _names(len(self.cluster_K), self.joins[: max(joins, 0)])
        cluster_K: Tensor = torch.unique(name_K, return_inverse=True)[1]
        return cluster_K


@dataclass(frozen=True, order=True)
class _Link:
    """What two groups share: log of the summed overlaps, and the shallowest valley between two of their components."""

    overlap: float
    valley: float = 0.0

    def __add__(self, other: _Link) -> _Link:
        high, low = max(self.overlap, other.overlap), min(self.overlap, other.overlap)
        overlap = high + math.log1p(math.exp(low - high)) if low > -math.inf else high
        return _Link(overlap, min(self.valley, other.valley))


_Links = dict[tuple[int, int], _Link]  # smaller name first


@dataclass(frozen=True, order=True)
class _Offer:
    """A pair of groups that may be joined, in the order in which pairs are."""

    rank: tuple[float, float]  # height up to rounding, then weight of the smaller group
    left: int
    right: int
    height: float
    measured: bool  # otherwise the height may be more
    link: _Link


@dataclass
class _Forest:
    """Groups under agglomeration: the pair of the least height is joined first, then what it was linked to is measured
    anew. Among equal heights (often 0: no valley at all) the smallest group goes first, so that the order of components
    decides nothing, and small groups find their own before large ones have grown over them.

    A pair is measured when `least`, a lower bound of its height, comes first.
    """

    weight: list[float]
    least: Callable[[int, int, _Link], float]
    height: Callable[[int, int, _Link], float]
    merge: Callable[[int, int], None] = lambda i, j: None
    near: dict[int, dict[int, _Offer]] = field(default_factory=dict)
    queue: list[_Offer] = field(default_factory=list)

    def offer(self, i: int, j: int, link: _Link, height: float | None = None) -> None:
        """Queue a pair of groups, at its measured height if given, in place of any earlier offer of the same."""
        left, right = min(i, j), max(i, j)
        at = self.least(left, right, link) if height is None else height
        rank = (round(at, 9), min(self.weight[left], self.weight[right]))
        new = _Offer(rank, left, right, at, height is not None, link)
        self.near.setdefault(left, {})[right] = self.near.setdefault(right, {})[left] = new
        heapq.heappush(self.queue, new)

    def joins(self, highest: float) -> Iterator[tuple[int, int, float]]:
        """Join until the least height is above `highest` or no link is left."""
        while self.queue:
            best = heapq.heappop(self.queue)
            left, right = best.left, best.right
            if self.near.get(left, {}).get(right) is not best:
                continue  # offered anew since, or gone
            if best.height > highest:
                return
            if not best.measured:
                self.offer(left, right, best.link, self.height(left, right, best.link))
                continue
            yield left, right, best.height
            self.join(left, right)

    def join(self, left: int, right: int) -> None:
        """Make `right` part of `left`; whatever was linked to either is linked to both."""
        self.merge(left, right)
        self.weight[left] += self.weight[right]
        mine, theirs = self.near.pop(left), self.near.pop(right)
        del mine[right], theirs[left]
        for other in sorted(mine.keys() | theirs.keys()):
            self.near[other].pop(right, None)
            links = [near[other].link for near in (mine, theirs) if other in near]
            self.offer(left, other, links[0] + links[1] if len(links) > 1 else links[0])


def grouped(
    weight_K: Tensor, gaussians: Gaussians, x_MD: Tensor, component_M: Tensor, config: GroupingConfig
) -> Grouping:
    """Group a mixture's components into clusters.

    `x_MD` is a uniform sample of the rows in the data's coordinates, and `component_M` their components; 65,536 rows
    are plenty. Where a component has more than `config.rows` of them, its first ones are projected, and only thus does
    the order of rows count. Otherwise deterministic, and up to naming independent of the order of the components;
    independent of rotation, shift and unit of the data up to rounding. Wide components (`config.wide`) stay apart.

    Up to 64 components every pair is compared, O(K^2 D^3) time; beyond, each with its 8 nearest, O(K^2 D + K D^3), and
    the tree may end in several groups that nothing links. Valleys cost O(D^3 + n (D + log n)) for each pair that
    overlaps, n its projected rows. Memory: two K x D x D arrays (one K x D where covariances are diagonal) and chunks.
    Runs on the processor; never raises for components that are equal, flat or without rows.
    """
    weight_K, mean_KD, covariance = weight_K.cpu().double().clamp_min(_LEAST_WEIGHT), *_moments(gaussians.to("cpu"))
    weight_K = weight_K / weight_K.sum()
    if config.wide <= width(weight_K, mean_KD, covariance) < 1:
        return Grouping(torch.arange(len(weight_K)), (), 0.0)
    variance = config.resolution * blur(weight_K, mean_KD, covariance)
    pair_P2 = _pairs(mean_KD)
    sharp, blurred = (_links(weight_K, mean_KD, covariance, pair_P2, each) for each in (0.0, variance))
    del covariance  # as large as the moments that valleys need
    rows = SampledGroups.of(x_MD.cpu(), component_M.cpu(), weight_K, config.rows)
    joins = _continuity(weight_K, sharp, rows, config)
    joins += _shade(weight_K, blurred, joins, config.bound)
    whole = Grouping(torch.arange(len(weight_K)), tuple(joins), math.sqrt(variance))
    return Grouping(whole.cut(sum(join.applied for join in joins)), whole.joins, whole.resolution)


def bhattacharyya(mean_KD: Tensor, covariance: Tensor, pair_P2: Tensor, variance: float = 0.0) -> Tensor:
    """Bhattacharyya distance of pairs of Gaussians, (P,), that is -log of the integral of sqrt(p q) (1943).

    (m - n)' S^-1 (m - n) / 8 + log(|S| / sqrt(|A| |B|)) / 2, where S = (A + B) / 2; `variance` is added to every
    covariance, and covariances (K, D) are diagonal. O(P D^3) time, or O(P D).
    """
    size = max(1, _CHUNK // covariance[0].numel())
    root_K = torch.cat([log_determinant(_factors(_blurred(each, variance))) for each in covariance.split(size)]) / 2
    distances = [
        _distances(mean_KD, root_K, _blurred((covariance[left] + covariance[right]) / 2, variance), left, right)
        for left, right in (chunk.unbind(dim=1) for chunk in pair_P2.split(size))
    ]
    return torch.cat([*distances, mean_KD.new_empty(0)])


def _distances(mean_KD: Tensor, root_K: Tensor, middle: Tensor, left_P: Tensor, right_P: Tensor) -> Tensor:
    factor, gap_PD = _factors(middle), mean_KD[right_P] - mean_KD[left_P]
    if factor.ndim == 2:
        white_PD = gap_PD / factor
    else:
        white_PD = torch.linalg.solve_triangular(factor, gap_PD[..., None], upper=False)[..., 0]
    distance_P = white_PD.square().sum(dim=1) / 8 + (log_determinant(factor) - root_K[left_P] - root_K[right_P]) / 2
    return distance_P.clamp_min(0)


def _factors(covariance: Tensor) -> Tensor:
    return deviations(covariance) if covariance.ndim == 2 else factorize(covariance)


def _blurred(covariance: Tensor, variance: float) -> Tensor:
    if covariance.ndim == 2:
        return covariance + variance
    covariance = covariance.clone()
    covariance.diagonal(dim1=-2, dim2=-1).add_(variance)
    return covariance


def _moments(gaussians: Gaussians) -> tuple[Tensor, Tensor]:
    """Means about the origin and covariances, of which flat ones have the least jitter that gives them a density."""
    covariance = gaussians.chol_KDD.square() if gaussians.diagonal else gaussians.covariance_KDD
    if gaussians.degrees_K is not None:
        degrees_K = gaussians.degrees_K
        wider_K = torch.where(degrees_K > 2, degrees_K / (degrees_K - 2).clamp_min(1e-300), 1.0)
        covariance = covariance * wider_K.view(-1, *[1] * (covariance.ndim - 1))
    for each in covariance.split(max(1, _CHUNK // covariance[0].numel())):
        factor = _factors(each)
        each.copy_(factor.square() if factor.ndim == 2 else factor @ factor.mT)
    return gaussians.mean_KD, covariance


def _pairs(mean_KD: Tensor) -> Tensor:
    """Pairs of components that are compared, smaller first, (P, 2)."""
    count = len(mean_KD)
    if count <= _ALL_PAIRS:
        return torch.triu_indices(count, count, 1).T
    near_KJ = nearest_centroids_of(mean_KD, _NEIGHBORS)
    pair_P2 = torch.stack([torch.arange(count)[:, None].expand_as(near_KJ), near_KJ], dim=-1).reshape(-1, 2)
    unique_P2: Tensor = torch.unique(pair_P2.sort(dim=1).values, dim=0)
    return unique_P2


def _links(weight_K: Tensor, mean_KD: Tensor, covariance: Tensor, pair_P2: Tensor, variance: float) -> _Links:
    """sqrt(w_i w_j) times the overlap bounds the mass that Bayes' rule confuses between two components (Kailath)."""
    log_P = weight_K.log()[pair_P2].mean(dim=1) - bhattacharyya(mean_KD, covariance, pair_P2, variance)
    return {(i, j): _Link(log) for (i, j), log in zip(pair_P2.tolist(), log_P.tolist(), strict=True)}


def _continuity(weight_K: Tensor, links: _Links, rows: SampledGroups, config: GroupingConfig) -> list[Join]:
    """Join, shallowest valley first, groups that touch: neither some pair of their components that overlaps nor the
    groups as a whole may have a valley. The pair keeps concentric rings apart, the whole keeps a bridge from chaining.
    """
    weight = weight_K.tolist()
    forest = _Forest(
        weight, lambda i, j, link: link.valley, lambda i, j, link: max(link.valley, rows.valley(i, j)), rows.join
    )
    for (i, j), link in links.items():
        if link.overlap - math.log(min(weight[i], weight[j])) > _log(config.overlap):
            depth = rows.valley(i, j)
            forest.offer(i, j, replace(link, valley=depth), depth)
    return [Join(i, j, "continuity", height, applied=True) for i, j, height in forest.joins(config.valley)]


def _shade(weight_K: Tensor, links: _Links, joins: list[Join], bound: float) -> list[Join]:
    """Join, highest first, groups by the sum of their components' overlaps over the smaller group's weight: a bound of
    the share of its rows that cannot be told from the larger group. Goes on until nothing is linked; joins from the
    first below `bound` on are not applied.
    """
    name_K = _names(len(weight_K), joins)
    weight, name = torch.zeros_like(weight_K).index_add_(0, name_K, weight_K).tolist(), name_K.tolist()
    shared: _Links = {}
    for (i, j), link in links.items():
        pair = (min(name[i], name[j]), max(name[i], name[j]))
        if pair[0] != pair[1]:
            shared[pair] = shared[pair] + link if pair in shared else link

    def height(i: int, j: int, link: _Link) -> float:
        return _log(min(weight[i], weight[j])) - link.overlap

    forest = _Forest(weight, height, height)
    for (i, j), link in shared.items():
        forest.offer(i, j, link)
    shade: list[Join] = []
    for i, j, high in forest.joins(math.inf):
        applied = (not shade or shade[-1].applied) and high <= -_log(bound)
        shade.append(Join(i, j, "shade", high, applied))
    return shade


def _names(count: int, joins: Sequence[Join]) -> Tensor:
    """Smallest component of every component's group after the joins, (K,)."""
    name_K = torch.arange(count)
    for join in joins:
        name_K[name_K == join.right] = join.left
    return name_K


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
