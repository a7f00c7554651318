"""The end of generations: their rows first, then what only they named. Broken off anywhere, it can be done again.

A reader of a generation that remains sees all of it at any time; one of a generation that ended may find a file gone.
Tables that generations share (clusters, moves) hold the rows of each in their newest version, too: two writers of one
generation, of whom one was killed or late, may have left others there, which `restore` puts right.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import pyarrow as pa

from pipeline.tables.delta import COMMIT_ATTEMPTS, Change, Delta, WrittenFile
from pipeline.tables.generations import Generation, GenerationsTable, Look
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

    @property
    def every(self) -> tuple[Delta, Delta, Delta]:
        """All of them."""
        return self.assignments, self.clusters, self.moves

    @property
    def newest(self) -> tuple[int, int, int]:
        """Their newest versions."""
        return self.assignments.version, self.clusters.version, self.moves.version


class _OvertakenError(Exception):
    """Somebody published, or ended generations, since they were read."""


def end(tables: Tables, generations: GenerationsTable, numbers: Collection[int]) -> EndedFiles:
    """See `Clustering.end`."""
    since = generations.next
    for _ in range(COMMIT_ATTEMPTS):
        try:
            return _end(tables, generations, numbers, since)
        except _OvertakenError:
            continue
    raise TableError(
        f"Generations of clustering {generations.clustering} cannot be ended: others keep publishing; let them finish, "
        "then run again."
    )


def restore(tables: Tables, recent: Generation) -> None:
    """Have the newest versions of the shared tables hold the rows of a generation as its own versions do."""
    for table, version in ((tables.clusters, recent.clusters_version), (tables.moves, recent.moves_version)):
        if table.version != version:
            _restore(table, rows_of(table.files(version), recent.generation), recent.generation)


def rows_of(files: Collection[WrittenFile], generation: int) -> list[WrittenFile]:
    """Those of a shared table that have the rows of one generation."""
    return [each for each in files if each.minimum["generation"] == each.maximum["generation"] == generation]


def _restore(table: Delta, own: Sequence[WrittenFile], generation: int) -> None:
    paths = {file.path for file in own}

    def plan(files: list[WrittenFile]) -> Change | None:
        present = rows_of(files, generation)
        here = {file.path for file in present}
        if here == paths:
            return None
        return Change([f for f in own if f.path not in here], removed=[f for f in present if f.path not in paths])

    table.commit(plan)


def _end(tables: Tables, generations: GenerationsTable, numbers: Collection[int], since: int) -> EndedFiles:
    version = generations.version  # first: whatever happens after this look is noticed by it
    following, published = generations.next, generations.read()
    future = sorted(number for number in numbers if not 1 <= number < following)
    if future:
        raise TableError(
            f"Clustering {generations.clustering} has no generation {future[0]} to end; it has "
            f"{[each.generation for each in published]}."
        )
    if not generations.exists():
        return EndedFiles((), 0, 0)
    work = _Work(tables, Look(version, following), generations, published, frozenset(numbers))
    if work.is_done:
        return EndedFiles((), 0, 0)
    for table in tables.every:
        table.require_columns()
    generations.create()
    for each in published[-1:] + [each for each in published[:-1] if each.generation >= since]:
        restore(tables, each)
    gone = work.commit()
    for table, files in zip(tables.every, gone, strict=True):
        delete(table, files)
    return EndedFiles(work.ending, sum(map(len, gone)), sum(file.size for files in gone for file in files))


@dataclass(frozen=True)
class _Work:
    """What is to be ended, of what was published at a look."""

    tables: Tables
    look: Look
    generations: GenerationsTable
    published: Sequence[Generation]
    numbers: frozenset[int]
    seen: dict[tuple[str, int], list[WrittenFile]] = field(default_factory=dict)  # by table and version

    @cached_property
    def ending(self) -> tuple[int, ...]:
        return tuple(each.generation for each in self.published if each.generation in self.numbers)

    @cached_property
    def remaining(self) -> dict[int, Generation]:
        return {each.generation: each for each in self.published if each.generation not in self.numbers}

    @property
    def is_done(self) -> bool:
        """Whether nothing ends, and neither a crash nor a writer who lost has left anything."""
        if self.ending or self._strays(self.tables.assignments.files()):
            return False
        if any(self._is_early(file) for table in (self.tables.clusters, self.tables.moves) for file in table.files()):
            return False
        return not any(self._unused(self.remaining.values(), self.tables.newest))

    def commit(self) -> list[list[StoredFile]]:
        """Commit all four tables, that of generations last; files to be deleted then, by table."""
        self.tables.assignments.commit(self._plan_assignments)
        clusters = self.tables.clusters.commit(self._plan_clusters)
        moves = self.tables.moves.commit(self._plan_moves)
        upto = self.tables.newest

        def choose(rows: list[Generation]) -> list[Generation]:
            nonlocal upto
            self._require_unmoved()
            upto = self.tables.newest  # who publishes on a later one began after this commit, and sees what has ended
            return [self._renewed(each, clusters, moves) for each in rows if each.generation in self.remaining]

        remaining = self.generations.keep(choose)
        return self._unused(remaining, upto)

    def _require_unmoved(self) -> None:
        """Else rows that look like a crash's may be published by now."""
        if self.generations.version != self.look.version:
            raise _OvertakenError

    def _unused(self, remaining: Collection[Generation], upto: tuple[int, int, int]) -> list[list[StoredFile]]:
        """Of each table, the data files that no remaining generation and no newest version names."""
        named: list[set[str]] = [set(), set(), set()]
        for each in remaining:
            versions = (each.assignments_version, each.clusters_version, each.moves_version)
            for paths, table, version in zip(named, self.tables.every, versions, strict=True):
                paths.update(file.path for file in self._files(table, version))
        return [unused(*each) for each in zip(self.tables.every, named, upto, strict=True)]

    def _files(self, table: Delta, version: int) -> list[WrittenFile]:
        if (table.path, version) not in self.seen:
            self.seen[table.path, version] = table.files(version)
        return self.seen[table.path, version]

    def _strays(self, files: Collection[WrittenFile]) -> list[WrittenFile]:
        """Assignments that no remaining generation has."""
        versions = {each.assignments_version for each in self.remaining.values()}
        named = {file.path for version in versions for file in self._files(self.tables.assignments, version)}
        return [file for file in files if file.path not in named]

    def _plan_assignments(self, files: list[WrittenFile]) -> Change | None:
        """What the newest of the remaining has."""
        self._require_unmoved()
        strays, here = self._strays(files), {file.path for file in files}
        newest = max(self.remaining.values(), key=lambda each: each.generation, default=None)
        own = [] if newest is None else self._files(self.tables.assignments, newest.assignments_version)
        return Change([file for file in own if file.path not in here], removed=strays) if strays else None

    def _plan_moves(self, files: list[WrittenFile]) -> Change | None:
        self._require_unmoved()
        over = [file for file in files if self._is_early(file) or self._has_ended(file)]
        return Change([], removed=over) if over else None

    def _plan_clusters(self, files: list[WrittenFile]) -> Change | None:
        """All rows that have ended as one file, without the samples that they name."""
        self._require_unmoved()
        early, over = [f for f in files if self._is_early(f)], [f for f in files if self._has_ended(f)]
        if not self.ending and len(over) < 2:
            return Change([], removed=early) if early else None
        rows = self.tables.clusters.read_all(over)
        for name in _MEDOID:
            column = rows.schema.get_field_index(name)
            rows = rows.set_column(
                column, rows.schema.field(column), pa.nulls(rows.num_rows, rows.schema.types[column])
            )
        rows = rows.sort_by([("generation", "ascending"), ("cluster", "ascending")])
        return Change([self.tables.clusters.write(rows)] if over else [], removed=[*early, *over])

    def _is_early(self, file: WrittenFile) -> bool:
        """Whether it has rows of a generation that was not published: of a crash, or of a writer who will lose."""
        return bool(file.maximum["generation"] >= self.look.next)

    def _has_ended(self, file: WrittenFile) -> bool:
        """Whether it has rows of a generation that has ended, or is to end, or of all that ended before."""
        first, last = file.minimum["generation"], file.maximum["generation"]
        return not self._is_early(file) and not (first == last and first in self.remaining)

    def _renewed(self, generation: Generation, clusters: int, moves: int) -> Generation:
        """The same, naming versions of the shared tables that have its rows, and none of what has ended."""
        renewed = {}
        for table, name, version in (
            (self.tables.clusters, "clusters_version", clusters),
            (self.tables.moves, "moves_version", moves),
        ):
            own = rows_of(self._files(table, getattr(generation, name)), generation.generation)
            if own == rows_of(self._files(table, version), generation.generation):
                renewed[name] = version
        return generation.model_copy(update=renewed)
