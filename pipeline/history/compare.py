"""Two generations row by row, one file after the other; files of assignments that both have are not opened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.progress import Progress
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.samples import SampleFile, SamplesTable

MOVED = pa.schema([("shard", pa.string()), ("key", pa.string()), ("before", pa.int64()), ("after", pa.int64())])
_NAMED = pa.schema([("shard", pa.string()), ("key", pa.string()), ("cluster", pa.int64())])
_READERS = 8  # files at a time: an object store answers in tens of milliseconds


@dataclass
class Part:
    """What became of the rows of some files, by cluster."""

    stayed: Counter[int] = field(default_factory=Counter)
    moved: Counter[tuple[int, int]] = field(default_factory=Counter)
    arrived: Counter[int] = field(default_factory=Counter)
    gone: Counter[int] = field(default_factory=Counter)
    rows: pa.Table = field(default_factory=MOVED.empty_table)  # which moved, where that is wanted

    def add(self, other: Part) -> None:
        """Add the counts."""
        self.stayed.update(other.stayed)
        self.moved.update(other.moved)
        self.arrived.update(other.arrived)
        self.gone.update(other.gone)


@dataclass(frozen=True)
class _Unit:
    """Samples files to be compared: the same one in both generations, or those of a shard that are in one only."""

    before: list[SampleFile]
    after: list[SampleFile]


@dataclass(frozen=True)
class Work:
    """A comparison: what is known from the logs, and the parts, read as they are asked for."""

    rows: tuple[int, int]
    rows_shared: int
    files_read: int  # of assignments, in both generations together
    files_shared: int
    parts: Iterator[Part]


def compared(
    samples: SamplesTable,
    clustering: Clustering,
    pair: tuple[Generation, Generation],
    wants_rows: Callable[[], bool],
    on_progress: Progress,
) -> Work:
    """Compare generation `pair[0]` with `pair[1]`; rows that moved are named while `wants_rows` says so.

    The same samples file has the same rows in the same order in both. Rows of a shard whose files were written anew
    are matched by key.
    """
    files = [samples.files(version=generation.samples_version) for generation in pair]
    there = set(files[0]) & set(files[1])
    both = [file for file in files[1] if file in there]
    paths = [[clustering.assignment_file(generation, file).path for file in both] for generation in pair]
    shared = [file for file, old, new in zip(both, *paths, strict=True) if old == new]
    units = [_Unit([file], [file]) for file, old, new in zip(both, *paths, strict=True) if old != new]
    units += _by_shard(*([file for file in side if file not in there] for side in files))
    reader = _Reader(clustering, pair, wants_rows)
    return Work(
        rows=(sum(file.rows for file in files[0]), sum(file.rows for file in files[1])),
        rows_shared=sum(file.rows for file in shared),
        files_read=sum(len(unit.before) + len(unit.after) for unit in units),
        files_shared=len(shared),
        parts=_parts(reader, units, on_progress),
    )


def _by_shard(before: Sequence[SampleFile], after: Sequence[SampleFile]) -> list[_Unit]:
    units: dict[str, _Unit] = defaultdict(lambda: _Unit([], []))
    for file in before:
        units[file.shard].before.append(file)
    for file in after:
        units[file.shard].after.append(file)
    return [units[shard] for shard in sorted(units)]


def _parts(reader: _Reader, units: Sequence[_Unit], on_progress: Progress) -> Iterator[Part]:
    with ThreadPoolExecutor(_READERS) as threads:
        for begin in range(0, len(units), _READERS):
            yield from threads.map(reader.part, units[begin : begin + _READERS])
            on_progress("compare", min(begin + _READERS, len(units)), len(units))


@dataclass(frozen=True)
class _Reader:
    clustering: Clustering
    pair: tuple[Generation, Generation]
    wants_rows: Callable[[], bool]

    def part(self, unit: _Unit) -> Part:
        """Read the clusters of all rows, and the names of those that moved."""
        return self._same_rows(unit.before[0]) if unit.before == unit.after else self._same_keys(unit)

    def _same_rows(self, file: SampleFile) -> Part:
        before_N, after_N = (
            self.clustering.read_assignments(generation, file, ["cluster"])["cluster"].to_numpy()
            for generation in self.pair
        )
        moved_N = before_N != after_N
        part = Part(stayed=_counted(before_N[~moved_N]), moved=_flows(before_N[moved_N], after_N[moved_N]))
        if moved_N.any() and self.wants_rows():
            names = self.clustering.read_assignments(self.pair[1], file, ["shard", "key"])
            part.rows = _named(names, before_N, after_N, moved_N)
        return part

    def _same_keys(self, unit: _Unit) -> Part:
        before, after = self._read(self.pair[0], unit.before), self._read(self.pair[1], unit.after)
        place = pc.index_in(after["key"], value_set=before["key"].combine_chunks())  # of each row, where it was
        is_new = place.is_null().to_numpy()
        place_N = pc.fill_null(place, 0).to_numpy()[~is_new]
        all_before_N, all_after_N = before["cluster"].to_numpy(), after["cluster"].to_numpy()
        before_N, after_N = all_before_N[place_N], all_after_N[~is_new]
        moved_N = before_N != after_N
        return Part(
            stayed=_counted(before_N[~moved_N]),
            moved=_flows(before_N[moved_N], after_N[moved_N]),
            arrived=_counted(all_after_N[is_new]),
            gone=_counted(np.delete(all_before_N, place_N)),
            rows=_named(after.filter(~is_new), before_N, after_N, moved_N),
        )

    def _read(self, generation: Generation, files: Sequence[SampleFile]) -> pa.Table:
        parts = (self.clustering.read_assignments(generation, file, _NAMED.names) for file in files)
        return pa.concat_tables([_NAMED.empty_table(), *(part.cast(_NAMED) for part in parts)])


def _counted(cluster_N: np.ndarray) -> Counter[int]:
    ids, counts = np.unique(cluster_N, return_counts=True)
    return Counter(dict(zip(ids.tolist(), counts.tolist(), strict=True)))


def _flows(before_N: np.ndarray, after_N: np.ndarray) -> Counter[tuple[int, int]]:
    ends, counts = np.unique(np.stack([before_N, after_N]), axis=1, return_counts=True)
    return Counter(dict(zip(zip(*ends.tolist(), strict=True), counts.tolist(), strict=True)))


def _named(names: pa.Table, before_N: np.ndarray, after_N: np.ndarray, moved_N: np.ndarray) -> pa.Table:
    chosen = names.select(["shard", "key"]).filter(moved_N)
    columns = [chosen["shard"], chosen["key"], pa.array(before_N[moved_N]), pa.array(after_N[moved_N])]
    return pa.table(columns, names=MOVED.names).cast(MOVED)
