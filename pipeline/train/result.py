"""What a fit leaves: the model, the statistics behind it, and its story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.clusterer import Clusterer, Move, Stats


@dataclass(frozen=True)
class Pass:
    """What one pass left: the objective of the model before it, and the clusters after it. Of training: one epoch."""

    objective: float
    clusters: int


@dataclass(frozen=True)
class Fit:
    """A fitted model with the statistics behind it (None where it was trained) and the story of the fit."""

    model: Clusterer
    stats: Stats | None
    history: tuple[Pass, ...]
    moves: tuple[tuple[int, Move], ...]  # (pass, move)
    settled: bool
    scalars: tuple[Mapping[str, float], ...] = ()  # means over the rows of each epoch, the loss among them
    warnings: tuple[str, ...] = ()  # of the objective, for whoever reads the result
    seconds: float = 0.0  # wall time of the passes of a fit, without starting, reading rows and saving


def story_record(history: Sequence[Pass], moves: Sequence[tuple[int, Move]]) -> dict[str, Any]:
    """As JSON, for checkpoints."""
    return {
        "history": [[each.objective, each.clusters] for each in history],
        "moves": [
            [sweep, move.kind, list(move.clusters), move.log_ratio, move.accepted, move.why] for sweep, move in moves
        ],
    }


def story_from(record: Mapping[str, Any]) -> tuple[list[Pass], list[tuple[int, Move]]]:
    """The inverse of `story_record`."""
    history = [Pass(objective, clusters) for objective, clusters in record["history"]]
    moves = [
        (sweep, Move(kind, tuple(clusters), log_ratio, accepted, why))
        for sweep, kind, clusters, log_ratio, accepted, why in record["moves"]
    ]
    return history, moves
