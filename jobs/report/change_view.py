"""The section on what changed, and the line of generations: cut to size and put in words.

Clusters' names are numbers; decisions and reasons are text that the templates escape.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.report.change import EXPECTED_LOW, Change, EventCounts, GenerationLine, Happened, is_new
from jobs.report.wording import count

if TYPE_CHECKING:
    from pipeline.history.diff import Fate, Flow
    from pipeline.recluster.evidence import ClusterDrift

AT_ONCE = 12  # rows that are seen without opening anything
_NAMED = 8  # clusters that are part of a story
_KINDS = ("born", "split", "merged", "died")  # the order of the table
_LEAST_SCALE = 5 * EXPECTED_LOW  # share of low scores that fills a bar, at least
_DONE = {
    "assign": "labels what arrived with the model of generation {parent}",
    "assign only": "labels what arrived with the model of generation {parent}",
    "refine": "refines the model of generation {parent}",
    "refit": "is a new fit, matched to the clusters of generation {parent}",
    "removal": "is generation {parent} without the images that were removed",
}


@dataclass(frozen=True)
class Story:
    """What became of a cluster, and the clusters that were part of it."""

    verb: str  # empty for one that is as it was
    others: tuple[int, ...] = ()

    @property
    def named(self) -> tuple[int, ...]:
        """As many of the others as a line has room for."""
        return self.others[:_NAMED]

    @property
    def more(self) -> str:
        """How many are left."""
        return f" and {count(len(self.others) - _NAMED)} more" if self.others[_NAMED:] else ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.verb, ", ".join(map(str, self.named))))) + self.more


@dataclass(frozen=True)
class ChangeView:
    """What a generation changed, in words and bounded tables."""

    happened: str  # the decision, as a sentence without its end
    why: str  # goes on with it; may be empty
    numbers: str  # what came, went and moved, and what became of clusters
    fates: list[list[tuple[Fate, Story]]]  # of each kind some that are seen at once, then more
    more_fates: int
    has_ratios: bool
    flows: list[Flow]
    more_flows: int
    most_moved: int  # the largest flow
    drift: list[ClusterDrift]  # of all together first, where it is known
    more_drift: int
    flagged: bool  # whether chance does not explain some of it
    low_scale: float  # share of low scores that fills a bar
    shift_scale: float  # deviations that fill one


@dataclass(frozen=True)
class Timeline:
    """Generations, newest first."""

    newest: list[GenerationLine]
    earlier: list[GenerationLine]
    more: int  # older ones


def change_view(change: Change, limit: int) -> ChangeView:
    """Each table has at most `limit` rows."""
    stories = told(change.fates)
    first = _foremost(change.fates, min(AT_ONCE, limit))
    rest = _foremost([each for each in change.fates if each not in first], limit - len(first))
    clusters = change.drift.worst_first() if change.drift else []
    drift = [change.drift.overall, *clusters[:limit]] if change.drift and change.drift.overall.rows else []
    return ChangeView(
        happened=f"Generation {change.generation} {_decision(change)}",
        why=change.why.strip().rstrip("."),
        numbers=_numbers(change),
        fates=[[(each, stories[each.cluster]) for each in part] for part in (first, rest) if part],
        more_fates=len(change.fates) - len(first) - len(rest),
        has_ratios=any(each.log_hastings is not None for each in (*first, *rest)),
        flows=list(change.flows[:limit]),
        more_flows=len(change.flows[limit:]),
        most_moved=max((flow.images for flow in change.flows), default=0),
        drift=drift,
        more_drift=len(clusters[limit:]),
        flagged=any(each.is_novel or each.has_drifted for each in drift),
        low_scale=max([each.low_fraction or 0.0 for each in drift] + [_LEAST_SCALE]),
        shift_scale=max([abs(each.log_density_shift or 0.0) for each in drift] + [1.0]),
    )


def timeline(generations: Sequence[GenerationLine], limit: int) -> Timeline:
    """At most `limit` generations, of which the newest are seen at once."""
    lines = list(reversed(generations))
    return Timeline(lines[: min(AT_ONCE, limit)], lines[AT_ONCE:limit], len(lines[limit:]))


def told(events: Sequence[Happened]) -> dict[int, Story]:
    """What became of each cluster, as the other events of its generation complete it."""
    heirs = {gone: each.cluster for each in events if each.event == "merged" for gone in _others(each)}
    offspring: dict[int, list[int]] = defaultdict(list)
    for each in events:
        for parent in _others(each) if each.event == "split" else ():
            offspring[parent].append(each.cluster)
    return {each.cluster: _story(each, heirs.get(each.cluster), offspring[each.cluster]) for each in events}


def _story(event: Happened, heir: int | None, offspring: Sequence[int]) -> Story:
    others = _others(event)
    match event.event, is_new(event):
        case (("kept" | None), _):
            return Story("")
        case "split", False:
            return Story("gave off" if offspring else "split", tuple(offspring))
        case "merged", False:
            return Story("took in", others)
        case "died", _:
            return Story("ended") if heir is None else Story("taken in by", (heir,))
        case verb, _:
            return Story(f"{verb} from" if others else verb, others)


def _others(event: Happened) -> tuple[int, ...]:
    return tuple(parent for parent in event.parents if parent != event.cluster)


def _decision(change: Change) -> str:
    if change.decision.startswith("rollback to "):
        return f"goes back to generation {change.decision.removeprefix('rollback to ')}"
    if change.decision not in _DONE:
        return f"follows generation {change.parent} ({change.decision})"
    return _DONE[change.decision].format(parent=change.parent)


def _numbers(change: Change) -> str:
    counts = EventCounts.of(change.fates)
    images = ((change.arrived, "arrived"), (change.removed, "removed"), (change.moved, "moved to another cluster"))
    clusters = ((counts.born, "born"), (counts.split, "split off"), (counts.merged, "merged"), (counts.died, "ended"))
    return f"{_tally('Images', images)} {_tally('Clusters', clusters) or 'No cluster came or went.'}".strip()


def _tally(of: str, numbers: Iterable[tuple[int | None, str]]) -> str:
    parts = [f"{count(number)} {what}" for number, what in numbers if number]
    return f"{of}: {', '.join(parts)}." if parts else ""


def _foremost(fates: Sequence[Fate], limit: int) -> list[Fate]:
    """The largest clusters of each kind of event in turn, until there are `limit`; then kind by kind, kin together."""
    by_kind: dict[int, list[Fate]] = defaultdict(list)
    for fate in sorted(fates, key=_largest_first):
        by_kind[_kind(fate)].append(fate)
    turns = [(turn, kind, fate) for kind, same in by_kind.items() for turn, fate in enumerate(same)]
    chosen = [fate for *_, fate in sorted(turns, key=lambda each: each[:2])[:limit]]
    return sorted(chosen, key=lambda fate: (_kind(fate), _kin(fate), is_new(fate), _largest_first(fate)))


def _largest_first(fate: Fate) -> tuple[int, int]:
    return -max(fate.size_after, fate.size_before), fate.cluster


def _kind(fate: Fate) -> int:
    return _KINDS.index(fate.event) if fate.event in _KINDS else len(_KINDS)


def _kin(fate: Fate) -> int:
    """The same for all that came of one split."""
    return fate.parents[0] if fate.event == "split" and fate.parents else -1
