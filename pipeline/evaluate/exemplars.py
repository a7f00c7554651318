"""Which rows stand for a cluster: its most typical, its least certain, and a sample of all on a map.

Shapes: N rows, M rows of the map, D dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models.reduce import project_2d
from pipeline.cluster.rows import Rows, as_tensor
from pipeline.cluster.threads import threads


@dataclass(frozen=True)
class Exemplars:
    """Rows of `assigned` (as dictionaries of its columns) that show what a cluster is."""

    cluster: int
    size: int
    mean_probability: float
    typical: tuple[dict[str, Any], ...]  # largest score first
    uncertain: tuple[dict[str, Any], ...]  # smallest probability first
    majority_label: str | None
    purity: float | None  # of the labelled rows


def exemplars(assigned: pa.Table, clusters: list[int], typical: int, uncertain: int) -> Iterator[Exemplars]:
    """Exemplars of each of `clusters`, in that order; ties go to the row that comes first. O(N log N)."""
    cluster_N = assigned["cluster"].to_numpy()
    probability_N, score_N = assigned["probability"].to_numpy(), assigned["score"].to_numpy()
    order_N = np.argsort(cluster_N, kind="stable")
    for cluster in clusters:
        members_n = order_N[slice(*np.searchsorted(cluster_N[order_N], [cluster, cluster + 1]))]
        best = members_n[np.argsort(-score_N[members_n], kind="stable")[:typical]]
        worst = members_n[np.argsort(probability_N[members_n], kind="stable")[:uncertain]]
        majority, purity = _majority(assigned["label"].take(members_n))
        yield Exemplars(
            cluster=cluster,
            size=len(members_n),
            mean_probability=float(probability_N[members_n].mean()),
            typical=tuple(assigned.take(best).to_pylist()),
            uncertain=tuple(assigned.take(worst).to_pylist()),
            majority_label=majority,
            purity=purity,
        )


def map_rows(rows: Rows, limit: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices of at most `limit` rows (those of smallest hash) and their places in two dimensions, (M, 2)."""
    chosen_M = np.sort(np.argsort(rows.row_N, kind="stable")[:limit])
    if len(chosen_M) == 0:
        return chosen_M, np.empty((0, 2), np.float32)
    with threads(1):
        return chosen_M, project_2d(as_tensor(np.ascontiguousarray(rows.x_ND[chosen_M])), seed).numpy()


def _majority(labels: pa.ChunkedArray) -> tuple[str | None, float | None]:
    counts = sorted(labels.drop_null().value_counts().to_pylist(), key=lambda each: (-each["counts"], each["values"]))
    if not counts:
        return None, None
    return counts[0]["values"], counts[0]["counts"] / sum(each["counts"] for each in counts)
