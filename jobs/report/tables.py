"""The tables of the report: scores by model, labels against clusters, and the moves that decided how many."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jobs.report import wording
from jobs.report.data import MoveRow, ScoreRow

if TYPE_CHECKING:
    from pipeline.evaluate.metrics import Contingency, IntArray

MAX_TABLE_LABELS = 60
MAX_TABLE_CLUSTERS = 40


@dataclass(frozen=True)
class Column:
    """One score over all models."""

    name: str
    meaning: str
    better: str  # "up", "down", or "" where rows cannot be compared
    scores: list[float | None]

    @property
    def best(self) -> float | None:
        """The value to mark; None when there is nothing to compare."""
        known = [value for value in self.scores if value is not None and math.isfinite(value)]
        if not self.better or len(known) < 2:
            return None
        return max(known) if self.better == "up" else min(known)


@dataclass(frozen=True)
class CountTable:
    """Labels against clusters, columns ordered so that agreement lies on the diagonal."""

    clusters: list[int]
    rows: list[tuple[str, list[int], int]]  # label, counts, total
    largest: int
    hidden: str  # what was cut, as a sentence; empty when nothing was


@dataclass(frozen=True)
class MovesView:
    """Why the number of clusters is what it is."""

    kinds: list[tuple[str, int, int]]  # kind, proposed, accepted
    verdict: str
    reasons: list[tuple[str, int]]  # why proposals were turned down, most frequent first
    rows: list[MoveRow]  # newest first
    more: int


_COLUMNS = (
    ("nmi", "NMI", "normalised mutual information with the labels, 0 to 1", "up"),
    ("ari", "ARI", "adjusted Rand index: agreement on pairs, 0 by chance, 1 if equal", "up"),
    ("acc", "ACC", "share of images that are right under the best one-to-one match of clusters and labels", "up"),
    ("purity", "Purity", "share of images with their cluster's majority label; grows with the number of clusters", ""),
    ("homogeneity", "Homogeneity", "1 when each cluster holds one label; grows with the number of clusters", ""),
    ("completeness", "Completeness", "1 when each label lies in one cluster; falls with the number of clusters", ""),
    ("silhouette", "Silhouette", "how much nearer images are to their own cluster than to the next, −1 to 1", "up"),
    (
        "davies_bouldin",
        "Davies–Bouldin",
        "mean overlap of each cluster with its most similar one; lower is better",
        "down",
    ),
    ("calinski_harabasz", "Calinski–Harabasz", "dispersion between clusters over dispersion within them", "up"),
    ("objective", "Objective", "what the algorithm maximises; comparable within one algorithm only", ""),
)


def columns(scores: Sequence[ScoreRow]) -> list[Column]:
    """The scores that at least one model has."""
    made = [
        Column(name, meaning, better, [getattr(row, field) for row in scores])
        for field, name, meaning, better in _COLUMNS
    ]
    return [column for column in made if any(value is not None for value in column.scores)]


def count_table(table: Contingency) -> CountTable:
    """The largest labels and clusters of a contingency table."""
    rows = sorted(_largest(table.count_LK.sum(axis=1), MAX_TABLE_LABELS))
    columns = _largest(table.count_LK.sum(axis=0), MAX_TABLE_CLUSTERS)
    columns.sort(key=_diagonal(table.count_LK[rows], table.clusters))
    shown_LK = table.count_LK[np.ix_(rows, columns)]
    return CountTable(
        clusters=[table.clusters[column] for column in columns],
        rows=[
            (table.labels[row], shown_LK[place].tolist(), int(table.count_LK[row].sum()))
            for place, row in enumerate(rows)
        ],
        largest=int(shown_LK.max(initial=0)),
        hidden=_hidden(len(table.labels) - len(rows), len(table.clusters) - len(columns)),
    )


def _largest(totals: IntArray, limit: int) -> list[int]:
    order: list[int] = np.argsort(-totals, kind="stable").tolist()
    return order[:limit]


def _hidden(labels: int, clusters: int) -> str:
    cut = [
        wording.counted(number, f"smaller {noun}")
        for number, noun in ((labels, "label"), (clusters, "cluster"))
        if number
    ]
    return f"Not shown: {' and '.join(cut)}." if cut else ""


def _diagonal(count_LK: IntArray, clusters: Sequence[int]) -> Callable[[int], tuple[bool, int, int]]:
    """Sort columns by the row of their largest count, larger first; noise last."""

    def place(column: int) -> tuple[bool, int, int]:
        row = int(count_LK[:, column].argmax()) if len(count_LK) else 0
        return clusters[column] < 0, row, -int(count_LK[row, column]) if len(count_LK) else 0

    return place


def moves_view(moves: Sequence[MoveRow], limit: int) -> MovesView:
    """Counts by kind, the reasons for turning down, and the newest `limit` moves."""
    kinds = list(dict.fromkeys(move.kind for move in moves))
    turned_down = Counter(move.why for move in moves if not move.accepted)
    return MovesView(
        kinds=[(kind, *_tally([move for move in moves if move.kind == kind])) for kind in kinds],
        verdict=_verdict(moves),
        reasons=turned_down.most_common(6),
        rows=list(reversed(moves))[:limit],
        more=max(len(moves) - limit, 0),
    )


def _tally(moves: Sequence[MoveRow]) -> tuple[int, int]:
    return len(moves), sum(move.accepted for move in moves)


def _verdict(moves: Sequence[MoveRow]) -> str:
    """Why there are not more clusters, in a sentence."""
    splits = [move for move in moves if move.kind == "split"]
    if not splits:
        return "No split was proposed."
    last = [move for move in splits if move.sweep == splits[-1].sweep]
    proposed, accepted = _tally(last)
    sentence = f"When splits were last proposed (sweep {last[0].sweep}), {accepted} of {proposed} were accepted."
    refused = [
        move for move in last if not move.accepted and move.log_ratio is not None and math.isfinite(move.log_ratio)
    ]
    if not refused:
        return sentence
    nearest = max(refused, key=lambda move: move.log_ratio or 0.0)
    name, ratio = wording.cluster_list(nearest.clusters[:1]), wording.signed(nearest.log_ratio)
    return f"{sentence} The closest to being split was cluster {name}, with a log ratio of {ratio}."
