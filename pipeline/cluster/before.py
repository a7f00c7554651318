"""What an earlier generation said of the samples in a file, also where their shard is in other files now.

Shapes: N rows of one file.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.clusterer import NOISE
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.samples import SampleFile, SamplesTable

_LABELS = ["cluster", "component"]


class Before:
    """Labels of a generation for files of a later version of its table.

    Samples of shards that were written anew go by their key alone: one that was extracted again, to an embedding that
    differs in its last bit or in more, still says which cluster is which. No samples file is read, so those that a
    compaction left out of the table may be gone from the disk. Memory is the keys and labels of one shard.
    """

    def __init__(
        self, samples: SamplesTable, clustering: Clustering, generation: Generation, files: Iterable[SampleFile]
    ) -> None:
        self._clustering = clustering
        self._generation = generation
        self._known = set(samples.files(version=generation.samples_version))
        self._left: dict[str, list[SampleFile]] = {}  # by shard, what is not among the files now
        for file in sorted(self._known - set(files), key=lambda file: file.order):
            self._left.setdefault(file.shard, []).append(file)
        self._shard: tuple[str, pa.Table] | None = None  # the last one that was read

    def knows(self, file: SampleFile) -> bool:
        """Whether the generation covers this very file."""
        return file in self._known

    def labels(self, file: SampleFile, names: pa.Table) -> pa.Table:
        """Columns `cluster` and `component` of the samples that `names` has the keys of; NOISE for new samples."""
        if self.knows(file):
            return self._clustering.read_assignments(self._generation, file, _LABELS)
        if file.shard not in self._left:
            none = pa.array(np.full(len(names), NOISE, np.int64))
            return pa.table(dict.fromkeys(_LABELS, none))
        old = self._of_shard(file.shard)
        row_N = pc.index_in(names["key"].combine_chunks(), value_set=old["key"].combine_chunks())
        return pa.table({name: pc.fill_null(old[name].take(row_N), NOISE) for name in _LABELS})

    def _of_shard(self, shard: str) -> pa.Table:
        if self._shard is None or self._shard[0] != shard:
            columns = ["key", *_LABELS]
            parts = [self._clustering.read_assignments(self._generation, file, columns) for file in self._left[shard]]
            self._shard = (shard, pa.concat_tables(parts))
        return self._shard[1]
