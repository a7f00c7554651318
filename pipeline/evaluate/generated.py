"""Data made for measurements: many Gaussian components of random shapes, and imbalanced subsamples of labelled rows.

Shapes: N rows, D dimensions, K components, L labels, M rows of one component.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROWS_FILE, LABELS_FILE = "rows.npy", "labels.npy"


@dataclass(frozen=True)
class Components:
    """A law of data: means N(0, spread² I), weights proportional to 0.3 + U(0, 1).

    Component k has covariance A Aᵀ, A = 0.15 G + a I, where G is a D x D matrix of N(0, 1) and a is uniform on
    (0.6, 1.2). The seed decides everything: equal settings give equal arrays.
    """

    rows: int
    dim: int
    clusters: int
    spread: float
    seed: int = 0

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows (N, D) float32 and their components (N,) int64. O(N D²) time."""
        x_ND = np.empty((self.rows, self.dim), np.float32)
        return x_ND, self.fill(x_ND)

    def fill(self, x_ND: np.ndarray) -> np.ndarray:
        """Write the rows into an array that may be memory-mapped, and return their components.

        Component by component: memory beside `x_ND` is 24 bytes a row and one component in float64, twice.
        """
        rng = np.random.default_rng(self.seed)
        weight_K = 0.3 + rng.random(self.clusters)
        label_N = rng.choice(self.clusters, size=self.rows, p=weight_K / weight_K.sum())
        mean_KD = rng.standard_normal((self.clusters, self.dim)) * self.spread
        for mean_D, member_M in zip(mean_KD, _members(label_N, self.clusters), strict=True):
            shape_DD = 0.15 * rng.standard_normal((self.dim, self.dim))
            shape_DD += np.eye(self.dim) * (0.6 + 0.6 * rng.random())
            x_ND[member_M] = mean_D + rng.standard_normal((len(member_M), self.dim)) @ shape_DD.T
        return label_N

    def write(self, folder: Path) -> None:
        """Rows and components as .npy files of `folder`, the rows never all in memory of this process's own."""
        x_ND = np.lib.format.open_memmap(folder / ROWS_FILE, "w+", np.float32, (self.rows, self.dim))
        np.save(folder / LABELS_FILE, self.fill(x_ND))
        x_ND.flush()


def imbalanced(label_N: np.ndarray, seed: int, least: float = 0.05) -> np.ndarray:
    """Which rows an imbalanced subsample keeps, as booleans.

    The classes, in an order drawn with the seed, get weights equally spaced from 1 to `least`; a row is kept with the
    weight of its class as the probability.
    """
    names_L, class_N = np.unique(label_N, return_inverse=True)
    rng = np.random.default_rng(seed)
    weight_L = np.empty(len(names_L))
    weight_L[rng.permutation(len(names_L))] = np.linspace(1.0, least, len(names_L))
    kept_N: np.ndarray = rng.random(len(label_N)) < weight_L[class_N]
    return kept_N


def _members(label_N: np.ndarray, clusters: int) -> Iterator[np.ndarray]:
    """The rows of each component, ascending; one sort instead of K passes over the labels."""
    order_N = np.argsort(label_N, kind="stable")
    ends_K = np.cumsum(np.bincount(label_N, minlength=clusters))
    yield from np.split(order_N, ends_K[:-1])
