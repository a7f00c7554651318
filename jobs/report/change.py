"""What a report shows of time: how a generation came from its parent, and the line of all generations.

Values only, as in `data`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # they bring torch along, and a report computes nothing
    from pipeline.history.diff import Fate, Flow
    from pipeline.recluster.evidence import Drift

EXPECTED_LOW = 0.01  # share of low scores where nothing has changed


class Happened(Protocol):
    """What became of a cluster."""

    @property
    def cluster(self) -> int:
        """Its id."""

    @property
    def event(self) -> str | None:
        """kept, born, split, merged or died."""

    @property
    def parents(self) -> tuple[int, ...]:
        """Clusters of the generation before, itself included where it was there."""


def is_new(event: Happened) -> bool:
    """Whether the generation before did not have the cluster."""
    return event.event != "died" and event.cluster not in event.parents


@dataclass(frozen=True)
class EventCounts:
    """How many clusters came and went."""

    born: int
    split: int  # new clusters that were part of others
    merged: int  # clusters that others went into
    died: int

    @classmethod
    def of(cls, events: Iterable[Happened]) -> EventCounts:
        """Of one generation."""
        named = [each.event for each in events if each.event != "split" or is_new(each)]
        return cls(*(named.count(event) for event in ("born", "split", "merged", "died")))


@dataclass(frozen=True)
class Change:
    """A generation against its parent; None for what was not recorded or can no longer be read."""

    generation: int
    parent: int
    decision: str
    why: str = ""
    arrived: int | None = None
    removed: int | None = None
    moved: int | None = None  # images that are in another cluster than in the parent
    fates: tuple[Fate, ...] = ()  # of clusters that were not merely kept
    flows: tuple[Flow, ...] = ()  # largest first
    drift: Drift | None = None


@dataclass(frozen=True)
class GenerationLine:
    """One line of a clustering's history."""

    number: int
    created_at: datetime
    decision: str
    images: int
    clusters: int
    counts: EventCounts | None = None  # None for a fresh fit, which continues nothing
    arrived: int | None = None
    low_fraction: float | None = None

    @property
    def new_rate(self) -> float | None:
        """New clusters per image that arrived."""
        if self.counts is None or not self.arrived:
            return None
        return (self.counts.born + self.counts.split) / self.arrived
