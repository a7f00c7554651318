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

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from models.config import Config
from models.dpm.forest import Forest, Link, Links, between
from models.dpm.overlap import bhattacharyya, compared_pairs, covariances, lifted
from models.dpm.regrouping import Groups, Holds
from models.dpm.spread import blur, width
from models.dpm.valley import SampledGroups
from models.gaussians import Gaussians

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
    held_K: Tensor  # int64, smallest component of the group that each was in before the first join

    @staticmethod
    def of(held_K: Tensor, joins: Sequence[Join], resolution: float) -> Grouping:
        """Clusters after the joins that are applied."""
        applied = [join for join in joins if join.applied]
        return Grouping(_clusters(held_K, applied), tuple(joins), resolution, held_K)

    def cut(self, joins: int) -> Tensor:
        """Clusters after so many joins, (K,) int64: fewer than were applied is finer, more is coarser."""
        return _clusters(self.held_K, self.joins[: max(joins, 0)])


def grouped(
    weight_K: Tensor,
    gaussians: Gaussians,
    x_MD: Tensor,
    component_M: Tensor,
    config: GroupingConfig,
    holds: Holds | None = None,
) -> Grouping:
    """Group a mixture's components into clusters; with `holds` those that may be, on the terms of `regrouping`.

    `x_MD` is a uniform sample of the rows in the data's coordinates, and `component_M` their components; 65,536 rows
    are plenty. Where a component has more than `config.rows` of them, its first ones are projected, and only thus does
    the order of rows count. Otherwise deterministic, and up to naming independent of the order of the components;
    independent of rotation, shift and unit of the data up to rounding. Wide components (`config.wide`) stay apart, or
    where they were.

    Up to 64 components every pair is compared, O(K^2 D^3) time; beyond, each with its 8 nearest, O(K^2 D + K D^3), and
    the tree may end in several groups that nothing links. Valleys cost O(D^3 + n (D + log n)) for each pair that
    overlaps, n its projected rows. Pairs of which neither is free are left out. Memory: two K x D x D arrays (one
    K x D where covariances are diagonal) and chunks. Runs on the processor; never raises for components that are
    equal, flat or without rows.
    """
    weight_K, gaussians = weight_K.cpu().double().clamp_min(_LEAST_WEIGHT), gaussians.to("cpu")
    holds = (holds or Holds.none(len(weight_K))).to("cpu")
    weight_K, mean_KD, covariance = weight_K / weight_K.sum(), gaussians.mean_KD, covariances(gaussians)
    if config.wide <= width(weight_K, mean_KD, covariance) < 1:
        return Grouping.of(holds.named(torch.ones_like(holds.free_K)), (), 0.0)
    variance = config.resolution * blur(weight_K, mean_KD, covariance)
    pair_P2 = compared_pairs(mean_KD)
    pair_P2 = pair_P2[holds.free_K[pair_P2].any(dim=1)]
    used_k, place_P2 = torch.unique(pair_P2, return_inverse=True)
    mean_kD, covariance = mean_KD[used_k], lifted(covariance[used_k])
    sharp, blurred = (
        _links(weight_K, pair_P2, bhattacharyya(mean_kD, covariance, place_P2, each)) for each in (0.0, variance)
    )
    del covariance  # as large as the moments that valleys need
    rows = SampledGroups.of(x_MD.cpu(), component_M.cpu(), weight_K, config.rows)
    groups = Groups.of(weight_K, holds)
    held_K = groups.name_K.clone()
    touching = _touching(sharp, weight_K.tolist(), groups, rows, config)
    for k in torch.nonzero(torch.isin(held_K, held_K[used_k])).flatten().tolist():
        rows.join(int(held_K[k]), k)
    return Grouping.of(held_K, _joins(touching, blurred, groups, rows, config), math.sqrt(variance))


def _links(weight_K: Tensor, pair_P2: Tensor, distance_P: Tensor) -> Links:
    """sqrt(w_i w_j) times the overlap bounds the mass that Bayes' rule confuses between two components (Kailath)."""
    log_P = weight_K.log()[pair_P2].mean(dim=1) - distance_P
    return {(i, j): Link(log) for (i, j), log in zip(pair_P2.tolist(), log_P.tolist(), strict=True)}


def _touching(
    links: Links, weight: Sequence[float], groups: Groups, rows: SampledGroups, config: GroupingConfig
) -> Links:
    """Pairs of components that overlap, with the valley between them."""
    name, touching = groups.name_K.tolist(), Links()
    for (i, j), link in links.items():
        least = config.overlap * groups.factor(name[i], name[j])
        if link.overlap - math.log(min(weight[i], weight[j])) > _log(least):
            touching[i, j] = replace(link, valley=rows.valley(i, j))
    return touching


def _joins(touching: Links, blurred: Links, groups: Groups, rows: SampledGroups, config: GroupingConfig) -> list[Join]:
    """First old clusters among themselves, as if nothing were newborn, then all; continuity before shade in both."""
    old = [{pair: link for pair, link in links.items() if groups.old(*pair)} for links in (touching, blurred)]
    highest = -_log(config.bound)
    joins = _continuity(old[0], groups, rows, config.valley)
    shade = _shade(old[1], groups, highest, to=highest)
    for join in shade:
        rows.join(join.left, join.right)
    groups.settled = True
    joins += shade + _continuity(touching, groups, rows, config.valley)
    return joins + _shade(blurred, groups, highest, to=math.inf)


def _continuity(links: Links, groups: Groups, rows: SampledGroups, deepest: float) -> list[Join]:
    """Join, shallowest valley first, groups that touch: neither some pair of their components that overlaps nor the
    groups as a whole may have a valley. The pair keeps concentric rings apart, the whole keeps a bridge from chaining.
    """

    def height(i: int, j: int, link: Link) -> float:
        alone = groups.size[i] == groups.size[j] == 1
        return link.valley if alone else max(link.valley, rows.valley(i, j))

    forest = Forest(groups, lambda i, j, link: link.valley, height, operator.mul)
    joins = []
    for i, j, depth, _ in forest.joins(between(links, groups.name_K), deepest):
        rows.join(i, j)
        joins.append(Join(i, j, "continuity", depth, applied=True))
    return joins


def _shade(links: Links, groups: Groups, highest: float, to: float) -> list[Join]:
    """Join, highest first, groups by the sum of their components' overlaps over the smaller group's weight: a bound of
    the share of its rows that cannot be told from the larger group. Joins from the first above `highest` on, minus the
    log of that bound, are not applied; they go on up to `to`.
    """

    def height(i: int, j: int, link: Link) -> float:
        return _log(min(groups.weight[i], groups.weight[j])) - link.overlap

    forest = Forest(groups, height, height, lambda height, factor: height + math.log(factor))
    shade: list[Join] = []
    for i, j, high, level in forest.joins(between(links, groups.name_K), to):
        applied = (not shade or shade[-1].applied) and level <= highest
        shade.append(Join(i, j, "shade", high, applied))
    return shade


def _clusters(held_K: Tensor, joins: Sequence[Join]) -> Tensor:
    """Clusters after the joins, (K,), in order of their smallest components."""
    name_K = held_K.clone()
    for join in joins:
        name_K[name_K == join.right] = join.left
    cluster_K: Tensor = torch.unique(name_K, return_inverse=True)[1]
    return cluster_K


def _log(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf
