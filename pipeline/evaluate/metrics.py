"""How good a clustering is: against labels when they exist, by geometry when they do not.

Shapes: N rows, D dimensions, L labels, K clusters (noise, when present, is one more column).

What noise (cluster -1) means, in every score:
- accuracy and purity count right rows: a noise row is never right, but it stays in the denominator, so that hiding
  hard rows in noise gains nothing;
- NMI, ARI, homogeneity, completeness and V compare partitions: all noise rows together are one cluster;
- silhouette, Davies-Bouldin and Calinski-Harabasz measure clusters: noise rows are left out and counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as sk

from models.clusterer import NOISE
from models.errors import ShoalError

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Contingency:
    """How many rows carry each label (table row) in each cluster (table column)."""

    labels: tuple[str, ...]  # numbers in numeric order, then text
    clusters: tuple[int, ...]  # ascending; -1, noise, first when present
    count_LK: IntArray


@dataclass(frozen=True)
class LabelScores:
    """Agreement of a clustering with labels, over the labelled rows only; every score is None when there are none.

    NMI is normalised by the arithmetic mean of the entropies (scikit-learn's default), which makes it equal to V.
    """

    acc: float | None  # of the best one-to-one match of clusters and labels; unmatched ones are wrong (Kuhn 1955)
    nmi: float | None
    ari: float | None  # Hubert and Arabie 1985
    purity: float | None
    homogeneity: float | None  # Rosenberg and Hirschberg 2007, as completeness and V
    completeness: float | None
    v: float | None
    rows: int  # labelled rows
    unlabelled: int
    noise: int  # labelled rows in noise
    contingency: Contingency


@dataclass(frozen=True)
class GeometryScores:
    """Separation of clusters without labels; None where undefined (fewer than 2 clusters, or one per row)."""

    silhouette: float | None  # Rousseeuw 1987, mean over `sampled` rows, in [-1, 1]
    davies_bouldin: float | None  # 1979; smaller is better, at least 0
    calinski_harabasz: float | None  # 1974; larger is better, unbounded
    rows: int  # rows in clusters
    noise: int
    sampled: int
    sizes: dict[int, int]  # of each cluster, noise left out, by ascending id

    @property
    def clusters(self) -> int:
        """Clusters with at least one row."""
        return len(self.sizes)


def score_labels(true: Sequence[Any] | NDArray[Any], predicted: IntArray) -> LabelScores:
    """Compare `predicted` (N cluster ids) with `true` (N labels: text or integers, None or NaN where unlabelled).

    Labels are compared as text, so 3 and "3" are one label. Costs O(N) plus O(min(L, K)² max(L, K)) for the matching.
    Raises ShoalError when the two lengths differ.
    """
    if len(true) != len(predicted):
        raise ShoalError(
            f"{len(true):,} labels for {len(predicted):,} assignments; give one label per row, None for unlabelled."
        )
    names, label_N = _label_codes(true)
    labelled_N = label_N >= 0
    label_N, cluster_N = label_N[labelled_N], np.asarray(predicted)[labelled_N]
    table = _contingency(names, label_N, cluster_N)
    return LabelScores(
        **_agreement(label_N, cluster_N, table),
        rows=len(label_N),
        unlabelled=int((~labelled_N).sum()),
        noise=int((cluster_N == NOISE).sum()),
        contingency=table,
    )


def score_geometry(
    x_ND: NDArray[np.floating[Any]],
    cluster_N: IntArray,
    sample_rows: int = 5_000,
    seed: int = 0,
    row_hash_N: NDArray[np.uint64] | None = None,
) -> GeometryScores:
    """Silhouette of a sample, Davies-Bouldin and Calinski-Harabasz of all rows.

    With `row_hash_N` (a uniform hash per row) the sample does not depend on the order of rows; without it the sample is
    a seeded draw of positions. Costs O(N D + K² D + sample_rows² D) time, and a float64 copy of `x_ND` in memory.
    Raises ShoalError when the lengths differ.
    """
    if len(x_ND) != len(cluster_N):
        raise ShoalError(f"{len(x_ND):,} embeddings for {len(cluster_N):,} assignments; give one cluster per row.")
    in_cluster_N = np.asarray(cluster_N) != NOISE
    x_ND, cluster_N = np.asarray(x_ND)[in_cluster_N], np.asarray(cluster_N)[in_cluster_N]
    chosen_M = _sample(len(cluster_N), sample_rows, seed, None if row_hash_N is None else row_hash_N[in_cluster_N])
    ids_K, size_K = np.unique(cluster_N, return_counts=True)
    davies_bouldin, calinski_harabasz = _dispersion(x_ND, cluster_N)
    return GeometryScores(
        silhouette=_silhouette(x_ND[chosen_M], cluster_N[chosen_M]),
        davies_bouldin=davies_bouldin,
        calinski_harabasz=calinski_harabasz,
        rows=len(cluster_N),
        noise=int((~in_cluster_N).sum()),
        sampled=len(chosen_M),
        sizes=dict(zip(ids_K.tolist(), size_K.tolist(), strict=True)),
    )


def _silhouette(x_MD: NDArray[np.floating[Any]], cluster_M: IntArray) -> float | None:
    return float(sk.silhouette_score(x_MD, cluster_M)) if _separable(cluster_M) else None


def _dispersion(x_ND: NDArray[np.floating[Any]], cluster_N: IntArray) -> tuple[float | None, float | None]:
    """Davies-Bouldin and Calinski-Harabasz."""
    if not _separable(cluster_N):
        return None, None
    exact_ND = x_ND.astype(np.float64)  # sums over millions of float32 rows lose digits
    return float(sk.davies_bouldin_score(exact_ND, cluster_N)), float(sk.calinski_harabasz_score(exact_ND, cluster_N))


def _label_codes(true: Sequence[Any] | NDArray[Any]) -> tuple[tuple[str, ...], IntArray]:
    """Names of the labels, and the index of each row's name, -1 where it has none."""
    values = true.tolist() if isinstance(true, np.ndarray) else true
    texts = [None if _missing(value) else str(value) for value in values]
    names = tuple(sorted({text for text in texts if text is not None}, key=_label_order))
    code = {name: index for index, name in enumerate(names)}
    return names, np.fromiter((-1 if text is None else code[text] for text in texts), np.int64, len(texts))


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, (float, np.floating)) and math.isnan(value))


