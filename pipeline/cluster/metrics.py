"""What a fit tells Prometheus while it goes on: its passes, or epochs where it is trained by gradient."""

from __future__ import annotations

import time
from collections import Counter as Tally
from collections.abc import Sequence
from itertools import takewhile

from models.clusterer import Move
from pipeline.metrics import Counter, Gauge
from pipeline.train.result import Pass

_OF = ("algorithm",)
CLUSTERS = Gauge("shoal_fit_clusters", "Clusters after the last pass or epoch (K).", _OF)
OBJECTIVE = Gauge("shoal_fit_objective", "What the fit raises, as it was before the last pass; larger is better.", _OF)
PASSES = Gauge("shoal_fit_pass", "Passes over the rows, or epochs, that were made.", _OF)
SECONDS = Gauge("shoal_fit_pass_seconds", "Wall time of the last pass or epoch.", _OF)
MOVES = Counter(
    "shoal_fit_moves",
    "Proposals to change K, by kind (split, merge, birth, death) and outcome (accepted, refused).",
    (*_OF, "kind", "outcome"),
)


class FitMeter:
    """The metrics of one fit, told by the one process that has its whole story."""

    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self._told_at: float | None = None

    def start(self) -> None:
        """A pass begins now."""
        self._told_at = time.monotonic()

    def passed(self, history: Sequence[Pass], moves: Sequence[tuple[int, Move]]) -> None:
        """A pass was made: the last one of `history`. `moves` are those of all passes, each with its pass's index."""
        own, last = {"algorithm": self._algorithm}, len(history) - 1
        PASSES.set(len(history), **own)
        CLUSTERS.set(history[-1].clusters, **own)
        OBJECTIVE.set(history[-1].objective, **own)
        for (kind, outcome), count in moves_of(moves, last).items():
            MOVES.add(count, **own, kind=kind, outcome=outcome)
        if self._told_at is not None:
            SECONDS.set(time.monotonic() - self._told_at, **own)
        self.start()


def moves_of(moves: Sequence[tuple[int, Move]], number: int) -> Tally[tuple[str, str]]:
    """How many moves of the last pass, which is `number`, there were of each kind and outcome. O(those moves)."""
    latest = takewhile(lambda each: each[0] == number, reversed(moves))
    return Tally((move.kind, "accepted" if move.accepted else "refused") for _, move in latest)
