"""Rows that arrive in increments, and what each truly is: of one law, with births, drifting, of unseen classes.

The seed decides everything: equal settings give equal rows. Shapes: N rows, D dimensions, K Gaussians, B born ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

_ATTEMPTS = 1_000  # at drawing paths that keep their distance
_WHEN_MET = 4.0  # deviations between two means below which their clusters may count as one


@dataclass(frozen=True)
class Batch:
    """Rows that arrive together, and the class or Gaussian that each is of."""

    x_ND: np.ndarray  # float32
    label_N: np.ndarray  # int64

    def __len__(self) -> int:
        return len(self.x_ND)


@dataclass(frozen=True)
class Mixture:
    """Gaussians with weights: covariance k is A_k A_k^T."""

    weight_K: np.ndarray
    mean_KD: np.ndarray
    shape_KDD: np.ndarray  # A

    @staticmethod
    def drawn(clusters: int, dim: int, spread: float, rng: np.random.Generator) -> Mixture:
        """The law of `generated.Components`: means N(0, spread^2 I), A = 0.15 G + a I."""
        weight_K = 0.3 + rng.random(clusters)
        mean_KD = spread * rng.standard_normal((clusters, dim))
        return Mixture(weight_K / weight_K.sum(), mean_KD, _shapes(clusters, dim, rng))

    def __len__(self) -> int:
        return len(self.weight_K)

    def draw(self, rows: int, rng: np.random.Generator) -> Batch:
        """Rows in random order, labelled by their Gaussian. O(N D^2) time."""
        label_N = rng.choice(len(self), size=rows, p=self.weight_K)
        x_ND = rng.standard_normal((rows, self.mean_KD.shape[1]))
        for k in np.unique(label_N):
            x_ND[label_N == k] = self.mean_KD[k] + x_ND[label_N == k] @ self.shape_KDD[k].T
        return Batch(x_ND.astype(np.float32), label_N)

    def with_births(self, births: int, share: float, distance: float, rng: np.random.Generator) -> Mixture:
        """The same, and new Gaussians, the last in order, which get `share` of the rows between them.

        Each is born at a Gaussian of its own choice, no two at the same one: its mean is `distance` deviations from
        the parent's, in the parent's metric and in a random direction; its shape is drawn anew.
        """
        parent_B = rng.choice(len(self), size=births, replace=False)
        dim = self.mean_KD.shape[1]
        direction_BD = rng.standard_normal((births, dim))
        direction_BD *= distance / np.linalg.norm(direction_BD, axis=1, keepdims=True)
        mean_BD = self.mean_KD[parent_B] + np.einsum("bij,bj->bi", self.shape_KDD[parent_B], direction_BD)
        return Mixture(
            np.concatenate([(1 - share) * self.weight_K, np.full(births, share / births)]),
            np.concatenate([self.mean_KD, mean_BD]),
            np.concatenate([self.shape_KDD, _shapes(births, dim, rng)]),
        )


@dataclass(frozen=True)
class Drift:
    """Unit Gaussians whose means move, seen through a window: with each increment a batch comes and the oldest goes.

    Even ones move along straight lines, odd ones along arcs, `step` deviations per increment, and stay `apart`
    deviations from each other. Gaussian 1 does not: it nears Gaussian 0 at a constant rate, and from increment `meet`
    on they are one. Of the last there are no rows from increment `stop` on. Increments count from 1; those before are
    the window that a first fit sees.
    """

    clusters: int = 12
    dim: int = 8
    increments: int = 50
    rows: int = 720  # in an increment
    window: int = 10  # increments that are in the table at once
    step: float = 0.1
    apart: float = 12.0
    meet: int = 30
    stop: int = 25
    seed: int = 0

    def base(self) -> list[Batch]:
        """The window before increment 1, oldest first."""
        return [self._batch(time) for time in range(1 - self.window, 1)]

    def later(self) -> Iterator[Batch]:
        """Increments 1 to the last."""
        return (self._batch(time) for time in range(1, self.increments + 1))

    def mean(self, time: int) -> np.ndarray:
        """Where the means (K, D) are at an increment; 0 and before belong to the first window."""
        mean_KD: np.ndarray = self._means[time + self.window - 1]
        return mean_KD

    @property
    def merging(self) -> tuple[int, int]:
        """First and last increment at which Gaussians 0 and 1 may become one cluster.

        From when arrivals are `_WHEN_MET` deviations apart until the window holds only rows from after they met, and
        half a window later.
        """
        gaps = {time: float(np.linalg.norm(np.diff(self.mean(time)[:2], axis=0))) for time in range(1, self.meet + 1)}
        first = min(time for time, gap in gaps.items() if gap <= _WHEN_MET)
        return first, self.meet + self.window + self.window // 2

    @property
    def dying(self) -> tuple[int, int]:
        """First and last increment at which the last Gaussian's cluster may die: when its last rows leave, or so."""
        leaves = self.stop - 1 + self.window
        return leaves - 1, leaves + 1

    def living(self, time: int) -> list[int]:
        """Gaussians with rows in the window after an increment."""
        gone = time - self.window + 1 >= self.stop
        return list(range(self.clusters - gone))

    def _batch(self, time: int) -> Batch:
        """Every Gaussian that still has rows, equally often."""
        rng = np.random.default_rng((self.seed, time + self.window))
        clusters = self.clusters - (time >= self.stop)
        label_N = rng.permutation(np.arange(self.rows) % clusters)
        x_ND = self.mean(time)[label_N] + rng.standard_normal((self.rows, self.dim))
        return Batch(x_ND.astype(np.float32), label_N)

    @cached_property
    def _means(self) -> np.ndarray:
        """(increments + window, K, D): the first draw of paths that keep apart."""
        rng = np.random.default_rng(self.seed)
        for _ in range(_ATTEMPTS):
            mean_TKD = self._paths(rng)
            if _nearest(np.delete(mean_TKD, 1, axis=1)) >= self.apart and self._lonely(mean_TKD):
                return mean_TKD
        raise ValueError(f"{self.clusters} means in {self.dim} dimensions cannot keep {self.apart} deviations apart.")

    def _paths(self, rng: np.random.Generator) -> np.ndarray:
        time_T = np.arange(1 - self.window, self.increments + 1)
        start_KD = self.apart * rng.standard_normal((self.clusters, self.dim))
        way_K2D = np.linalg.qr(rng.standard_normal((self.clusters, self.dim, 2)))[0].transpose(0, 2, 1)
        length_T = self.step * time_T
        radius = self.step * self.increments / np.pi  # half a circle
        arc_T2 = radius * np.stack([np.sin(length_T / radius), 1 - np.cos(length_T / radius)], axis=1)
        line_T2 = np.stack([length_T, np.zeros_like(length_T)], axis=1)
        way_KT2 = np.stack([arc_T2 if k % 2 else line_T2 for k in range(self.clusters)])
        mean_TKD: np.ndarray = start_KD + np.einsum("kti,kid->tkd", way_KT2, way_K2D)
        gap_T = self.apart * np.clip(1 - time_T / self.meet, 0, None)
        mean_TKD[:, 1] = mean_TKD[:, 0] + gap_T[:, None] * way_K2D[1, 0]
        return mean_TKD

    def _lonely(self, mean_TKD: np.ndarray) -> bool:
        """Whether Gaussian 1 comes near to none but 0."""
        others = np.linalg.norm(mean_TKD[:, 2:] - mean_TKD[:, 1:2], axis=2)
        return bool(others.min(initial=np.inf) >= self.apart)


