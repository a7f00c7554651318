"""One clustering of a collection: its generations, each published by a single row once everything else is in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.tables.delta import Change, Delta, Layout, WrittenFile
from pipeline.tables.ending import EndedFiles, Tables, end, restore, rows_of
from pipeline.tables.generations import Generation, GenerationsTable, Look, Publication
from pipeline.tables.place import Place, place
from pipeline.tables.samples import SampleFile
from pipeline.tables.schema import ASSIGNMENTS, CLUSTERS, MOVES, TableError
from pipeline.tables.scrub import scrub

__all__ = ["DIED", "Clustering", "EndedFiles", "Generation", "Publication"]

Extent = tuple[str, str, str, int]
_ASSIGNMENTS = Layout(ASSIGNMENTS, statistics=("shard", "key"), repeated=("cluster", "component", "runner_up"))
DIED = "died"  # the event of a cluster that is no longer there


class Clustering:
    """Four Delta tables. `generations` is the one that readers resolve through; they ignore whatever is newer.

    Picklable; workers may call `write_assignments`.
    """

    def __init__(self, path: str | Place) -> None:
        self.path = str(path)
        root = place(path)
        self._assignments = Delta(str(root / "assignments"), _ASSIGNMENTS)
        self._clusters = Delta(str(root / "clusters"), Layout(CLUSTERS, statistics=("generation",)))
        self._moves = Delta(str(root / "moves"), Layout(MOVES, statistics=("generation",)))
        self.published = GenerationsTable(root / "generations")
        self._begun: Look | None = None
        self._covered: dict[int, dict[Extent, WrittenFile]] = {}  # by version of assignments; a version never changes

    @property
    def name(self) -> str:
        """As in the path."""
        return place(self.path).name

    def begin(self) -> int:
        """The number of the next generation, from 1; makes the tables if this is the first.

        What is to be published is to be decided on what is read after this call: whoever publishes, or ends
        generations, between it and `publish` makes that fail. Tables made before the schemas had all of their columns
        get the missing ones.
        """
        for table in (self._assignments, self._clusters, self._moves):
            table.require_columns()
        self.published.create()
        if latest := self.latest():
            restore(self._tables, latest)
        self._begun = self.published.look(self.published.next)
        return self._begun.next

    def interrupt(self) -> None:
        """Have every publication that has begun fail, as `end` does. For rows that nobody may publish any more."""
        if self.published.exists():
            self.published.keep(lambda rows: rows)

    def write_assignments(self, table: pa.Table, samples_file: SampleFile) -> WrittenFile:
        """Write the assignments of one samples file, row for row, unseen until `publish`.

        Raises TableError if they are not the rows of that file.
        """
        file = self._assignments.write(table)
        if _extent(file) != samples_file.extent:
            self._assignments.discard([file])
            raise TableError(
                f"Assignments cover {_extent(file)} but samples file {samples_file.path} has {samples_file.extent} "
                "(shard, smallest key, largest key, rows); assign the rows of one file in their order."
            )
        return file

    def read_written(self, file: WrittenFile, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of a file that `write_assignments` or `assignment_file` gave."""
        return self._assignments.read(file.path, file.rows, columns)

    def discard_assignments(self, files: Sequence[WrittenFile]) -> None:
        """Delete what was written and will not be published."""
        self._assignments.discard(files)

    def publish(
        self,
        generation: int,
        assignment_files: Sequence[WrittenFile],
        clusters: pa.Table,
        moves: pa.Table,
        record: Publication,
        covering: Sequence[SampleFile] | None = None,
    ) -> Generation:
        """Publish what `begin` numbered: assignments, clusters and moves first, the row in `generations` last.

        With a `parent`, its assignments are carried over for those samples files of `covering` (default: all that it
        has) that `assignment_files` do not cover.
        A crash in between leaves nothing that readers see, and the same generation can be published again. Of two
        writers of one generation the second gets a TableError, before it commits anything if the first was done then;
        so does a writer while whose publication generations were ended.
        """
        begun = self._begun
        look = begun if begun is not None and begun.next == generation else self.published.look(generation)
        self.published.require(look)

        def require() -> None:
            self.published.require(look)

        wanted = self._carried(record.parent, covering) | {_extent(file): file for file in assignment_files}
        whole = Generation(
            **record.model_dump(),
            generation=generation,
            assignments_version=self._replace_assignments(list(wanted.values()), require),
            clusters_version=_replace_generation(self._clusters, generation, clusters, require),
            moves_version=_replace_generation(self._moves, generation, moves, require),
            created_at=datetime.now(UTC),
        )
        self.published.append(whole, look)
        return whole

    def end(self, numbers: Collection[int]) -> EndedFiles:
        """End generations: their rows, their moves and the samples that their clusters name go; `lineage` stays.

        Then deletes the data files that no remaining generation names, and no newest version; never one that no
        version named. Numbers that have ended already are no error, and what a crash left over is finished by the next
        call. Writers that publish meanwhile get a TableError. Raises TableError for a number that never was.
        """
        return end(self._tables, self.published, numbers)

    def retain(self, keep: int) -> EndedFiles:
        """End all generations but the newest `keep`. Raises TableError unless that is at least one."""
        if keep < 1:
            raise TableError(f"{keep} generations are to be kept; keep 1 or more.")
        return self.end([each.generation for each in self.generations()[:-keep]])

    def scrub(self, keys: Collection[str]) -> None:
        """Take sample keys out of the logs, but for files that a generation or a newest version names; see `scrub`."""
        remaining = self.generations()
        scrub(self._assignments, keys, {each.assignments_version for each in remaining})
        scrub(self._clusters, keys, {each.clusters_version for each in remaining})
        scrub(self._moves, keys, {each.moves_version for each in remaining})

    def generations(self) -> list[Generation]:
        """All published generations that have not ended, oldest first."""
        return self.published.read()

    def latest(self) -> Generation | None:
        """The newest of them."""
        return max(self.generations(), key=lambda each: each.generation, default=None)

    def generation(self, number: int) -> Generation:
        """A published generation by number. Raises TableError if there is none."""
        published = self.generations()
        for each in published:
            if each.generation == number:
                return each
        numbers = [each.generation for each in published]
        raise TableError(f"Clustering {self.name} has no generation {number}; it has {numbers}.")

    def read_assignments(
        self, generation: Generation, file: SampleFile, columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Assignments of one samples file, row for row. Raises TableError if the generation has none for it."""
        return self.read_written(self.assignment_file(generation, file), columns)

    def assignment_file(self, generation: Generation, file: SampleFile) -> WrittenFile:
        """Where the assignments of one samples file are: two generations that agree on its path agree on its rows.

        From the log alone. Raises TableError if the generation has none for it.
        """
        written = self._files_at(generation.assignments_version).get(file.extent)
        if written is None:
            raise TableError(
                f"Generation {generation.generation} of clustering {self.name} has no assignments for shard "
                f"{file.shard}, which came after it; run `shoal assign`."
            )
        return written

    def clusters(self, generation: Generation) -> pa.Table:
        """The living clusters of a generation, as published."""
        events = self.events(generation)
        return events.filter(pc.not_equal(events["event"], DIED))

    def events(self, generation: Generation) -> pa.Table:
        """As `clusters`, with those that died in this generation."""
        return _read_generation(self._clusters, generation.clusters_version, generation.generation)

    def lineage(self) -> pa.Table:
        """Events of all generations ever published, ended ones too (without their medoids), by generation and cluster.

        That is enough to follow a cluster from its birth on. What a crashed publication left is not in it.
        """
        if not self._clusters.exists():
            return CLUSTERS.empty_table()
        following = self.published.next
        files = [file for file in self._clusters.files() if file.minimum["generation"] < following]
        return self._clusters.read_all(files).sort_by([("generation", "ascending"), ("cluster", "ascending")])

    def moves(self, generation: Generation) -> pa.Table:
        """The moves that led to a generation, as published."""
        return _read_generation(self._moves, generation.moves_version, generation.generation)

    def counts(self, generation: Generation) -> dict[str, int]:
        """Rows of each table of a generation, from the logs alone."""
        number = generation.generation
        return {
            "assignments": sum(file.rows for file in self._files_at(generation.assignments_version).values()),
            "clusters": sum(each.rows for each in rows_of(self._clusters.files(generation.clusters_version), number)),
            "moves": sum(each.rows for each in rows_of(self._moves.files(generation.moves_version), number)),
        }

    @property
    def _tables(self) -> Tables:
        return Tables(self._assignments, self._clusters, self._moves)

    def _carried(self, parent: int | None, covering: Sequence[SampleFile] | None) -> dict[Extent, WrittenFile]:
        if parent is None:
            return {}
        old = self._files_at(self.generation(parent).assignments_version)
        if covering is None:
            return dict(old)
        return {file.extent: old[file.extent] for file in covering if file.extent in old}

    def _replace_assignments(self, wanted: Sequence[WrittenFile], require: Callable[[], None]) -> int:
        def plan(present: list[WrittenFile]) -> Change:
            require()
            old, new = {file.path for file in present}, {file.path for file in wanted}
            return Change(
                added=[file for file in wanted if file.path not in old],
                removed=[file for file in present if file.path not in new],
            )

        return self._assignments.commit(plan)

    def _files_at(self, version: int) -> dict[Extent, WrittenFile]:
        if version not in self._covered:
            self._covered[version] = {_extent(file): file for file in self._assignments.files(version)}
        return self._covered[version]


def _extent(file: WrittenFile) -> Extent:
    return file.minimum["shard"], file.minimum["key"], file.maximum["key"], file.rows


def _replace_generation(table: Delta, generation: int, rows: pa.Table, require: Callable[[], None]) -> int:
    """Commit the rows of a generation in place of any that a crashed attempt left under its number."""
    numbers: set[Any] = set(rows["generation"].to_pylist())
    if numbers - {generation}:
        raise TableError(f"Rows of {table.path} have generations {sorted(numbers)}; expected {generation} only.")
    require()
    added = [table.write(rows)] if rows.num_rows else []

    def plan(present: list[WrittenFile]) -> Change:
        require()
        return Change(added, removed=rows_of(present, generation))

    return table.commit(plan)


def _read_generation(table: Delta, version: int, generation: int) -> pa.Table:
    return table.read_all(rows_of(table.files(version), generation))