def _label_order(name: str) -> tuple[bool, int, str]:
    number = int(name) if len(name) < 19 and name.removeprefix("-").isdecimal() else None
    return number is None, number or 0, name


def _contingency(names: tuple[str, ...], label_N: IntArray, cluster_N: IntArray) -> Contingency:
    ids_K, column_N = np.unique(cluster_N, return_inverse=True)
    flat = np.bincount(label_N * len(ids_K) + column_N, minlength=len(names) * len(ids_K))
    return Contingency(names, tuple(ids_K.tolist()), flat.reshape(len(names), len(ids_K)).astype(np.int64))


def _agreement(label_N: IntArray, cluster_N: IntArray, table: Contingency) -> dict[str, float | None]:
    if len(label_N) == 0:
        return dict.fromkeys(("acc", "nmi", "ari", "purity", "homogeneity", "completeness", "v"))
    homogeneity, completeness, v = sk.homogeneity_completeness_v_measure(label_N, cluster_N)
    return {
        "acc": _accuracy(table),
        "nmi": float(sk.normalized_mutual_info_score(label_N, cluster_N)),
        "ari": float(sk.adjusted_rand_score(label_N, cluster_N)),
        "purity": _purity(table),
        "homogeneity": float(homogeneity),
        "completeness": float(completeness),
        "v": float(v),
    }


def _matchable(table: Contingency) -> IntArray:
    """The table without the column of noise, whose rows are never right."""
    return table.count_LK[:, np.array(table.clusters) != NOISE]


def _accuracy(table: Contingency) -> float:
    count_LK = _matchable(table)
    row, column = linear_sum_assignment(count_LK, maximize=True)
    return float(count_LK[row, column].sum() / table.count_LK.sum())


def _purity(table: Contingency) -> float:
    return float(_matchable(table).max(axis=0).sum() / table.count_LK.sum())


def _separable(cluster_N: IntArray) -> bool:
    """Whether the geometric scores are defined: at least 2 clusters, and fewer clusters than rows."""
    return 2 <= len(np.unique(cluster_N)) < len(cluster_N)


def _sample(rows: int, limit: int, seed: int, row_hash_N: NDArray[np.uint64] | None) -> IntArray:
    """Indices of at most `limit` rows: those whose hash, shifted by the seed, is smallest."""
    rng = np.random.default_rng(seed)
    if row_hash_N is None:
        return np.sort(rng.permutation(rows)[:limit])
    mask = rng.integers(2**64, dtype=np.uint64)
    return np.argsort(row_hash_N.astype(np.uint64) ^ mask, kind="stable")[:limit]
