"""Every generation that a clustering ever had, ended ones too: what became of its clusters, and what came from what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from models.clusterer import NOISE
from models.errors import ShoalError
from pipeline.tables.clusterings import DIED, Clustering, Generation

KEPT, BORN, SPLIT, MERGED = "kept", "born", "split", "merged"
_COLUMNS = ["generation", "cluster", "event", "size", "parents", "log_hastings"]


@dataclass(frozen=True)
class Node:
    """A cluster in one generation; `parents` are those of the generation before, itself included where it was kept."""

    generation: int
    cluster: int
    event: str  # born, kept, split, merged, died
    size: int
    parents: tuple[int, ...]
    log_hastings: float | None


class Lineage:
    """The generations of a clustering and the events of its clusters. Reads two small tables, once."""

    def __init__(self, clustering: Clustering) -> None:
        self.name = clustering.name
        self.generations = {each.generation: each for each in clustering.generations()}
        self._rows = clustering.lineage().select(_COLUMNS)

    @cached_property
    def numbers(self) -> list[int]:
        """Of all generations, also those that have ended."""
        return sorted({*self.generations, *pc.unique(self._rows["generation"]).to_pylist()})

    @cached_property
    def changes(self) -> dict[int, list[Node]]:
        """What happened in each generation to the clusters that were not merely kept."""
        changed = _nodes(self._rows.filter(pc.not_equal(self._rows["event"], KEPT)))
        found: dict[int, list[Node]] = {number: [] for number in self.numbers}
        for node in changed:
            found[node.generation].append(node)
        return found

    @cached_property
    def clusters(self) -> list[int]:
        """Every id there ever was, ascending; noise is no cluster."""
        return sorted(set(pc.unique(self._rows["cluster"]).to_pylist()) - {NOISE})

    def nodes(self, cluster: int) -> list[Node]:
        """A cluster through the generations, oldest first; empty if there never was one of that id."""
        return list(_nodes(self._rows.filter(pc.equal(self._rows["cluster"], cluster))))

    def sizes(self, number: int) -> dict[int, int]:
        """Clusters that live in a generation, with their rows."""
        rows = self._rows.filter(pc.equal(self._rows["generation"], number))
        rows = rows.filter(pc.not_equal(rows["event"], DIED))
        return dict(zip(rows["cluster"].to_pylist(), rows["size"].to_pylist(), strict=True))

    def totals(self) -> dict[int, tuple[int, int]]:
        """Living clusters of each generation, and the rows in them."""
        rows = self._rows.filter(
            pc.and_(pc.not_equal(self._rows["event"], DIED), pc.not_equal(self._rows["cluster"], NOISE))
        )
        found = rows.group_by("generation").aggregate([("cluster", "count"), ("size", "sum")])
        columns = (found[name].to_pylist() for name in ("generation", "cluster_count", "size_sum"))
        return {number: (clusters, images) for number, clusters, images in zip(*columns, strict=True)}

    def first_seen(self, number: int) -> dict[int, int]:
        """The generation in which each cluster of a generation, or of its ancestors, came to be."""
        line = pa.array([number, *self.ancestors(number)], pa.int64())
        rows = self._rows.filter(pc.is_in(self._rows["generation"], value_set=line))
        found = rows.group_by("cluster").aggregate([("generation", "min")])
        return dict(zip(found["cluster"].to_pylist(), found["generation_min"].to_pylist(), strict=True))

    def parent(self, number: int) -> int | None:
        """The generation that this one continues; of one that has ended, the newest that had all it speaks of."""
        if number not in self._parents:
            published = self.generations.get(number)
            self._parents[number] = self._likely_parent(number) if published is None else published.parent
        return self._parents[number]

    def ancestors(self, number: int) -> list[int]:
        """Parent, grandparent and so on."""
        found = []
        above = self.parent(number)
        while above is not None:
            found.append(above)
            above = self.parent(above)
        return found

    def descendants(self, number: int) -> set[int]:
        """The generations that continue this one, itself included."""
        found = {number}
        for each in self.numbers:  # ascending, and a parent comes before its children
            if self.parent(each) in found:
                found.add(each)
        return found

    def related(self, one: int, other: int) -> bool:
        """Whether both come from one fit, so that a cluster has the same id in both."""
        return not {one, *self.ancestors(one)}.isdisjoint({other, *self.ancestors(other)})

    @cached_property
    def _parents(self) -> dict[int, int | None]:
        return {}

    def _likely_parent(self, number: int) -> int | None:
        """Ids are not used again, so a generation without the clusters that were kept cannot be the parent."""
        rows = _nodes(self._rows.filter(pc.equal(self._rows["generation"], number)))
        needed = {parent for row in rows if row.event != BORN for parent in row.parents}
        earlier = (each for each in reversed(self.numbers) if each < number)
        return next((each for each in earlier if needed and needed <= self.sizes(each).keys()), None)


def published(clustering: Clustering, number: int) -> Generation:
    """A generation by number. Raises ShoalError that says whether it has ended or never was."""
    return chosen({each.generation: each for each in clustering.generations()}, number, clustering.name)


def chosen(generations: Mapping[int, Generation], number: int, name: str) -> Generation:
    """As `published`, among those that are there."""
    if number in generations:
        return generations[number]
    numbers = _spans(sorted(generations)) or "none"
    if 0 < number < max(generations, default=0):
        raise ShoalError(
            f"Generation {number} of clustering {name} has ended: retention or a removal took its rows. "
            f"Those left are {numbers}; `shoal history` still tells what happened in it."
        )
    raise ShoalError(f"Clustering {name} has no generation {number}; it has {numbers}.")


def _spans(numbers: list[int]) -> str:
    """1, 2, 3, 7 as 1-3, 7."""
    spans: list[tuple[int, int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def _nodes(rows: pa.Table) -> Iterator[Node]:
    for row in rows.to_pylist():
        yield Node(**{**row, "parents": tuple(row["parents"] or ())})
