"""Whether rows that arrive are like those that the model was made from: tests of counts, and when they matter.

Shapes: C clusters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from scipy.stats import binom, hypergeom, norm
from torch import Tensor

from models.arrivals import LOW, Arrivals, Reference
from models.config import Config

__all__ = ["Arrivals", "ClusterDrift", "Drift", "NoveltyConfig", "Reference", "drift", "optimism"]

_SHRINK = 100.0  # rows that the pooled share of low scores counts as where it is a cluster's expectation


class NoveltyConfig(Config):
    """When arrivals count as novel, or a cluster as having drifted."""

    p: float = Field(1e-6, gt=0, lt=1, description="chance of a false alarm, over all clusters together")
    ratio: float = Field(2.0, ge=1, description="times as many low scores as expected that are the least of interest")
    shift: float = Field(0.25, ge=0, description="least change of a cluster's mean score, in deviations")
    z: float = Field(5.0, ge=0, description="least change of a cluster's mean score, in standard errors")
    rows: int = Field(30, ge=2, description="rows, of sample and arrivals each, that a mean score is taken over")


@dataclass(frozen=True)
class ClusterDrift:
    """How the arrivals of one cluster, or all of them, differ from the sample. None where too few rows can tell."""

    cluster: int | None  # None: all
    rows: int
    low_fraction: float | None  # of them that score low
    expected_fraction: float  # of rows like the sample's
    log_density_shift: float | None  # of their mean score, in deviations; scores beyond 4 deviations count as 4
    z: float | None  # the same in standard errors
    p: float  # chance of so many low scores among rows like the sample's
    is_novel: bool  # more low scores than chance explains
    has_drifted: bool  # typical rows score otherwise

    def as_json(self) -> dict[str, Any]:
        """Names and values, all finite."""
        return dict(vars(self))


@dataclass(frozen=True)
class Drift:
    """All arrivals, and those of each cluster."""

    overall: ClusterDrift
    clusters: tuple[ClusterDrift, ...]
    born: int  # clusters that came to be among the arrivals

    @property
    def novel(self) -> tuple[int, ...]:
        """Clusters with more low scores than chance explains."""
        return tuple(each.cluster for each in self.clusters if each.is_novel and each.cluster is not None)

    @property
    def drifted(self) -> tuple[int, ...]:
        """Clusters whose typical rows score otherwise."""
        return tuple(each.cluster for each in self.clusters if each.has_drifted and each.cluster is not None)

    @property
    def birth_rate(self) -> float:
        """Clusters born per thousand arrivals."""
        return 1000 * self.born / max(self.overall.rows, 1)

    def as_json(self, most: int = 200) -> dict[str, Any]:
        """Lists and finite numbers, of at most so many clusters: those that differ most."""

        def rank(each: ClusterDrift) -> tuple[bool, float, float]:
            return not (each.is_novel or each.has_drifted), each.p, -abs(each.z or 0.0)

        return {
            "overall": self.overall.as_json(),
            "clusters": [each.as_json() for each in sorted(self.clusters, key=rank)[:most]],
            "born": self.born,
            "birth_rate": self.birth_rate,
        }


def drift(reference: Reference, arrivals: Arrivals, config: NoveltyConfig | None = None) -> Drift:
    """Tests of the clusters that have arrivals, and of all arrivals; O(C).

    Low scores: Fisher's exact test, one-sided, in each cluster; over all, binomial about what the clusters' own shares
    lead one to expect, so that it makes no difference which clusters arrivals are in. Mean scores: difference of two
    samples, with the variance of the reference's. A test of C clusters has to pass 1 / C of the level (Bonferroni).
    """
    config = config or NoveltyConfig()
    here = arrivals.kept(arrivals.id_C[arrivals.rows_C > 0])
    there = reference.sample.at(here.id_C)
    share_C = _expected(reference.sample, there, LOW)
    shift_C, error_C = _shifts(here, there, config.rows)
    low_C, among_C = here.low_C + there.low_C, here.rows_C + there.rows_C
    p_C = hypergeom.sf(*(value.round().numpy() for value in (here.low_C - 1, among_C, low_C, here.rows_C)))
    level = config.p / max(len(here.id_C), 1)
    clusters = []
    for c, cluster in enumerate(here.id_C.tolist()):
        lows = int(here.rows_C[c]), int(here.low_C[c]), float(share_C[c]), float(p_C[c])
        shift = (float(shift_C[c]), float(error_C[c])) if lows[0] >= config.rows else (math.nan, math.nan)
        clusters.append(_verdict(cluster, lows, shift, (config, level)))
    return Drift(_overall(here, share_C, (shift_C, error_C), config), tuple(clusters), arrivals.born)


def optimism(dim: int, rows_C: Tensor) -> Tensor:
    """What a Gaussian of full covariance fitted to so many rows gains in log density on them over new rows, on average.

    Its number of parameters over rows (Akaike 1974), D (D + 3) / 2n.
    """
    return dim * (dim + 3) / (2 * rows_C.double().clamp_min(1))


def _overall(here: Arrivals, share_C: Tensor, shifts: tuple[Tensor, Tensor], config: NoveltyConfig) -> ClusterDrift:
    rows, low = int(here.rows_C.sum()), int(here.low_C.sum())
    expected = float((share_C * here.rows_C).sum()) / rows if rows else LOW
    p = float(binom.sf(low - 1, rows, expected)) if rows else 1.0
    told_C = shifts[1].isfinite()
    weight_C = here.rows_C[told_C] / here.rows_C[told_C].sum()
    shift = float((weight_C * shifts[0][told_C]).sum()) if told_C.any() else math.nan
    error = float((weight_C * shifts[1][told_C]).square().sum().sqrt()) if told_C.any() else math.nan
    return _verdict(None, (rows, low, expected, p), (shift, error), (config, config.p))


def _verdict(
    cluster: int | None,
    lows: tuple[int, int, float, float],
    shift: tuple[float, float],
    judge: tuple[NoveltyConfig, float],
) -> ClusterDrift:
    (rows, low, expected, p), (change, error), (config, level) = lows, shift, judge
    z = change / error if error > 0 else None
    surely = z is not None and abs(z) > max(config.z, float(norm.isf(level / 2)))
    return ClusterDrift(
        cluster=cluster,
        rows=rows,
        low_fraction=low / rows if rows else None,
        expected_fraction=expected,
        log_density_shift=None if math.isnan(change) else change,
        z=z,
        p=p,
        is_novel=rows > 0 and p < level and low >= config.ratio * expected * rows,
        has_drifted=surely and abs(change) >= config.shift,
    )


def _expected(sample: Arrivals, there: Arrivals, low: float) -> Tensor:
    """Share of low scores that each cluster's rows should have: its own in the sample, drawn to that of all, (C,)."""
    rows = float(sample.rows_C.sum())
    pooled = max(float(sample.low_C.sum()) / rows, low / 2) if rows else low
    return (there.low_C + _SHRINK * pooled) / (there.rows_C + _SHRINK)


def _shifts(here: Arrivals, there: Arrivals, least: int) -> tuple[Tensor, Tensor]:
    """Change of each mean score and its standard error, (C,); nan where the sample has fewer than `least` rows.

    The error is that of rows like the sample's, which arrivals are unless shown otherwise.
    """
    rows_C, before_C = here.rows_C.clamp_min(1), there.rows_C.clamp_min(2)
    mean_C = there.score_sum_C / before_C
    variance_C = (there.score_square_C / before_C - mean_C.square()).clamp_min(0) * before_C / (before_C - 1)
    error_C = (variance_C * (1 / rows_C + 1 / before_C)).sqrt()
    told_C = there.rows_C >= least
    change_C = here.score_sum_C / rows_C - mean_C
    return torch.where(told_C, change_C, torch.nan), torch.where(told_C, error_C, torch.nan)
