"""Moments of sets of rows: what a fit keeps of them, and what adds over workers.

Shapes: N rows, D dimensions, K sets. Everything here is float64: with float32 sums a count stops growing near 2**24
rows, and a covariance taken from raw second moments loses its last digits first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models import triangles

_WHOLE, _TRIANGLES = "second_KDD", "second_KT"


@dataclass(frozen=True)
class Moments:
    """Count, sum and second moment of K sets of rows, each about one fixed origin.

    Adding two Moments equals one pass over both sets of rows. Taking them about a point inside the data (not 0) keeps
    the scatter accurate when the data lie far from 0. Where only variances count, `second_KDD` holds the diagonals
    alone, (K, D).
    """

    count_K: Tensor
    sum_KD: Tensor
    second_KDD: Tensor

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count_K + other.count_K, self.sum_KD + other.sum_KD, self.second_KDD + other.second_KDD)

    def __iadd__(self, other: Moments) -> Moments:
        """In place: at 1,000 clusters of 128 dimensions the second moments take 262 MB."""
        self.count_K.add_(other.count_K)
        self.sum_KD.add_(other.sum_KD)
        self.second_KDD.add_(other.second_KDD)
        return self

    def __getitem__(self, index: Tensor) -> Moments:
        return Moments(self.count_K[index], self.sum_KD[index], self.second_KDD[index])

    def one(self, k: int) -> Moments:
        """Set `k` by itself, as a view: no memory of its own."""
        return Moments(self.count_K[k : k + 1], self.sum_KD[k : k + 1], self.second_KDD[k : k + 1])

    def __len__(self) -> int:
        return len(self.count_K)

    @staticmethod
    def cat(parts: Sequence[Moments]) -> Moments:
        """All sets of all parts, in order."""
        return Moments(
            torch.cat([part.count_K for part in parts]),
            torch.cat([part.sum_KD for part in parts]),
            torch.cat([part.second_KDD for part in parts]),
        )

    def to(self, device: torch.device | str) -> Moments:
        """The same on another device."""
        return Moments(self.count_K.to(device), self.sum_KD.to(device), self.second_KDD.to(device))

    def total(self) -> Moments:
        """The union of all sets, as one."""
        return Moments(
            self.count_K.sum(dim=0, keepdim=True),
            self.sum_KD.sum(dim=0, keepdim=True),
            self.second_KDD.sum(dim=0, keepdim=True),
        )

    @property
    def dim(self) -> int:
        """D."""
        return self.sum_KD.shape[1]

    @property
    def diagonal(self) -> bool:
        """Whether only variances are kept."""
        return self.second_KDD.ndim == 2

    @property
    def mean_KD(self) -> Tensor:
        """Means about the origin; 0 for an empty set."""
        return self.sum_KD / self.count_K.clamp_min(1e-300)[:, None]

    @property
    def scatter_KDD(self) -> Tensor:
        """Sum of outer products about each set's own mean; (K, D) where only variances are kept."""
        if self.diagonal:
            return self.second_KDD - self.sum_KD * self.mean_KD
        return self.second_KDD - self.sum_KD[:, :, None] * self.mean_KD[:, None, :]

    @property
    def variance_KD(self) -> Tensor:
        """Diagonals of the scatters: sums of squares about each set's mean."""
        second_KD = self.second_KDD if self.diagonal else self.second_KDD.diagonal(dim1=1, dim2=2)
        return second_KD - self.sum_KD * self.mean_KD

    def tensors(self) -> dict[str, Tensor]:
        """For safetensors."""
        return {"count_K": self.count_K, "sum_KD": self.sum_KD, "second_KDD": self.second_KDD}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], prefix: str = "") -> Moments:
        """The inverse of `tensors`, whose names may have been prefixed."""
        return Moments(*(tensors[f"{prefix}{name}"] for name in ("count_K", "sum_KD", "second_KDD")))


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with second moments as lower triangles, `second_KT`: half the bytes. For storage.

    A product X'X is symmetric up to rounding, so a triangle holds the mean of both sides: what comes back is symmetric,
    differs by rounding, and loses nothing when it is packed again. Diagonals and all else are left as they are.
    """
    stored = dict(tensors)
    for name in [name for name, each in tensors.items() if name.endswith(_WHOLE) and each.ndim == 3]:
        second_KDD = stored.pop(name)
        second_KT = (triangles.packed(second_KDD) + triangles.packed(second_KDD.mT)) / 2
        stored[name.removesuffix(_WHOLE) + _TRIANGLES] = second_KT
    return stored


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `packed`; tensors that never were are left as they are."""
    whole = dict(tensors)
    for name in [name for name in tensors if name.endswith(_TRIANGLES)]:
        whole[name.removesuffix(_TRIANGLES) + _WHOLE] = triangles.unpacked(whole.pop(name), symmetric=True)
    return whole


