"""The publication records of a clustering: which versions of its tables belong together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from pipeline.tables.delta import Change, Delta, Layout, Version, WrittenFile
from pipeline.tables.place import Place
from pipeline.tables.schema import GENERATIONS, TableError
from pipeline.tables.sweep import delete, unused


class Publication(BaseModel):
    """What whoever publishes a generation says of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    samples_version: int
    artifact: str  # digest
    config_digest: str
    parent: int | None = None  # the generation that this one continues; None for a fresh fit
    decision: str  # fit, assign, refine, refit, removal, rollback to G; "assign only" in older tables
    evidence: str = "{}"  # JSON
    statistics: str | None = None  # digest of what learning continues from; None in older tables, and if nothing learns


class Generation(Publication):
    """The publication record: which versions of which tables belong together. `created_at` is the only clock in it."""

    generation: int
    assignments_version: int
    clusters_version: int
    moves_version: int
    created_at: datetime

    @property
    def digests(self) -> set[str]:
        """Of the artifacts that it names."""
        return {each for each in (self.artifact, self.statistics) if each is not None}


@dataclass(frozen=True)
class Look:
    """The table as a writer saw it when it began."""

    version: int
    next: int


class GenerationsTable:
    """One row per generation that has not ended. Numbers begin at 1, grow, and are never given again."""

    def __init__(self, folder: Place) -> None:
        self.clustering = folder.parent.name
        self._delta = Delta(str(folder), Layout(GENERATIONS, statistics=("generation",)))
        self._read_before: dict[str, list[Generation]] = {}  # by data file

    def create(self) -> None:
        """Make it, or add the columns that it lacks."""
        self._delta.require_columns()

    def exists(self) -> bool:
        """Whether a generation was ever begun."""
        return self._delta.exists()

    def read(self) -> list[Generation]:
        """All generations, oldest first."""
        if not self._delta.exists():
            return []
        files = self._delta.files()
        try:
            return self._rows(files)
        except TableError:
            newer = self._delta.files()
            if {file.path for file in newer} == {file.path for file in files}:
                raise
            return self._rows(newer)  # some have ended since, and their files with them

    @property
    def version(self) -> int:
        """The newest version; 0 before the first generation is begun."""
        return self._delta.version if self._delta.exists() else 0

    @property
    def next(self) -> int:
        """The number of the next generation."""
        return _next(self._delta.files() if self._delta.exists() else [])

    def look(self, generation: int) -> Look:
        """What `append` compares. Raises TableError unless `generation` is the next."""
        version = self._delta.at()
        self._require(generation, _next(version.files()))
        return Look(version.number, generation)

    def require(self, look: Look) -> None:
        """Raise TableError if anybody committed since `look`: published a generation, or ended one."""
        self._require_unchanged(look, self._delta.at())

    def append(self, row: Generation, look: Look) -> None:
        """Publish. Raises TableError if anybody committed since `look`."""
        file = self._write([row])

        def plan(version: Version) -> Change:
            self._require_unchanged(look, version)
            return Change([file])

        self._delta.commit_on(plan)

    def keep(self, choose: Callable[[list[Generation]], list[Generation]]) -> list[Generation]:
        """Replace the rows by those that `choose` makes of them, in one commit; publications under way lose."""
        kept: list[Generation] = []

        def plan(present: list[WrittenFile]) -> Change:
            kept[:] = choose(self._rows(present))
            highest = {
                "generation": _next(present) - 1
            }  # a bound need not be a value: so the log knows the last number
            file = self._write(kept)
            return Change([replace(file, minimum=file.minimum if kept else highest, maximum=highest)], removed=present)

        self._delta.commit(plan)
        return kept

    def ended(self) -> dict[str, list[Generation]]:
        """Rows of generations that are no longer there, by the file that still has them."""
        if not self._delta.exists():
            return {}
        remaining = {each.generation for each in self.read()}
        paths = [each.path for each in unused(self._delta, (), self._delta.version)]
        rows = {path: self._read(path) for path in paths}
        return {path: [each for each in found if each.generation not in remaining] for path, found in rows.items()}

    def forget(self, paths: Collection[str]) -> None:
        """Delete files that `ended` named."""
        delete(self._delta, [each for each in unused(self._delta, (), self._delta.version) if each.path in paths])

    def _rows(self, files: Sequence[WrittenFile]) -> list[Generation]:
        unread = [file for file in files if file.path not in self._read_before]
        table, begin = self._delta.read_all(unread), 0
        for file in unread:  # a data file is never written again
            rows = table.slice(begin, file.rows).to_pylist()
            self._read_before[file.path] = [Generation.model_validate(row) for row in rows]
            begin += file.rows
        found = [row for file in files for row in self._read_before[file.path]]
        return sorted(found, key=lambda each: each.generation)

    def _read(self, path: str) -> list[Generation]:
        return [Generation.model_validate(row) for row in self._delta.read(path, None).to_pylist()]

    def _write(self, rows: Sequence[Generation]) -> WrittenFile:
        return self._delta.write(pa.Table.from_pylist([each.model_dump() for each in rows], schema=GENERATIONS))

    def _require(self, generation: int, expected: int) -> None:
        if generation != expected:
            raise TableError(
                f"This writer lost a race: it prepared generation {generation} of clustering {self.clustering} but the "
                f"next is {expected}, so another writer published first; run again."
            )

    def _require_unchanged(self, look: Look, version: Version) -> None:
        if version.number != look.version:
            self._require(look.next, _next(version.files()))
            raise TableError(
                f"This writer lost a race: generations of clustering {self.clustering} were ended while it published "
                f"generation {look.next}, and with them files that it may share; run again."
            )


def _next(published: Sequence[WrittenFile]) -> int:
    return int(max((file.maximum["generation"] for file in published), default=0)) + 1
