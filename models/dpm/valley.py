"""Valleys between groups of components, sought in sampled rows.

Two groups are projected on the axis that best tells them apart, and the density of their rows along it is searched for
a valley between the two peaks. Sources: Ray and Lindsay (2005) and Hennig (2010), who walk along the ridge of the
fitted mixture; here it is rows that decide, because a mixture of Gaussians shows a valley wherever it needs two
Gaussians for one bend.

Shapes: M sampled rows, D dimensions, K components, n and m rows of two groups, B bins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.gaussians import factorize

_FLOOR = 1e-6  # of the data's mean variance, on covariances of rows: a component may have fewer rows than dimensions
_BINS_PER_WIDTH = 4
_REACH = 13  # bins on either side of a kernel's centre: its three bandwidths
_MARGIN = 12  # bins at either end that only feed the kernel
_FINEST = 500  # bandwidths between two medians at the most
_NORMAL_QUARTILES = 1.349  # interquartile range of a normal density in its standard deviations


def valley_depth(a_n: Tensor, b_m: Tensor, weight_n: Tensor, weight_m: Tensor) -> float:
    """Log ratio of the lower of two peaks to the deepest valley between them, nats, 0 where there is none.

    Sought between the medians of two groups of numbers, `weight_n` and `weight_m` being the rows that each number
    stands for. The density is a Gaussian kernel estimate on a grid, with Scott's bandwidth of the narrower group; one
    row is added to peak and valley alike, so no valley is deeper than the log of the rows under its lower peak, and few
    rows show shallow valleys only. O((n + m) log(n + m)) time. Does not depend on the unit of the numbers.
    """
    low_a, middle_a, high_a = _quartiles(a_n, weight_n)
    low_b, middle_b, high_b = _quartiles(b_m, weight_m)
    if middle_a > middle_b:
        return valley_depth(b_m, a_n, weight_m, weight_n)
    if middle_a == middle_b:
        return 0.0
    gap = middle_b - middle_a
    width = min(_bandwidth(high_a - low_a, weight_n), _bandwidth(high_b - low_b, weight_m))
    width = min(max(width, gap / _FINEST), gap)
    span = gap + 8 * width  # four bandwidths beyond either median
    bins = math.floor(_BINS_PER_WIDTH * span / width + 1e-6) + 1  # never a whole number of them: no median on an edge
    place_p = (torch.cat([a_n, b_m]) - (middle_a - 4 * width)) / (span / bins)
    inside_p = (place_p >= 0) & (place_p < bins)
    weight_p = torch.cat([weight_n, weight_m])[inside_p]
    count_B = torch.bincount(place_p[inside_p].long(), weight_p, minlength=bins)
    reach = torch.arange(-_REACH, _REACH + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (reach * span / bins / width).square())
    padded_B = torch.nn.functional.pad(count_B, (_REACH - _MARGIN, _REACH - _MARGIN))
    # Sampled rows under the kernel: Kish's effective number.
    unit = min(float(weight_n.mean()), float(weight_m.mean()))
    rows_B = (padded_B.unfold(0, 2 * _REACH + 1, 1) * kernel).sum(dim=1) * (math.sqrt(2) / unit)
    peak_B = rows_B.cummax(dim=0).values.minimum(rows_B.flip(0).cummax(dim=0).values.flip(0))
    return float(((peak_B + 1) / (rows_B + 1)).log().max())


@dataclass
class SampledGroups:
    """Moments and sampled rows of groups of components; a joined group takes the place of its first.

    At first each component is a group. Moments are taken when they are first asked for, over all sampled rows of a
    component; projections use its first `limit` rows, so beyond that many the order of the rows counts.
    """

    x_MD: Tensor
    count: list[float]  # expected rows: weight times M
    member: list[Tensor]  # all sampled rows of each component
    row: list[Tensor]  # rows that are projected
    weight: list[Tensor]  # rows that each of them stands for
    origin_D: Tensor
    floor: float
    moments: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(x_MD: Tensor, component_M: Tensor, weight_K: Tensor, limit: int) -> SampledGroups:
        """One group per component. O(M (D + log M)) time."""
        held_K = torch.bincount(component_M, minlength=len(weight_K))[: len(weight_K)]
        member = list(torch.argsort(component_M, stable=True)[: int(held_K.sum())].split(held_K.tolist()))
        weight = [torch.full((min(len(each), limit),), max(1.0, len(each) / limit)).double() for each in member]
        variance_D, mean_D = torch.var_mean(x_MD.double(), dim=0, correction=0)
        count = (weight_K * len(x_MD)).tolist()
        return SampledGroups(
            x_MD, count, member, [each[:limit] for each in member], weight, mean_D, _FLOOR * float(variance_D.mean())
        )

    def valley(self, i: int, j: int) -> float:
        """Depth of the valley between two groups along their discriminant, nats; infinite where one has no rows.

        O(D^3 + n (D + log n)) time.
        """
        if not (len(self.row[i]) and len(self.row[j])):
            return math.inf
        i, j = sorted((i, j), key=lambda group: self.count[group])  # one direction, whatever the groups are called
        (mean_i, cov_i), (mean_j, cov_j) = self._moments(i), self._moments(j)
        n_i, n_j = self.count[i], self.count[j]
        # Few rows make a covariance of low rank: then the larger group's counts for more.
        share = 0.5 if min(n_i, n_j) > 3 * len(mean_i) else n_i / (n_i + n_j)
        chol_DD = factorize((share * cov_i + (1 - share) * cov_j)[None])[0]
        axis_D = torch.cholesky_solve((mean_j - mean_i)[:, None], chol_DD)[:, 0]
        return valley_depth(self._along(axis_D, i), self._along(axis_D, j), self.weight[i], self.weight[j])

    def join(self, i: int, j: int) -> None:
        """Make group j part of group i, if it is another."""
        if i == j:
            return
        if len(self.row[i]) and len(self.row[j]):
            (mean_i, cov_i), (mean_j, cov_j) = self._moments(i), self._moments(j)
            share = self.count[j] / (self.count[i] + self.count[j])
            gap_D = mean_j - mean_i
            cov_DD = (1 - share) * cov_i + share * cov_j + share * (1 - share) * torch.outer(gap_D, gap_D)
            self.moments[i] = (mean_i + share * gap_D, cov_DD)
        elif len(self.row[j]):
            self.moments[i] = self._moments(j)
        self.moments.pop(j, None)
        self.row[i] = torch.cat([self.row[i], self.row[j]])
        self.weight[i] = torch.cat([self.weight[i], self.weight[j]])
        self.count[i] += self.count[j]

    def _along(self, axis_D: Tensor, group: int) -> Tensor:
        return (self.x_MD[self.row[group]].double() - self.origin_D) @ axis_D

    def _moments(self, group: int) -> tuple[Tensor, Tensor]:
        if group not in self.moments:
            x_nD = self.x_MD[self.member[group]].double() - self.origin_D
            mean_D = x_nD.mean(dim=0)
            centred_nD = x_nD - mean_D
            cov_DD = centred_nD.mT @ centred_nD / len(x_nD)
            cov_DD.diagonal().add_(self.floor)
            self.moments[group] = (mean_D, cov_DD)
        return self.moments[group]


def _bandwidth(quartile_range: float, weight_n: Tensor) -> float:
    """Scott's, of rows whose effective number is Kish's; infinite for numbers that do not vary."""
    effective = float(weight_n.sum().square() / weight_n.square().sum())
    return quartile_range / _NORMAL_QUARTILES * 1.06 * effective**-0.2 or math.inf


def _quartiles(z_n: Tensor, weight_n: Tensor) -> tuple[float, float, float]:
    sorted_n, order_n = z_n.sort()
    share_n = weight_n[order_n].cumsum(dim=0) / weight_n.sum()
    place = torch.searchsorted(share_n, share_n.new_tensor([0.25, 0.5, 0.75])).clamp_max(len(z_n) - 1)
    low, middle, high = sorted_n[place].tolist()
    return low, middle, high
