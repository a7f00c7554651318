"""What changed in a table since a generation: rows that arrived, rows that went, rows that are in another file now.

A takedown or a compaction writes files anew; rows whose key and embedding are those of a row before keep their labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.samples import SampleFile, embedding_matrix

_NAMES = ["key", "shard", "embedding"]


@dataclass(frozen=True)
class Delta:
    """Files of a table version that the generation does not know, and those of its own that are no longer there."""

    table: Collection
    clustering: Clustering
    before: Generation
    version: int
    files: Sequence[SampleFile]  # all that there are now
    added: Sequence[SampleFile]
    removed: Sequence[SampleFile]

    @staticmethod
    def since(table: Collection, clustering: Clustering, before: Generation) -> Delta:
        """From the logs alone."""
        samples = table.samples
        version = samples.version
        files = samples.files(version=version)
        was = {file.path: file for file in samples.files(version=before.samples_version)}
        now = {file.path for file in files}
        added = [file for file in files if file.path not in was]
        return Delta(table, clustering, before, version, files, added, [was[path] for path in was if path not in now])

    @property
    def is_empty(self) -> bool:
        """Whether nothing changed."""
        return not self.added and not self.removed

    @property
    def same(self) -> list[SampleFile]:
        """Files that both know."""
        added = {file.path for file in self.added}
        return [file for file in self.files if file.path not in added]

    @cached_property
    def rewritten(self) -> frozenset[str]:
        """Shards with files both added and removed: their rows may be the same ones."""
        return frozenset({file.shard for file in self.added} & {file.shard for file in self.removed})

    def labels(self, shard: str) -> dict[tuple[str, bytes], dict[str, object]]:
        """What each row of a rewritten shard's removed files was labelled, by key and embedding."""
        found: dict[tuple[str, bytes], dict[str, object]] = {}
        for file in self.removed:
            if file.shard == shard:
                for name, label in zip(self._named(file), self._labels(file), strict=True):
                    found[name] = label
        return found

    def carried(self, file: SampleFile) -> list[dict[str, object] | None]:
        """For each row of an added file its label before, None for a row that arrived."""
        if file.shard not in self.rewritten:
            return [None] * file.rows
        known = self._known(file.shard)
        return [known.get(name) for name in self._named(file)]

    def gone(self, file: SampleFile) -> np.ndarray:
        """Mask of the rows of a removed file that are nowhere now."""
        if file.shard not in self.rewritten:
            return np.ones(file.rows, bool)
        there = self._there(file.shard)
        return np.array([name not in there for name in self._named(file)], bool)

    def _known(self, shard: str) -> dict[tuple[str, bytes], dict[str, object]]:
        if shard not in self._labels_of:
            self._labels_of[shard] = self.labels(shard)
        return self._labels_of[shard]

    def _there(self, shard: str) -> set[tuple[str, bytes]]:
        if shard not in self._rows_of:
            self._rows_of[shard] = {name for file in self.added if file.shard == shard for name in self._named(file)}
        return self._rows_of[shard]

    @cached_property
    def _labels_of(self) -> dict[str, dict[tuple[str, bytes], dict[str, object]]]:
        return {}

    @cached_property
    def _rows_of(self) -> dict[str, set[tuple[str, bytes]]]:
        return {}

    def _named(self, file: SampleFile) -> Iterator[tuple[str, bytes]]:
        rows = self.table.samples.read(file, columns=_NAMES)
        x_ND = embedding_matrix(rows)
        for index, key in enumerate(rows["key"].to_pylist()):
            yield key, x_ND[index].tobytes()

    def _labels(self, file: SampleFile) -> list[dict[str, object]]:
        found: list[dict[str, object]] = self.clustering.read_assignments(self.before, file).to_pylist()
        return found
