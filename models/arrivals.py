"""Rows that arrive, counted by cluster, and the sample and the ruler that they are compared with.

A row's score is measured against the other rows of its cluster: from their median, in deviations (half the distance
between the 16th and the 84th percentile), at most 4 of them, so that a single row far from everything is one row and no
drift. Arrivals and the reference sample are measured alike and compared as two samples, so scores need have no
particular distribution. Shapes: N rows, C clusters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LOW = 0.01  # share of the sample whose scores count as low
_FAR = 4.0  # deviations; scores beyond count as much
_FEW = 30  # rows of a cluster in the sample below which it has no ruler of its own


@dataclass(frozen=True)
class Arrivals:
    """Rows by cluster and their scores by the ruler of a Reference. Adds; size independent of N."""

    id_C: Tensor  # int64, ascending
    count_4C: Tensor  # float64: rows, rows of low score, sum of scores, sum of their squares
    born: int = 0  # clusters that came to be among them

    @staticmethod
    def none() -> Arrivals:
        """No rows."""
        return Arrivals(torch.empty(0, dtype=torch.int64), torch.empty(4, 0, dtype=torch.float64))

    @staticmethod
    def of(reference: Reference, cluster_N: Tensor, score_N: Tensor) -> Arrivals:
        """Counts of these rows. O(N log C)."""
        standard_N = reference.standardised(cluster_N, score_N)
        return _counted(cluster_N.cpu(), standard_N, standard_N < reference.quantile)

    @property
    def rows_C(self) -> Tensor:
        """Rows."""
        return self.count_4C[0]

    @property
    def low_C(self) -> Tensor:
        """Rows of low score."""
        return self.count_4C[1]

    @property
    def score_sum_C(self) -> Tensor:
        """Sum of standardised scores."""
        return self.count_4C[2]

    @property
    def score_square_C(self) -> Tensor:
        """Sum of their squares."""
        return self.count_4C[3]

    def __add__(self, other: Arrivals) -> Arrivals:
        id_C, place_M = torch.cat([self.id_C, other.id_C]).unique(return_inverse=True)
        count_4C = torch.zeros(4, len(id_C), dtype=torch.float64)
        count_4C.index_add_(1, place_M, torch.cat([self.count_4C, other.count_4C], dim=1))
        return Arrivals(id_C, count_4C, self.born + other.born)

    def kept(self, id_C: Tensor) -> Arrivals:
        """Only what was counted in these clusters; births stay."""
        here_C = torch.isin(self.id_C, id_C)
        return replace(self, id_C=self.id_C[here_C], count_4C=self.count_4C[:, here_C])

    def renamed(self, names: Mapping[int, int]) -> Arrivals:
        """Clusters under other ids, those that get the same one together; those not in `names` keep theirs."""
        return replace(self, id_C=_renamed(self.id_C, names)) + Arrivals.none()

    def at(self, id_C: Tensor) -> Arrivals:
        """The same in the order of `id_C`, with zeros for clusters that are not here."""
        index_C, known_C = _places(self.id_C, id_C)
        count_4C = torch.cat([self.count_4C, self.count_4C.new_zeros(4, 1)], dim=1)
        return Arrivals(id_C, count_4C[:, torch.where(known_C, index_C, -1)], self.born)

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {"id_C": self.id_C, "count_4C": self.count_4C, "born": torch.tensor(self.born)}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Arrivals:
        """The inverse of `tensors`."""
        return Arrivals(tensors["id_C"], tensors["count_4C"], int(tensors["born"]))


@dataclass(frozen=True)
class Reference:
    """The ruler that scores are measured by, and the sample that arrivals are compared with.

    A cluster with fewer than 30 rows in the sample, or unknown to it, is measured by the pooled ruler.
    """

    id_C: Tensor  # int64, ascending
    centre_C: Tensor  # float64, of the score
    deviation_C: Tensor  # float64, of the score
    pooled: tuple[float, float]  # centre and deviation over all clusters
    quantile: float  # of standardised scores: what lies below is low
    sample: Arrivals

    @staticmethod
    def of(
        cluster_N: Tensor, score_N: Tensor, id_C: Tensor, low: float = LOW, optimism_C: Tensor | None = None
    ) -> Reference:
        """From labels and scores of a uniform sample; `id_C` are the clusters that there are. O(N log N).

        `optimism_C` is how much the sample's scores gain from having been fitted to (`optimism`), in the order of
        `id_C`; new rows are expected to score so much less.
        """
        order = torch.argsort(id_C)
        id_C, cluster_N, score_N = id_C.cpu()[order], cluster_N.cpu(), score_N.cpu().double()
        pooled = _ruler(score_N)
        centre_C, deviation_C = (torch.full(id_C.shape, value, dtype=torch.float64) for value in pooled)
        by_cluster = torch.argsort(cluster_N, stable=True)
        found, count = cluster_N[by_cluster].unique_consecutive(return_counts=True)
        place, known = _places(id_C, found)
        parts = zip(place.tolist(), known.tolist(), score_N[by_cluster].split(count.tolist()), strict=True)
        for c, is_known, score_n in parts:
            if is_known and len(score_n) >= _FEW:
                centre_C[c], deviation_C[c] = _ruler(score_n)
        reference = Reference(id_C, centre_C, deviation_C, pooled, -math.inf, Arrivals.none())
        standard_N = reference.standardised(cluster_N, score_N)
        quantile = _percentile(standard_N.sort().values, low)
        sample = _counted(cluster_N, standard_N, standard_N < quantile)
        if optimism_C is not None:
            centre_C = centre_C - optimism_C.cpu().double()[order]
        return replace(reference, centre_C=centre_C, quantile=quantile, sample=sample)

    def standardised(self, cluster_N: Tensor, score_N: Tensor) -> Tensor:
        """Scores by the ruler, float64."""
        index_N, known_N = _places(self.id_C, cluster_N.cpu())
        centre_C, deviation_C = (
            torch.cat([value_C, value_C.new_tensor([value])])
            for value_C, value in zip((self.centre_C, self.deviation_C), self.pooled, strict=True)
        )
        index_N = torch.where(known_N, index_N, -1)
        return (score_N.cpu().double() - centre_C[index_N]) / deviation_C[index_N]

    def low(self, cluster_N: Tensor, score_N: Tensor) -> Tensor:
        """Which rows score lower in their cluster than nearly all of the sample do in theirs, bool."""
        return self.standardised(cluster_N, score_N) < self.quantile

    def kept(self, id_C: Tensor) -> Reference:
        """Only these clusters; the ruler of others is the pooled one from now on."""
        index = torch.nonzero(torch.isin(self.id_C, id_C)).flatten()
        return self._with(self.id_C[index], index, self.sample.kept(id_C))

    def renamed(self, names: Mapping[int, int]) -> Reference:
        """Clusters under other ids; those that are not in `names` keep theirs."""
        id_C = _renamed(self.id_C, names)
        order = torch.argsort(id_C)
        return self._with(id_C[order], order, self.sample.renamed(names))

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {
            "id_C": self.id_C,
            "centre_C": self.centre_C,
            "deviation_C": self.deviation_C,
            "pooled_quantile": torch.tensor([*self.pooled, self.quantile], dtype=torch.float64),
            **{f"sample.{name}": value for name, value in self.sample.tensors().items()},
        }

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> Reference:
        """The inverse of `tensors`."""
        sample = {name.removeprefix("sample."): value for name, value in tensors.items() if name.startswith("sample.")}
        centre, deviation, quantile = tensors["pooled_quantile"].tolist()
        ruler = (tensors["centre_C"], tensors["deviation_C"], (centre, deviation))
        return Reference(tensors["id_C"], *ruler, quantile, Arrivals.from_tensors(sample))

    def _with(self, id_C: Tensor, index: Tensor, sample: Arrivals) -> Reference:
        centre_C, deviation_C = self.centre_C[index], self.deviation_C[index]
        return replace(self, id_C=id_C, centre_C=centre_C, deviation_C=deviation_C, sample=sample)


def _counted(cluster_N: Tensor, standard_N: Tensor, low_N: Tensor) -> Arrivals:
    id_C, index_N = cluster_N.unique(return_inverse=True)
    near_N = standard_N.clamp(-_FAR, _FAR)
    value_4N = torch.stack([torch.ones_like(near_N), low_N.double(), near_N, near_N.square()])
    count_4C = torch.zeros(4, len(id_C), dtype=torch.float64).index_add_(1, index_N, value_4N)
    return Arrivals(id_C, count_4C)


def _ruler(score_N: Tensor) -> tuple[float, float]:
    """Median and half the distance between the 16th and the 84th percentile; where that is 0, something of its size."""
    if len(score_N) == 0:
        return 0.0, 1.0
    sorted_N = score_N.sort().values
    least, centre, most = (_percentile(sorted_N, share) for share in (0.1587, 0.5, 0.8413))
    spread = (most - least) / 2 or float(score_N.std(correction=0))
    return centre, spread or abs(centre) or 1.0


def _percentile(sorted_N: Tensor, share: float) -> float:
    return float(sorted_N[int(share * len(sorted_N))]) if len(sorted_N) else -math.inf


def _places(id_C: Tensor, wanted_N: Tensor) -> tuple[Tensor, Tensor]:
    """Index of each id in `id_C`, ascending, and whether it is there; without, the index means nothing."""
    if len(id_C) == 0:
        return torch.zeros_like(wanted_N), torch.zeros_like(wanted_N, dtype=torch.bool)
    index_N = torch.searchsorted(id_C, wanted_N).clamp_max(len(id_C) - 1)
    return index_N, id_C[index_N] == wanted_N


def _renamed(id_C: Tensor, names: Mapping[int, int]) -> Tensor:
    return torch.tensor([names.get(cluster, cluster) for cluster in id_C.tolist()], dtype=torch.int64)
