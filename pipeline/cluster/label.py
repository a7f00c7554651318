"""One pass that labels files: assignments per samples file, sizes and medoids, and what the rows leave behind.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from models.clusterer import NOISE, Assignment, Clusterer, Stats
from models.drift import Arrivals
from models.identity import Overlap, overlap, summed
from pipeline.cluster.before import Before
from pipeline.cluster.fitted import Fitted
from pipeline.cluster.memory import Memory, Part, Sample, nothing
from pipeline.cluster.rows import as_tensor, row_hashes
from pipeline.cluster.tally import Tally
from pipeline.progress import Progress
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SampleFile, SamplesTable, embedding_matrix
from pipeline.tables.schema import ASSIGNMENTS


@dataclass(frozen=True)
class Labelled:
    """Files of assignments, unseen until published, and what their rows leave behind."""

    files: list[tuple[SampleFile, WrittenFile]]
    tally: Tally
    part: Part
    overlap: Overlap  # with an earlier generation


@dataclass(frozen=True)
class Rows:
    """One samples file: who its rows are, and the embeddings as the model sees them."""

    names: pa.Table  # key, shard
    x_ND: Tensor
    row_N: Tensor


@dataclass
class Gathered:
    """What rows leave behind, as they are labelled."""

    model: Clusterer
    memory: Memory | None  # arrivals are compared with what is remembered; None for a fit of its own
    stats: Stats = field(init=False)
    sample: Sample = field(init=False)
    arrivals: Arrivals = field(init=False)
    rows: int = 0

    def __post_init__(self) -> None:
        self.stats, self.sample = nothing(self.model), Sample.none(self.model.dim)
        self.arrivals = Arrivals.none()

    def add(self, rows: Rows, found: Assignment) -> None:
        """Count rows under the components that they were given."""
        self.stats += stats_of(self.model, rows, found.component_N)
        offered = rows.row_N
        if self.memory is not None:
            self.arrivals = self.arrivals + Arrivals.of(self.memory.reference, found.cluster_N, found.score_N)
            if self.memory.below is not None:
                offered = offered[offered <= self.memory.below]
        kept = torch.isin(rows.row_N, offered)
        self.sample = self.sample + Sample(rows.x_ND[kept], rows.row_N[kept])
        self.rows += len(rows.row_N)

    def count(self, rows: Rows, component_N: Tensor) -> None:
        """Count rows that were there before under the components that they have: no arrivals, nothing for the sample
        unless all rows are counted anew.
        """
        self.stats += stats_of(self.model, rows, component_N)
        if self.memory is None:
            self.sample = self.sample + Sample(rows.x_ND, rows.row_N)
            self.rows += len(rows.row_N)

    @property
    def part(self) -> Part:
        """So far."""
        return Part(self.stats, self.sample, self.arrivals, self.rows)


@dataclass(frozen=True)
class Against:
    """What labels are compared with: how well rows fit with what is remembered, and with those of a generation."""

    memory: Memory | None = None
    generation: Generation | None = None
    named: bool = False  # ids are the generation's own, so that files which say the same need not be written


NOTHING = Against()


def label_files(
    samples: SamplesTable,
    files: Sequence[SampleFile],
    clustering: Clustering,
    fitted: Fitted,
    on_progress: Progress,
    against: Against = NOTHING,
) -> Labelled:
    """Write assignments of `files`, unseen until published. Memory is one data file, and statistics.

    Compared with a generation, `files` are all of a version: samples that are in other files now are found by key.
    """
    written: list[tuple[SampleFile, WrittenFile]] = []
    tally, gathered = Tally(), Gathered(fitted.model, against.memory)
    shared = summed([])
    before = None if against.generation is None else Before(samples, clustering, against.generation, files)
    for done, file in enumerate(files):
        rows = read_rows(samples, file, fitted)
        found = fitted.assign(rows.x_ND)
        assignments = assignment_table(rows.names, found, fitted.model)
        tally.add(assignments)
        gathered.add(rows, found)
        same = False
        if before is not None:
            old = before.labels(file, rows.names)
            shared = summed([shared, overlap(old["cluster"].to_numpy(), found.cluster_N.numpy())])
            same = against.named and before.knows(file) and old.equals(assignments.select(old.column_names))
        if not same:
            written.append((file, clustering.write_assignments(assignments, file)))
        on_progress("assign", done + 1, len(files))
    return Labelled(written, tally, gathered.part, shared)


def read_rows(samples: SamplesTable, file: SampleFile, fitted: Fitted) -> Rows:
    """One samples file through the reduction."""
    table = samples.read(file, columns=["key", "shard", "embedding"])
    x_ND = fitted.reduction.reducer.transform(as_tensor(embedding_matrix(table)))
    return Rows(table.select(["key", "shard"]), x_ND, torch.from_numpy(np.array(row_hashes(table))))


def stats_of(model: Clusterer, rows: Rows, component_N: Tensor, weight_N: Tensor | None = None) -> Stats:
    """Statistics of rows: in these components, or, where the algorithm shares rows among components, in all."""
    if model.hard:
        return model.counted(rows.x_ND, component_N, weight_N)
    return model.expect(rows.x_ND, rows.row_N)


def assignment_table(names: pa.Table, found: Assignment, model: Clusterer) -> pa.Table:
    """Rows of ASSIGNMENTS in the order of `names`; components go by their stable ids, and no runner-up is null."""
    runner_up_N = found.runner_up_N.numpy()
    columns = {
        "key": names["key"],
        "shard": names["shard"],
        "cluster": found.cluster_N.numpy(),
        "component": model.component_K[found.component_N].numpy(),
        "probability": found.probability_N.numpy(),
        "runner_up": pa.array(runner_up_N, pa.int64(), mask=runner_up_N == NOISE),
        "score": found.score_N.numpy(),
    }
    return pa.table({name: columns[name] for name in ASSIGNMENTS.names}, schema=ASSIGNMENTS)


def renamed_files(
    clustering: Clustering, pairs: Sequence[tuple[SampleFile, WrittenFile]], before: Clusterer, after: Clusterer
) -> list[WrittenFile]:
    """The same files with the ids of `after` in place of those of `before`, as unseen as these, which are gone."""
    clusters, components = (before.id_K, after.id_K), (before.component_K, after.component_K)
    written = []
    for samples_file, file in pairs:
        table = clustering.read_written(file)
        for column, names in (("cluster", clusters), ("runner_up", clusters), ("component", components)):
            old, new = (pa.array(ids.numpy()) for ids in names)
            renamed = new.take(pc.index_in(table[column].combine_chunks(), value_set=old))  # null for null
            table = table.set_column(table.column_names.index(column), column, renamed)
        written.append(clustering.write_assignments(table, samples_file))
    clustering.discard_assignments([file for _, file in pairs])
    return written
