"""Rows of the samples table: those that are to go are found, and their files written again without them.

In the place of a row stays a mark, of status `removed`: shard, and a digest of the key. A shard is done when it has a
row, so that one whose every image was taken down is not extracted again.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.ingest.names import split_name
from pipeline.progress import Progress
from pipeline.removal.targets import Targets, Wanted
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SampleFile, SamplesTable
from pipeline.tables.schema import OK, REJECTED, REMOVED, Reason, TableError

STEP = "look for keys"
_READERS = 8
_GAP = re.compile(r"(?s)(.*), (bytes \d+-\d+: .*)")  # how the detail of a gap names the member that it spoiled
_PERSON = b"shoal-removed"


@dataclass(frozen=True)
class Hit:
    """A data file with rows that are to go, or with a detail that names such a row."""

    file: SampleFile
    status: str
    keys: tuple[str, ...]  # of the rows that are to go


@dataclass(frozen=True)
class Hits:
    """What a table has of the targets."""

    files: tuple[Hit, ...]
    looked: frozenset[str] = frozenset()  # paths of all data files of that version

    @property
    def found(self) -> Targets:
        """The keys, by shard."""
        return Targets.of((hit.file.shard, key) for hit in self.files for key in hit.keys)

    def rows(self, status: str) -> int:
        """Rows of a status that are to go."""
        return sum(len(hit.keys) for hit in self.files if hit.status == status)


def mark_of(key: str) -> str:
    """What stays in the place of a key: a digest, by which a key can be recognised as one that was removed."""
    digest = hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16, person=_PERSON)
    return f"removed-{digest.hexdigest()}"


def find(samples: SamplesTable, targets: Targets, known: AbstractSet[str], on_progress: Progress) -> Hits:
    """What the newest version has of the targets, in data files that are not `known` by path to have nothing.

    Reads the keys of files whose range leaves it open, and all rejects of shards that may have a target: a few keys
    cost a few files, a long list without shards every key of the table. Memory: the keys of some files.
    """
    by_status = samples.files_by_status()
    near = [
        (file, status)
        for status in (OK, REJECTED)
        for file in by_status[status]
        if file.path not in known and _is_near(file, status, targets)
    ]
    hits = []
    with ThreadPoolExecutor(_READERS) as threads:
        looks = threads.map(lambda each: _look(samples, each[0], each[1], targets), near)
        for done, hit in enumerate(looks, start=1):
            on_progress(STEP, done, len(near))
            hits += hit
    return Hits(tuple(hits), frozenset(file.path for files in by_status.values() for file in files))


def replace(samples: SamplesTable, hits: Hits, targets: Targets, on_progress: Progress) -> int:
    """Write the files of `hits` again without the rows that are to go, and marks; one commit, whose version it returns.

    The other rows stay as they are and where they are. Raises TableError, and changes nothing, if another writer
    replaced one of the files. Memory: one data file.
    """
    written: list[WrittenFile] = []
    try:
        for done, hit in enumerate(hits.files, start=1):
            written += _without(samples, hit, targets)
            on_progress("take rows out", done, len(hits.files))
        old_marks, marks = _marks(samples, hits)
        written += marks
    except Exception:  # nobody will commit these
        samples.discard(written)
        raise
    removed = [*(hit.file for hit in hits.files), *old_marks]
    try:
        return samples.replace(removed, written, {"step": "remove", "rows": str(hits.rows(OK) + hits.rows(REJECTED))})
    except TableError:
        samples.withdraw(written)
        raise


def removed_before(samples: SamplesTable, missing: Sequence[Wanted]) -> Targets:
    """Those that have a mark, by the shard of the mark."""
    files = samples.files(REMOVED)
    asked = Targets.of(missing)
    key_of = {mark_of(key): key for _, key in missing} if files else {}
    marked = [
        (file.shard, key_of[mark])
        for file in files
        for mark in samples.read(file, ["key"])["key"].to_pylist()
        if mark in key_of
    ]
    return Targets.of((shard, key) for shard, key in marked if asked.are_in(shard, [key]).any())


def _is_near(file: SampleFile, status: str, targets: Targets) -> bool:
    if status == REJECTED:  # their details may name other keys than their own
        return any(targets.within(file.shard))
    return targets.may_be_in(file.shard, file.first_key, file.last_key)


def _look(samples: SamplesTable, file: SampleFile, status: str, targets: Targets) -> list[Hit]:
    rows = samples.read(file, ["key"] if status == OK else ["key", "detail"])
    keys = rows["key"].to_pylist()
    going_N = targets.are_in(file.shard, keys)
    details = [] if status == OK else rows["detail"].to_pylist()
    if not going_N.any() and details == [_reticent(detail, file.shard, targets) for detail in details]:
        return []
    return [Hit(file, status, tuple(keys[row] for row in np.flatnonzero(going_N)))]


def _without(samples: SamplesTable, hit: Hit, targets: Targets) -> Iterator[WrittenFile]:
    rows, shard = samples.read(hit.file), hit.file.shard
    kept = rows.filter(pa.array(~targets.are_in(shard, rows["key"].to_pylist())))
    if hit.status == REJECTED:
        details = [_reticent(detail, shard, targets) for detail in kept["detail"].to_pylist()]
        kept = kept.set_column(kept.schema.get_field_index("detail"), "detail", pa.array(details, pa.string()))
    if kept.num_rows:
        yield samples.write(kept, hit.status)


def _reticent(detail: str | None, shard: str, targets: Targets) -> str | None:
    """The detail of a gap that spoiled a member of a sample that is to go, without the member's name."""
    gap = _GAP.fullmatch(detail or "")
    named = None if gap is None else split_name(gap[1])
    return gap[2] if gap and named and targets.are_in(shard, named[:1]).any() else detail


def _marks(samples: SamplesTable, hits: Hits) -> tuple[list[SampleFile], list[WrittenFile]]:
    """One file of marks for each shard: those that it replaces, and those written."""
    marks = defaultdict[str, list[str]](list)
    for hit in hits.files:
        marks[hit.file.shard] += map(mark_of, hit.keys)
    old = [file for file in samples.files(REMOVED) if file.shard in marks]
    for file in old:
        marks[file.shard] = samples.read(file, ["key"])["key"].to_pylist() + marks[file.shard]
    return old, [samples.write(_mark_rows(shard, keys), REMOVED) for shard, keys in marks.items() if keys]


def _mark_rows(shard: str, keys: Sequence[str]) -> pa.Table:
    rows = len(keys)
    return pa.table({"key": keys, "shard": [shard] * rows, "reason": [Reason.removed.value] * rows})
