"""Take samples down: out of every table, sum, model and file of a collection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache

from models.errors import ShoalError
from pipeline.progress import Progress, silent
from pipeline.recluster.update import forget
from pipeline.removal.journal import Entry, Journal
from pipeline.removal.rows import Hits, find, removed_before, replace
from pipeline.removal.targets import Targets, Wanted
from pipeline.removal.traces import delete_beside, sweep_artifacts, sweep_data_files
from pipeline.tables.clusterings import Generation
from pipeline.tables.collection import Collection
from pipeline.tables.datafiles import LostFileError
from pipeline.tables.place import Place, children
from pipeline.tables.samples import SampleFile, SamplesTable
from pipeline.tables.schema import OK, REJECTED

RELEASE = ("take_rows_out", "publish_without", "end_generations")  # until no reader needs the rows
DELETE = ("delete_files", "scrub_logs", "delete_traces")
ROUNDS = 3  # each of which somebody else's commit makes necessary; more mean that others are at work on the table


@dataclass(frozen=True)
class Preview:
    """What a removal would do."""

    images: int
    rejects: int
    files: int  # to be written again
    shards: int
    unknown: tuple[Wanted, ...]  # not in the table, now or before
    removed_before: int  # samples
    ending: dict[str, list[int]]  # generations that name their rows, by clustering
    unfinished: int  # keys of a removal that was stopped


@dataclass
class RemovalSummary:
    """What a removal did; a mutable tally while it is at work."""

    images: int = 0
    rejects: int = 0
    unknown: tuple[Wanted, ...] = ()
    removed_before: int = 0
    continued: bool = False  # an earlier removal was finished, too
    version: int | None = None  # of the samples table, if rows were taken out
    shards: dict[str, int] = field(default_factory=dict)  # that hold the samples still, and how many
    published: dict[str, int] = field(default_factory=dict)  # the generation without the rows, by clustering
    ended: dict[str, list[int]] = field(default_factory=dict)  # generations, by clustering
    lost: dict[str, str] = field(default_factory=dict)  # clusterings that could not go on without the rows, and why
    files: int = 0  # data files deleted
    beside: list[str] = field(default_factory=list)  # other files deleted
    pending: tuple[str, ...] = ()  # shards that a writer has files of with these keys


def preview(table: Collection, keys: Iterable[Wanted], on_progress: Progress = silent) -> Preview:
    """What `remove` would do. Reads keys, changes nothing. Raises as `remove` for keys that it would refuse."""
    asked, earlier = _asked(table, keys), Journal(table).read()
    hits, before, unknown = _looked(table, asked, earlier, on_progress)
    going = {hit.file.path for hit in hits.files}
    ending = _naming(table, lambda file: file.path in going)
    return Preview(
        images=hits.rows(OK),
        rejects=hits.rows(REJECTED),
        files=len(hits.files),
        shards=len(hits.found.in_shard),
        unknown=unknown,
        removed_before=len(before),
        ending={name: [each.generation for each in held] for name, held in ending.items()},
        unfinished=0 if earlier is None else len(earlier.asked),
    )


def remove(
    table: Collection, keys: Iterable[Wanted], on_progress: Progress = silent, beside: Sequence[Place] = ()
) -> RemovalSummary:
    """Take samples down, by key in all shards (None) or in one; `beside` are files that show rows, deleted as well.

    Rows leave the samples table in one commit; every clustering that holds some publishes a generation without them
    and ends those with them; then go all files, log entries, checkpoints and artifacts that knew them. A journal in the
    table says what is under way, and is deleted last. Killed anywhere, readers see whole generations, and the same
    call, or one without keys, completes it. What somebody else commits meanwhile is looked through, too.

    For samples that were removed before, what others have left of them since goes: a fit that had begun before, say.

    Costs the keys of the files that may hold some, and a rewrite of those that do. Raises ShoalError, and changes
    nothing, if the table has none of the keys; ShoalError also where others keep publishing such rows; TableError
    where something cannot be read or deleted, and then the same call goes on from there.
    """
    asked, earlier = _asked(table, keys), Journal(table).read()
    hits, before, unknown = _looked(table, asked, earlier, on_progress)
    summary = RemovalSummary(unknown=unknown, removed_before=len(before), continued=earlier is not None)
    entry = Entry(asked, hits.found | before)
    work = _Removal(table, entry if earlier is None else earlier | entry, summary, on_progress, tuple(beside))
    work.finish(hits)
    return summary


class _Removal:
    """The steps, each of which may be repeated: they look at what is there, not at what was done."""

    def __init__(
        self,
        table: Collection,
        entry: Entry,
        summary: RemovalSummary,
        on_progress: Progress,
        beside: tuple[Place, ...],
    ) -> None:
        self.table = table
        self.samples = table.samples
        self.entry = entry
        self.summary = summary
        self._on_progress = on_progress
        self._beside = beside
        self._journal = Journal(table)
        self._hits = Hits(())
        self._known = frozenset[str]()  # data files of the samples table that were looked through

    def finish(self, hits: Hits) -> None:
        """All steps, until nothing is left; `hits` are what the table has now."""
        self._hits = hits
        self._journal.write(self.entry)
        for _ in range(ROUNDS):
            if self._is_released_by(RELEASE) and self._is_released_by(DELETE):
                self._journal.close(self.entry)
                self.summary.shards = {shard: len(keys) for shard, keys in sorted(self.entry.found.in_shard.items())}
                return
        raise ShoalError(
            f"Others keep adding such rows to {self.table.path}, or generations that hold them; let them finish, then "
            "run `shoal remove` for this table again: it goes on from here."
        )

    def take_rows_out(self) -> None:
        """Rows leave the samples table in one commit; those that somebody committed meanwhile in another."""
        while self._hits.files:
            self.entry |= Entry(Targets(), self._hits.found)
            self._journal.write(self.entry)
            self.summary.version = replace(self.samples, self._hits, self.entry.asked, self._on_progress)
            self.summary.images += self._hits.rows(OK)
            self.summary.rejects += self._hits.rows(REJECTED)
            self._look()

    def publish_without(self) -> None:
        """Each clustering whose newest generation holds rows publishes one that does not."""
        if not self.samples.count():
            return  # and nothing is left to cluster
        for name, held in self._holding().items():
            newest = held[-1]
            others = [each for each in self.table.clustering(name).generations() if each not in held]
            if any(_succeeds(each, newest) for each in others):
                continue
            try:
                self.summary.published[name] = forget(self.table, name, newest, self._on_progress).generation
            except (
                ShoalError,
                LostFileError,
            ) as error:  # the rows go all the same; other TableErrors are the storage's
                self.summary.lost[name] = str(error)

    def end_generations(self) -> None:
        """Generations that hold rows end, with what somebody who was killed has left of one; so do their artifacts."""
        holding = self._holding()
        for name in self._names():
            held = [each.generation for each in holding.get(name, [])]
            clustering = self.table.clustering(name)
            clustering.end(held)  # also where there is none: it completes what was stopped
            clustering.interrupt()  # whoever began on a version that has these rows must not publish it any more
            if held:
                self.summary.ended.setdefault(name, []).extend(held)
        self.table.sweep_artifacts()
        sweep_artifacts(self.table, self._is_stale())

    def delete_files(self) -> None:
        """No log that is in use names a data file with these rows by now; those on disk go."""
        swept = sweep_data_files(self.table, self.entry.asked, self.entry.found)
        self.summary.files += swept.deleted
        self.summary.pending = swept.pending

    def scrub_logs(self) -> None:
        """Statistics in the logs have smallest and largest keys."""
        keys = frozenset[str]().union(*self.entry.found.in_shard.values())
        clusterings = [self.table.clustering(name) for name in self._names()]
        self.samples.scrub(keys, {each.samples_version for one in clusterings for each in one.generations()})
        for clustering in clusterings:
            clustering.scrub(keys)

    def delete_traces(self) -> None:
        """Checkpoints of fits that were stopped hold rows, and a report shows them."""
        self._journal.clear_folder()
        self.summary.beside += delete_beside(self._beside)

    def _names(self) -> list[str]:
        """Of all clusterings, those without a generation too."""
        return [each.name for each in children(self.table.path / "clusterings") if each.is_dir()]

    def _look(self) -> None:
        self._hits = find(self.samples, self.entry.asked, self._known, self._on_progress)
        self._known = self._hits.looked

    def _is_released_by(self, steps: Sequence[str]) -> bool:
        """Whether, after these steps, neither the table nor a generation has such rows."""
        for step in steps:
            getattr(self, step)()
        self._look()
        return not self._hits.files and not self._holding()

    def _holding(self) -> dict[str, list[Generation]]:
        """By clustering, generations that name data files which were replaced for these rows."""
        return _naming(self.table, self._is_gone())

    def _is_stale(self) -> Callable[[int], bool]:
        """Whether a file of a version of the samples table was replaced for these rows."""
        stale, newest = _naming_one(self.samples, self._is_gone()), self.samples.version
        return lambda version: version <= newest and stale(version)  # a later one is of another table's artifact

    def _is_gone(self) -> Callable[[SampleFile], bool]:
        """Whether a data file was replaced for these rows."""
        here = {file.path for files in self.samples.files_by_status().values() for file in files}
        shards = self.entry.found.in_shard
        return lambda file: file.shard in shards and file.path not in here


def _asked(table: Collection, keys: Iterable[Wanted]) -> Targets:
    return Targets.of(keys).resolved(table.samples.done_shards())


def _looked(
    table: Collection, asked: Targets, earlier: Entry | None, on_progress: Progress
) -> tuple[Hits, Targets, tuple[Wanted, ...]]:
    """What the table has, what was removed from it before, and what it does not know.

    Raises ShoalError where there is nothing to do.
    """
    if not asked and earlier is None:
        raise ShoalError(f"No removal of {table.path} is unfinished, and no key was given; give KEY or --keys FILE.")
    samples = table.samples
    hits = find(samples, asked if earlier is None else asked | earlier.asked, frozenset(), on_progress)
    missing = asked.missing_from(hits.found if earlier is None else hits.found | earlier.found)
    before = removed_before(samples, missing)
    unknown = tuple(Targets.of(missing).missing_from(before))
    if not hits.files and earlier is None and not before:
        raise ShoalError(
            f"None of the {len(asked):,} keys is in the table at {table.path}, first {unknown[0][1]!r}; nothing was "
            "changed: `shoal remove` takes keys as the table's column `key` has them."
        )
    return hits, before, unknown


def _succeeds(other: Generation, newest: Generation) -> bool:
    """Whether it came later, or knew a later table: then `newest` is of somebody who began before rows went."""
    return other.generation > newest.generation or other.samples_version > newest.samples_version


def _naming(table: Collection, is_gone: Callable[[SampleFile], bool]) -> dict[str, list[Generation]]:
    """By clustering, the generations whose version of the samples has such a file, oldest first; from the logs."""
    has_one = _naming_one(table.samples, is_gone)
    found = {
        name: [each for each in table.clustering(name).generations() if has_one(each.samples_version)]
        for name in table.clusterings()
    }
    return {name: generations for name, generations in found.items() if generations}


def _naming_one(samples: SamplesTable, is_gone: Callable[[SampleFile], bool]) -> Callable[[int], bool]:
    @cache
    def has_one(version: int) -> bool:
        return any(is_gone(file) for files in samples.files_by_status(version).values() for file in files)

    return has_one
