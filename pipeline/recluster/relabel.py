"""Labels after a refinement, everywhere: files in which a row changed are written anew, and sizes and medoids follow.

A row that was not read changes by rule only: its component has an heir, or belongs to another cluster now. So of files
without such rows nothing but one column of numbers is read. Shapes: N rows of a file, n of them read.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from models.clusterer import NOISE, Assignment, Clusterer, Move, Stats
from models.identity import Overlap, overlap, summed
from pipeline.cluster.label import assignment_table
from pipeline.cluster.tally import TALLIED, Tally
from pipeline.recluster.rows import index_of
from pipeline.recluster.work import Arrived, Work
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SampleFile
from pipeline.tables.schema import ASSIGNMENTS


@dataclass
class Refined:
    """The model after a refinement, and everything that follows from it."""

    model: Clusterer
    stats: Stats  # of all rows
    moves: tuple[Move, ...]
    files: list[WrittenFile] = field(default_factory=list)  # of assignments that changed, and of the arrivals
    kept: int = 0  # files of assignments that did not
    tally: Tally = field(default_factory=Tally)
    shared: list[Overlap] = field(default_factory=list)

    @property
    def overlap(self) -> Overlap:
        """Rows by cluster before and now."""
        return summed(self.shared)


@dataclass(frozen=True)
class Anew:
    """Rows of one file that were read, and what the new model says of them."""

    row_n: np.ndarray
    found: Assignment


@dataclass(frozen=True)
class Names:
    """What becomes of the label of a row that was not read."""

    before: Tensor  # stable component ids, ascending
    was: Tensor  # the cluster that each belonged to
    component: Tensor  # stable id of each one's heir, or itself
    cluster: Tensor  # the cluster that this belongs to now

    @staticmethod
    def of(old: Clusterer, new: Clusterer, heir: dict[int, int]) -> Names:
        """From two models and the heirs of components that are gone."""
        before, order = old.component_K.sort()
        component = torch.tensor([heir.get(each, each) for each in before.tolist()], dtype=torch.int64)
        index = index_of(new.component_K, component.numpy())
        return Names(before, old.id_K[order], component, torch.where(index == NOISE, NOISE, new.id_K[index]))

    def clusters(self, stored_N: np.ndarray) -> np.ndarray:
        """Cluster, before, of rows that were in these components."""
        found_N: np.ndarray = self.was[index_of(self.before, stored_N)].numpy()
        return found_N

    def after(self, stored_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Component and cluster of rows that were in these components."""
        place_N = index_of(self.before, stored_N)
        return self.component[place_N].numpy(), self.cluster[place_N].numpy()


