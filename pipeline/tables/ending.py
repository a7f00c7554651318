"""The end of generations: their rows first, then what only they named. Broken off anywhere, it can be done again.

A reader of a generation that remains sees all of it at any time; one of a generation that ended may find a file gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import pyarrow as pa

from pipeline.tables.delta import Change, Delta, WrittenFile
from pipeline.tables.generations import Generation, GenerationsTable
from pipeline.tables.schema import TableError
from pipeline.tables.sweep import StoredFile, delete, unused

_MEDOID = ("medoid_key", "medoid_shard", "medoid_score")


@dataclass(frozen=True)
class EndedFiles:
    """What `Clustering.end` did."""

    generations: tuple[int, ...]
    files: int  # deleted
    bytes: int


@dataclass(frozen=True)
class Tables:
    """The Delta tables of a clustering, apart from its generations."""

    assignments: Delta
    clusters: Delta
    moves: Delta

    def unused(self, remaining: Collection[Generation], upto: tuple[int, int, int]) -> list[list[StoredFile]]:
        """Of each table, the data files that no remaining generation and no newest version names."""
        versions = zip(*((g.assignments_version, g.clusters_version, g.moves_version) for g in remaining), strict=True)
        named = list(versions) or [(), (), ()]
        return [unused(*each) for each in zip(self.every, named, upto, strict=True)]

    def extend(self) -> None:
        """Add the columns that tables of an earlier shoal lack."""
        for table in self.every:
            table.extend()

    @property
    def every(self) -> tuple[Delta, Delta, Delta]:
        """All of them."""
        return self.assignments, self.clusters, self.moves

    @property
    def newest(self) -> tuple[int, int, int]:
        """Their newest versions."""
        return self.assignments.version, self.clusters.version, self.moves.version


def end(tables: Tables, generations: GenerationsTable, numbers: Collection[int]) -> EndedFiles:
    """See `Clustering.end`."""
    following = generations.next  # first: what is published after this look counts as under way
    published = generations.read()
    future = sorted(number for number in numbers if not 1 <= number < following)
    if future:
        raise TableError(
            f"Clustering {generations.clustering} has no generation {future[0]} to end; it has "
            f"{[each.generation for each in published]}."
        )
    ending = tuple(each.generation for each in published if each.generation in numbers)
    remaining = [each for each in published if each.generation not in numbers]
    if not ending and (following == 1 or not any(tables.unused(remaining, tables.newest))):
        return EndedFiles((), 0, 0)
    tables.extend()
    generations.create()
    named = {file.path for each in remaining for file in tables.assignments.files(each.assignments_version)}
    _without(tables.assignments, lambda file: file.path not in named)
    present = {each.generation for each in remaining}
    clusters = _without_medoids(tables.clusters, lambda file: _has_ended(file, present, following))
    moves = _without(tables.moves, lambda file: _has_ended(file, present, following))
    upto = tables.newest

    def choose(rows: list[Generation]) -> list[Generation]:
        nonlocal upto
        upto = tables.newest  # who publishes on a later one began after this commit, and sees what has ended
        kept = [each for each in rows if each.generation not in ending]
        return [_renewed(each, clusters, moves) for each in kept]

    remaining = generations.keep(choose)
    gone = tables.unused(remaining, upto)
    for table, files in zip(tables.every, gone, strict=True):
        delete(table, files)
    return EndedFiles(ending, sum(map(len, gone)), sum(file.size for files in gone for file in files))


def _renewed(generation: Generation, clusters: int, moves: int) -> Generation:
    """The same, naming versions of the shared tables that have its rows, and none of what ended before."""
    versions = {
        "clusters_version": max(generation.clusters_version, clusters),
        "moves_version": max(generation.moves_version, moves),
    }
    return generation.model_copy(update=versions)


def _without_medoids(table: Delta, has_ended: Callable[[WrittenFile], bool]) -> int:
    """Commit all rows that have ended as one file, without the samples that they name."""

    def plan(files: list[WrittenFile]) -> Change | None:
        over = [file for file in files if has_ended(file)]
        if not over:
            return None
        rows = table.read_all(over)
        for name in _MEDOID:
            column = rows.schema.get_field_index(name)
            rows = rows.set_column(
                column, rows.schema.field(column), pa.nulls(rows.num_rows, rows.schema.types[column])
            )
        order = [("generation", "ascending"), ("cluster", "ascending")]
        return Change([table.write(rows.sort_by(order))], removed=over)

    return table.commit(plan)


def _without(table: Delta, is_over: Callable[[WrittenFile], bool]) -> int:
    """Commit the table without some of its files."""

    def plan(files: list[WrittenFile]) -> Change | None:
        over = [file for file in files if is_over(file)]
        return Change([], removed=over) if over else None

    return table.commit(plan)


def _has_ended(file: WrittenFile, remaining: Collection[int], following: int) -> bool:
    """Whether it has rows of an ended generation, or of all that ended before; a number to come is under way."""
    first, last = file.minimum["generation"], file.maximum["generation"]
    return bool(last < following and not (first == last and first in remaining))
