"""What changed in a table since a generation: rows that arrived, rows that went, rows that are in another file now.

A takedown or a compaction writes files anew; rows whose key and embedding are those of a row before keep their labels.
Shapes: N rows of one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.clusterer import NOISE
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.samples import SampleFile, embedding_matrix
from pipeline.tables.schema import ASSIGNMENTS

_LABELS = [name for name in ASSIGNMENTS.names if name not in ("key", "shard")]
_DIGEST_BYTES = 16  # two of 10^12 rows share a name with probability 10^-15


@dataclass(frozen=True)
class _Matched:
    """Where the rows of one rewritten shard were, and which are gone; by the path of the samples file."""

    index: dict[str, np.ndarray]  # of added files: int64 (N,), row of the shard's labels before; -1 for none
    gone: dict[str, np.ndarray]  # of removed files: bool (N,)


@dataclass(frozen=True)
class Delta:
    """Files of a table version that the generation does not know, and those of its own that are no longer there.

    Rows of rewritten shards are matched once, a shard at a time: that reads their keys and embeddings, holds one file
    and 16 bytes a row of the shard, and leaves 8 bytes a row. TableError where a removed file is not on disk.
    """

    table: Collection
    clustering: Clustering
    before: Generation
    version: int
    files: Sequence[SampleFile]  # all that there are now
    added: Sequence[SampleFile]
    removed: Sequence[SampleFile]
    blind: bool = False  # the removed files are not on disk any more: all their rows went, and all of the added came

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
        if self.blind:
            return frozenset()
        return frozenset({file.shard for file in self.added} & {file.shard for file in self.removed})

    def fresh(self, file: SampleFile) -> np.ndarray:
        """Mask of the rows of an added file that arrived: no removed file has their key and embedding."""
        fresh_N: np.ndarray = self._index(file) < 0
        return fresh_N

    def gone(self, file: SampleFile) -> np.ndarray:
        """Mask of the rows of a removed file that are nowhere now."""
        return self._match(file.shard).gone[file.path] if file.shard in self.rewritten else np.ones(file.rows, bool)

    def earlier(self, file: SampleFile, column: str = "cluster") -> np.ndarray:
        """What the rows of an added file had in an int64 column of the generation's labels; NOISE for fresh ones."""
        index_N = self._index(file)
        found_N = np.full(file.rows, NOISE, np.int64)
        known_N = index_N >= 0
        if known_N.any():
            found_N[known_N] = self._labels(file.shard)[column].to_numpy()[index_N[known_N]]
        return found_N

    def overlaid(self, file: SampleFile, table: pa.Table) -> pa.Table:
        """Assignments of an added file with the labels of rows that are not fresh as they were."""
        index_N = self._index(file)
        known_N = index_N >= 0
        if not known_N.any():
            return table
        old = self._labels(file.shard).take(pa.array(index_N, mask=~known_N))
        known = pa.array(known_N)
        columns = {
            name: pc.if_else(known, old[name], table[name]) if name in _LABELS else table[name]
            for name in table.column_names
        }
        return pa.table(columns, schema=table.schema)

    def _index(self, file: SampleFile) -> np.ndarray:
        if file.shard not in self.rewritten:
            return np.full(file.rows, -1, np.int64)
        return self._match(file.shard).index[file.path]

    def _match(self, shard: str) -> _Matched:
        if shard not in self._matched:
            removed, added = (
                {file.path: self._named(file) for file in files.get(shard, [])} for files in self._by_shard
            )
            was, now = (pa.chunked_array(list(names.values())).combine_chunks() for names in (removed, added))
            index = {path: pc.fill_null(pc.index_in(names, was), -1) for path, names in added.items()}
            self._matched[shard] = _Matched(
                {path: row_N.to_numpy(zero_copy_only=False).astype(np.int64) for path, row_N in index.items()},
                {path: ~pc.is_in(names, now).to_numpy(zero_copy_only=False) for path, names in removed.items()},
            )
        return self._matched[shard]

    @cached_property
    def _matched(self) -> dict[str, _Matched]:
        return {}

    @cached_property
    def _by_shard(self) -> tuple[dict[str, list[SampleFile]], dict[str, list[SampleFile]]]:
        """The removed files and the added ones."""
        found: tuple[dict[str, list[SampleFile]], dict[str, list[SampleFile]]] = ({}, {})
        for files, by_shard in zip((self.removed, self.added), found, strict=True):
            for file in files:
                by_shard.setdefault(file.shard, []).append(file)
        return found

    def _labels(self, shard: str) -> pa.Table:
        """Labels before of the rows of a shard's removed files. The last shard's are kept: files come by shard."""
        if shard not in self._read:
            self._read.clear()
            files = self._by_shard[0][shard]
            parts = [self.clustering.read_assignments(self.before, file, _LABELS) for file in files]
            self._read[shard] = pa.concat_tables(parts).combine_chunks()
        return self._read[shard]

    @cached_property
    def _read(self) -> dict[str, pa.Table]:
        return {}

    def _named(self, file: SampleFile) -> pa.Array:
        """A digest of the embedding and the key of each row, fixed-size binary (N,)."""
        rows = self.table.samples.read(file, columns=["key", "embedding"])
        names = []
        for x_D, key in zip(embedding_matrix(rows), rows["key"].cast(pa.binary()).to_pylist(), strict=True):
            name = blake2b(x_D, digest_size=_DIGEST_BYTES)
            name.update(key)  # embeddings are equally long, so this is where it begins
            names.append(name.digest())
        return pa.array(names, pa.binary(_DIGEST_BYTES))