def moments_of_sets(x_ND: Tensor, set_N: Tensor, num_sets: int, origin_D: Tensor, *, diagonal: bool = False) -> Moments:
    """Moments of disjoint sets of rows: row n belongs to set `set_N[n]`. O(N D^2) time, O(N D) memory."""
    order_N = torch.argsort(set_N, stable=True)
    centred_ND = x_ND[order_N].double() - origin_D
    count_K = torch.bincount(set_N, minlength=num_sets)
    moments = zeros(num_sets, x_ND.shape[1], diagonal=diagonal, device=x_ND.device)
    start = 0
    for k, count in enumerate(count_K.tolist()):
        if count:
            rows = centred_ND[start : start + count]
            moments.sum_KD[k] = rows.sum(dim=0)
            moments.second_KDD[k] = rows.square().sum(dim=0) if diagonal else rows.T @ rows
        start += count
    return Moments(count_K.double(), moments.sum_KD, moments.second_KDD)


def weighted_moments(x_ND: Tensor, weight_NK: Tensor, origin_D: Tensor, *, diagonal: bool = False) -> Moments:
    """Moments of K weighted sets of the same rows (soft responsibilities). O(N K D^2) time, O(N D) memory."""
    centred_ND = x_ND.double() - origin_D
    weight_NK = weight_NK.double()
    if diagonal:
        return Moments(weight_NK.sum(dim=0), weight_NK.T @ centred_ND, weight_NK.T @ centred_ND.square())
    second = [(centred_ND * weight_N[:, None]).T @ centred_ND for weight_N in weight_NK.T]
    return Moments(weight_NK.sum(dim=0), weight_NK.T @ centred_ND, torch.stack(second))


def sparse_moments(
    x_ND: Tensor, row_E: Tensor, set_E: Tensor, weight_E: Tensor, num_sets: int, origin_D: Tensor
) -> Moments:
    """Moments of weighted sets of which each row is in few: row `row_E` in set `set_E` by `weight_E`.

    O(E D^2) time, O(E D) memory; equals `weighted_moments` of the dense weights.
    """
    order_E = torch.argsort(set_E, stable=True)
    row_E, set_E, weight_E = row_E[order_E], set_E[order_E], weight_E[order_E].double()
    centred_ED = x_ND[row_E].double() - origin_D
    weighted_ED = centred_ED * weight_E[:, None]
    moments = zeros(num_sets, x_ND.shape[1], device=x_ND.device)
    start = 0
    for k, count in enumerate(torch.bincount(set_E, minlength=num_sets).tolist()):
        if count:
            moments.second_KDD[k] = weighted_ED[start : start + count].T @ centred_ED[start : start + count]
        start += count
    moments.count_K.index_add_(0, set_E, weight_E)
    moments.sum_KD.index_add_(0, set_E, weighted_ED)
    return moments


def zeros(num_sets: int, dim: int, *, diagonal: bool = False, device: torch.device | str = "cpu") -> Moments:
    """Moments of empty sets."""
    shape = (num_sets, dim) if diagonal else (num_sets, dim, dim)
    count_K, sum_KD, second_KDD = (
        torch.zeros(each, dtype=torch.float64, device=device) for each in ((num_sets,), (num_sets, dim), shape)
    )
    return Moments(count_K, sum_KD, second_KDD)