@dataclass
class _Relabelling:
    """A pass over the labels of all files."""

    work: Work
    refined: Refined
    names: Names
    read: dict[str, Anew]
    tally: Tally  # sizes so far, and medoids: those before until they are found to have left
    sources: list[tuple[SampleFile, WrittenFile | None]] = field(default_factory=list)  # where the labels are now
    left: set[int] = field(default_factory=set)  # clusters whose medoid went elsewhere

    def file(self, file: SampleFile, written: WrittenFile | None) -> None:
        """One file: of the generation before, or `written` for rows that arrived."""
        stored_N = self.work.components(file) if written is None else self._components(written)
        was_N, anew = self.names.clusters(stored_N), self.read.get(file.path)
        component_N, cluster_N = (np.array(each) for each in self.names.after(stored_N))
        if anew is not None:
            component_N[anew.row_n] = self.refined.model.component_K[anew.found.component_N].numpy()
            cluster_N[anew.row_n] = anew.found.cluster_N.numpy()
        before_N = was_N if written is None else self.work.delta.earlier(file)
        self.refined.shared = [summed([*self.refined.shared, overlap(before_N, cluster_N)])]
        self._count(cluster_N)
        changed_N = (was_N != cluster_N) | (stored_N != component_N)
        if not changed_N.any() and (written is None or anew is None):
            self._keep(file, written)
        else:
            self._write(file, written, (component_N, cluster_N), changed_N)

    def end(self) -> Tally:
        """Sizes and medoids of all rows. Labels are read again where a cluster has lost its medoid."""
        medoids = {cluster: medoid for cluster, medoid in self.tally.medoids.items() if cluster in self.tally.sizes}
        wanted = {cluster for cluster in self.tally.sizes if cluster in self.left or cluster not in medoids}
        if wanted:
            whole = Tally()
            for file, written in self.sources:
                labels = self._labels(file, written, TALLIED)
                whole.add(labels.filter(pc.is_in(labels["cluster"], value_set=pa.array(sorted(wanted), pa.int64()))))
            medoids |= whole.medoids
        return Tally(self.tally.sizes, medoids)

    def _components(self, written: WrittenFile) -> np.ndarray:
        found_N: np.ndarray = self.work.clustering.read_written(written, ["component"])["component"].to_numpy()
        return found_N

    def _labels(self, file: SampleFile, written: WrittenFile | None, columns: list[str] | None) -> pa.Table:
        if written is None:
            return self.work.clustering.read_assignments(self.work.before, file, columns)
        return self.work.clustering.read_written(written, columns)

    def _count(self, cluster_N: np.ndarray) -> None:
        for cluster, rows in zip(*(each.tolist() for each in np.unique(cluster_N, return_counts=True)), strict=True):
            self.tally.sizes[cluster] = self.tally.sizes.get(cluster, 0) + rows

    def _keep(self, file: SampleFile, written: WrittenFile | None) -> None:
        self.sources.append((file, written))
        if written is None:
            self.refined.kept += 1
        else:
            self.refined.files.append(written)

    def _write(
        self,
        file: SampleFile,
        written: WrittenFile | None,
        labels: tuple[np.ndarray, np.ndarray],
        changed_N: np.ndarray,
    ) -> None:
        old = self._labels(file, written, None)
        new = _renewed(old, self.refined.model, labels, self.read.get(file.path))
        self._follow(file, new, changed_N)
        stored = self.work.clustering.write_assignments(new, file)
        if written is not None:
            self.work.clustering.discard_assignments([written])
        self.refined.files.append(stored)
        self.sources.append((file, stored))

    def _follow(self, file: SampleFile, new: pa.Table, changed_N: np.ndarray) -> None:
        """Medoids that are rows of this file and changed their cluster, and rows that may be medoids now."""
        cluster_N = new["cluster"].to_numpy()
        for cluster, (_, key, shard) in self.tally.medoids.items():
            row = pc.index(new["key"], key).as_py() if shard == file.shard else -1
            if row >= 0 and cluster_N[row] != cluster:
                self.left.add(cluster)
        anew = self.read.get(file.path)
        if anew is not None:
            changed_N[anew.row_n] = True
        moved = Tally()
        moved.add(new.select(TALLIED).filter(pa.array(changed_N)))
        for cluster, medoid in moved.medoids.items():
            self.tally.propose(cluster, medoid)


def relabel(work: Work, arrived: Arrived, refined: Refined, names: Names, read: dict[str, Anew]) -> None:
    """Bring the labels of all files, sizes, medoids and overlaps of `refined` up to its model."""
    passing = _Relabelling(work, refined, names, read, Tally({}, dict(arrived.tally.medoids)))
    files = [(file, None) for file in work.delta.same] + list(arrived.written)
    for done, (file, written) in enumerate(files):
        passing.file(file, written)
        work.on_progress("relabel", done + 1, len(files))
    refined.tally = passing.end()


def _renewed(old: pa.Table, model: Clusterer, labels: tuple[np.ndarray, np.ndarray], anew: Anew | None) -> pa.Table:
    columns = {name: old[name] for name in ASSIGNMENTS.names}
    if anew is not None:
        found = assignment_table(old.select(["key", "shard"]).take(pa.array(anew.row_n)), anew.found, model)
        for name in ("probability", "runner_up", "score"):
            columns[name] = _replaced(old[name], anew.row_n, found[name])
    columns |= {"component": pa.array(labels[0]), "cluster": pa.array(labels[1])}
    return pa.table(columns, schema=ASSIGNMENTS)


def _replaced(old: pa.ChunkedArray, row_n: np.ndarray, new: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column with the values at these rows replaced."""
    take_N = np.arange(len(old))
    take_N[row_n] = len(old) + np.arange(len(row_n))
    return pa.chunked_array([*old.chunks, *new.chunks], old.type).take(pa.array(take_N))
