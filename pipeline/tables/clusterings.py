"""One clustering of a collection: its generations, each published by a single row once everything else is in place."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.tables.delta import Change, Delta, Layout, WrittenFile
from pipeline.tables.place import Place, place
from pipeline.tables.samples import SampleFile
from pipeline.tables.schema import ASSIGNMENTS, CLUSTERS, GENERATIONS, MOVES, TableError

Extent = tuple[str, str, str, int]


class Publication(BaseModel):
    """What whoever publishes a generation says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples_version: int
    artifact: str  # digest
    config_digest: str
    parent: int | None = None  # the generation that this one continues; None for a fresh fit
    decision: str
    evidence: str = "{}"  # JSON


class Generation(Publication):
    """The publication record: which versions of which tables belong together. `created_at` is the only clock in it."""

    generation: int
    assignments_version: int
    clusters_version: int
    moves_version: int
    created_at: datetime


class Clustering:
    """Four Delta tables. `generations` is the one that readers resolve through; they ignore whatever is newer.

    Picklable; workers may call `write_assignments`.
    """

    def __init__(self, path: str | Place) -> None:
        self.path = str(path)
        root = place(path)
        self._assignments = Delta(str(root / "assignments"), Layout(ASSIGNMENTS, statistics=("shard", "key")))
        self._clusters = Delta(str(root / "clusters"), Layout(CLUSTERS, statistics=("generation",)))
        self._moves = Delta(str(root / "moves"), Layout(MOVES, statistics=("generation",)))
        self._generations = Delta(str(root / "generations"), Layout(GENERATIONS, statistics=("generation",)))
        self._covered: dict[int, dict[Extent, WrittenFile]] = {}  # by version of assignments; a version never changes

    @property
    def name(self) -> str:
        """As in the path."""
        return place(self.path).name

    def begin(self) -> int:
        """The number of the next generation, from 1; makes the tables if this is the first."""
        for table in (self._assignments, self._clusters, self._moves, self._generations):
            table.create()
        return _next(self._generations.files())

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

    def publish(
        self,
        generation: int,
        assignment_files: Sequence[WrittenFile],
        clusters: pa.Table,
        moves: pa.Table,
        record: Publication,
    ) -> Generation:
        """Publish what `begin` numbered: assignments, clusters and moves first, the row in `generations` last.

        With a `parent`, its assignments are carried over for samples files that `assignment_files` do not cover.
        A crash in between leaves nothing that readers see, and the same generation can be published again. Of two
        writers of one generation the second gets a TableError.
        """
        self._require_next(generation, self._generations.files())
        whole = Generation(
            **record.model_dump(),
            generation=generation,
            assignments_version=self._replace_assignments(assignment_files, record.parent),
            clusters_version=_replace_generation(self._clusters, generation, clusters),
            moves_version=_replace_generation(self._moves, generation, moves),
            created_at=datetime.now(UTC),
        )
        row = self._generations.write(pa.Table.from_pylist([whole.model_dump()], schema=GENERATIONS))

        def plan(present: list[WrittenFile]) -> Change:
            self._require_next(generation, present)
            return Change([row])

        self._generations.commit(plan)
        return whole

    def generations(self) -> list[Generation]:
        """All published generations, oldest first."""
        if not self._generations.exists():
            return []
        rows = self._generations.read_all(self._generations.files()).to_pylist()
        return sorted((Generation.model_validate(row) for row in rows), key=lambda each: each.generation)

    def latest(self) -> Generation | None:
        """The newest published generation."""
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
        written = self._files_at(generation.assignments_version).get(file.extent)
        if written is None:
            raise TableError(
                f"Generation {generation.generation} of clustering {self.name} has no assignments for shard "
                f"{file.shard}, which came after it; run `shoal assign`."
            )
        return self._assignments.read(written.path, written.rows, columns)

    def clusters(self, generation: Generation) -> pa.Table:
        """The clusters of a generation, as published."""
        return _read_generation(self._clusters, generation.clusters_version, generation.generation)

    def moves(self, generation: Generation) -> pa.Table:
        """The moves that led to a generation, as published."""
        return _read_generation(self._moves, generation.moves_version, generation.generation)

    def counts(self, generation: Generation) -> dict[str, int]:
        """Rows of each table of a generation, from the logs alone."""
        number = generation.generation
        return {
            "assignments": sum(file.rows for file in self._files_at(generation.assignments_version).values()),
            "clusters": sum(each.rows for each in _of(self._clusters.files(generation.clusters_version), number)),
            "moves": sum(each.rows for each in _of(self._moves.files(generation.moves_version), number)),
        }

    def _require_next(self, generation: int, published: list[WrittenFile]) -> None:
        expected = _next(published)
        if generation != expected:
            raise TableError(
                f"This writer lost a race: it prepared generation {generation} of clustering {self.name} but the next "
                f"is {expected}, so another writer published first; run again."
            )

    def _replace_assignments(self, files: Sequence[WrittenFile], parent: int | None) -> int:
        wanted = {} if parent is None else dict(self._files_at(self.generation(parent).assignments_version))
        wanted.update({_extent(file): file for file in files})

        def plan(present: list[WrittenFile]) -> Change:
            old, new = {file.path for file in present}, {file.path for file in wanted.values()}
            return Change(
                added=[file for file in wanted.values() if file.path not in old],
                removed=[file for file in present if file.path not in new],
            )

        return self._assignments.commit(plan)

    def _files_at(self, version: int) -> dict[Extent, WrittenFile]:
        if version not in self._covered:
            self._covered[version] = {_extent(file): file for file in self._assignments.files(version)}
        return self._covered[version]


def _extent(file: WrittenFile) -> Extent:
    return file.minimum["shard"], file.minimum["key"], file.maximum["key"], file.rows


def _next(published: list[WrittenFile]) -> int:
    return int(max((file.maximum["generation"] for file in published), default=0)) + 1


def _of(files: list[WrittenFile], generation: int) -> list[WrittenFile]:
    return [file for file in files if file.minimum["generation"] == generation]


def _replace_generation(table: Delta, generation: int, rows: pa.Table) -> int:
    """Commit the rows of a generation in place of any that a crashed attempt left under its number."""
    numbers: set[Any] = set(rows["generation"].to_pylist())
    if numbers - {generation}:
        raise TableError(f"Rows of {table.path} have generations {sorted(numbers)}; expected {generation} only.")
    added = [table.write(rows)] if rows.num_rows else []
    return table.commit(lambda present: Change(added, removed=_of(present, generation)))


def _read_generation(table: Delta, version: int, generation: int) -> pa.Table:
    return table.read_all(_of(table.files(version), generation))