@dataclass(frozen=True)
class Unseen:
    """Labelled rows as a stream: some classes are not in the base, nor in the first half of the increments.

    The base and the first `increments` batches of `rows` rows are of the other classes; then come all rows of the
    unseen ones in as many batches of equal size. The order of rows is drawn with the seed.
    """

    x_ND: np.ndarray
    label_N: np.ndarray
    unseen: tuple[int, ...]
    increments: int = 20  # before the unseen come, and again after
    rows: int = 700
    seed: int = 0

    def base(self, files: int = 10) -> list[Batch]:
        """What the first fit sees, in so many batches."""
        return self._cut(self._seen[: len(self._seen) - self.increments * self.rows], files)

    def later(self) -> list[Batch]:
        """All increments."""
        seen = self._seen[len(self._seen) - self.increments * self.rows :]
        return self._cut(seen, self.increments) + self._cut(self._order[~self._is_seen], self.increments)

    @cached_property
    def _order(self) -> np.ndarray:
        order: np.ndarray = np.random.default_rng(self.seed).permutation(len(self.x_ND))
        return order

    @cached_property
    def _is_seen(self) -> np.ndarray:
        """Of each row in `_order`."""
        is_seen: np.ndarray = ~np.isin(self.label_N[self._order], self.unseen)
        return is_seen

    @property
    def _seen(self) -> np.ndarray:
        seen: np.ndarray = self._order[self._is_seen]
        return seen

    def _cut(self, row_N: np.ndarray, parts: int) -> list[Batch]:
        cut: Sequence[np.ndarray] = np.array_split(row_N, parts)
        return [Batch(self.x_ND[part], self.label_N[part].astype(np.int64)) for part in cut]


def _shapes(clusters: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """A of each Gaussian, (K, D, D)."""
    scale_K = 0.6 + 0.6 * rng.random(clusters)
    return 0.15 * rng.standard_normal((clusters, dim, dim)) + scale_K[:, None, None] * np.eye(dim)


def _nearest(mean_TKD: np.ndarray) -> float:
    """The least distance between two means at any time."""
    apart_TKK = np.linalg.norm(mean_TKD[:, :, None] - mean_TKD[:, None], axis=3)
    apart_TKK += np.where(np.eye(mean_TKD.shape[1]), np.inf, 0.0)
    return float(apart_TKK.min())
