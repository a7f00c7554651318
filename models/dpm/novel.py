"""Births among rows that came later: where they belong nowhere, and which of them belong together.

What a component does not expect is sought among rows by themselves, without a number of clusters, and judged by the
exact log joint of all rows: what the new component is worth, and what its parents are worth without its rows.

Shapes: N rows at hand, D dimensions, K components, S sets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.dpm.counting import minus
from models.dpm.mixture import DPM
from models.dpm.regrowth import grown
from models.dpm.settling import Settling
from models.dpm.students import IndependentStudents
from models.gaussians import Gaussians
from models.moments import Moments

_TAIL = 3.0  # deviations below what a component expects of a log density
_SHIFTED = 0.5  # deviations by which the mean of a component's arrivals may be elsewhere
_CERTAIN = 6.0  # standard deviations of chance beyond which it is
_MOST_ROWS = 16_384  # that are searched at a time; others find what was born there


@dataclass(frozen=True)
class Proposal:
    """A set of rows that may be a component of its own, and what became of it."""

    parent: int  # index of the component that most of its rows were in
    rows: int
    log_ratio: float
    child: int = -1  # index of the new component; -1 for none


def strange(model: DPM, x_ND: Tensor, component_N: Tensor, new_N: Tensor) -> Tensor:
    """Rows that their components do not expect, (N,) bool: improbable ones, and arrivals that are elsewhere as a group.

    By the densities of `model`, which has not seen the arrivals: they would have made room for themselves.
    """
    clusters = model.population.clusters
    surprise_N = surprise(clusters, x_ND, component_N)
    shifted_K = _shifted(clusters, x_ND[new_N], component_N[new_N])
    return (surprise_N > _TAIL) | (new_N & shifted_K[component_N])


def surprise(clusters: Gaussians, x_ND: Tensor, component_N: Tensor) -> Tensor:
    """By how many standard deviations the log density of each row in its component is below the mean of its own rows.

    Of a Gaussian, minus the log density is chi-squared / 2 above its least, of a Student-t (nu + D) / 2 times minus the
    log of a Beta(nu / 2, D / 2); products of Student-t densities have D such terms of dimension 1.
    """
    index_K, dim = torch.arange(len(clusters.mean_KD)), clusters.dim
    peak_K = clusters.log_density_at((clusters.origin_D + clusters.mean_KD).float(), index_K[:, None])[:, 0]
    depth_N = peak_K[component_N] - clusters.log_density_at(x_ND, component_N[:, None])[:, 0]
    if clusters.degrees_K is None:
        return (depth_N - dim / 2) / math.sqrt(dim / 2)
    terms = dim if isinstance(clusters, IndependentStudents) else 1
    half_K, all_K = clusters.degrees_K / 2, (clusters.degrees_K + dim / terms) / 2
    mean_K = terms * all_K * (all_K.digamma() - half_K.digamma())
    variance_K = terms * all_K.square() * (torch.polygamma(1, half_K) - torch.polygamma(1, all_K))
    return (depth_N - mean_K[component_N]) / variance_K.sqrt()[component_N]


def _shifted(clusters: Gaussians, x_nD: Tensor, component_n: Tensor) -> Tensor:
    """Components whose arrivals (n) have a mean that is not theirs, by more than chance and by enough, (K,) bool."""
    rows_K = torch.bincount(component_n, minlength=len(clusters.mean_KD)).double()
    sum_KD = torch.zeros_like(clusters.mean_KD).index_add_(0, component_n, x_nD.double() - clusters.origin_D)
    gap_KD = sum_KD / rows_K.clamp_min(1)[:, None] - clusters.mean_KD
    if clusters.diagonal:
        white_KD = gap_KD / clusters.chol_KDD
    else:
        white_KD = torch.linalg.solve_triangular(clusters.chol_KDD, gap_KD[:, :, None], upper=False)[:, :, 0]
    square_K = white_KD.square().sum(dim=1)  # times rows, chi-squared of D degrees
    chance = clusters.dim + _CERTAIN * math.sqrt(2 * clusters.dim)
    return (rows_K > 0) & (square_K > _SHIFTED**2) & (rows_K * square_K > chance)


def found_sets(
    model: DPM, settling: Settling, row_n: Tensor, rng: torch.Generator, factor: float = 1.0
) -> list[Tensor]:
    """Sets of these rows that belong together, largest first: a search among them alone, which may find one.

    Each row stands for `factor` times as many as it counts.
    """
    row_n = row_n[:_MOST_ROWS]  # rows are in the order of their hashes
    least = model.config.min_size
    if len(row_n) < least:
        return []
    set_n = grown(model, settling.x_ND[row_n], rng, factor * float(settling.weight_N[row_n].mean()))
    sets = [row_n[set_n == s] for s in range(int(set_n.max()) + 1)]
    return sorted((each for each in sets if len(each) >= least), key=len, reverse=True)


def born(settling: Settling, sets: list[Tensor]) -> list[Proposal]:
    """Make components of those sets that the log joint gains by, the best first, each judged after those before it."""
    gains = [birth_gain(settling, row_n) for row_n in sets]
    order = sorted(range(len(sets)), key=lambda s: -gains[s])
    room = settling.make_room(sum(gain > 0 for gain in gains)).tolist()
    proposals = []
    for s in order:
        row_n, child = sets[s], -1
        parent = int(settling.label_N[row_n].mode().values)
        gain = birth_gain(settling, row_n) if gains[s] > 0 else gains[s]
        if gain > 0:
            child = room.pop(0)
            settling.move(row_n, torch.full_like(row_n, child))
        proposals.append(Proposal(parent, len(row_n), gain, child))
    return proposals


def birth_gain(settling: Settling, row_n: Tensor) -> float:
    """What the log joint gains when these rows leave their components and become one of their own."""
    parent_S, place_n = settling.label_N[row_n].unique(return_inverse=True)
    parts, wholes = settling.moments(row_n, place_n, len(parent_S)), settling.whole(parent_S)
    worth = settling.worth(Moments.cat([parts.total(), minus(wholes, parts), wholes]))
    count = len(parent_S)
    return float(worth[: 1 + count].sum() - worth[1 + count :].sum())


def undone(settling: Settling, first: int, least: int) -> dict[int, float]:
    """End new components (indices from `first`) whose rows others explain better, or that are too small; smallest
    first. What each of the others is worth: what the log joint would lose without it.
    """
    joint_NC, value = settling.log_joint(), {}
    order = sorted(range(first, len(settling)), key=lambda k: float(settling.count_K[k]))
    for k in order:
        row_n = torch.nonzero(settling.label_N == k).flatten()
        gone_K = settling.count_K == 0
        gone_K[k] = True
        joint_nC = joint_NC[row_n].masked_fill(gone_K[settling.near_NC[row_n]], -torch.inf)
        if len(row_n) == 0 or not bool(joint_nC.amax(dim=1).isfinite().all()):
            continue
        next_n = settling.near_NC[row_n, joint_nC.argmax(dim=1)]
        heir_S, place_n = next_n.unique(return_inverse=True)
        parts, wholes = settling.moments(row_n, place_n, len(heir_S)), settling.whole(heir_S)
        worth = settling.worth(Moments.cat([settling.whole(torch.tensor([k])), wholes, wholes + parts]))
        value[k] = float(worth[: 1 + len(heir_S)].sum() - worth[1 + len(heir_S) :].sum())
        if value[k] <= 0 or len(row_n) < least:
            settling.move(row_n, next_n)
            del value[k]
    return value
