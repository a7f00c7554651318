"""Whether a generation is what it says: every row where it belongs, sizes, statistics and digests that agree.

Shapes: N rows of one file, K components.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from models.clusterer import NOISE, Clusterer, Stats
from models.errors import ShoalError
from pipeline.cluster.fit import total
from pipeline.cluster.fitted import Labeller, read_labeller
from pipeline.cluster.label import Rows, read_rows
from pipeline.cluster.memory import Memory, nothing, read_memory
from pipeline.cluster.published import published
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.samples import SampleFile

TOLERANCE = 1e-9  # relative, of statistics
MOMENTS = ("count_K", "sum_KD", "second_KDD")  # what depends on the rows of a component alone, not on the model then
_FRESH = ("born", "split")  # events that give a cluster an id which nothing had before


@dataclass(frozen=True)
class Verified:
    """What was found to agree."""

    generation: int
    files: int
    rows: int
    clusters: int
    error: float | None  # largest relative difference of the statistics; None where there is nothing to compare with


def verify(table: Collection, name: str, generation: Generation) -> Verified:
    """Read all that a published generation names, and raise ShoalError at the first thing that does not agree.

    Compared: digests of the artifacts; the samples files of its version with those that have assignments, and their
    rows one by one; clusters of rows with those of their components; sizes, medoids and events of clusters; and, for
    algorithms that count a row in one component, the statistics with those of the rows by stored component, to 1e-9.
    Memory is one data file and twice the statistics; time that of reading all rows.
    """
    clustering = table.clustering(name)
    labeller = read_labeller(table.artifacts, generation.artifact)
    files = table.samples.files(version=generation.samples_version)
    _check_coverage(clustering, generation, files)
    memory = _memory(table, generation, labeller.model)
    check = _Check(table, clustering, generation, labeller, memory)
    for file in files:
        check.file(file)
    check.clusters()
    return Verified(generation.generation, len(files), check.sizes.total(), len(check.sizes), check.statistics())


class _Check:
    """A walk through the files of one generation."""

    def __init__(
        self,
        table: Collection,
        clustering: Clustering,
        generation: Generation,
        labeller: Labeller,
        memory: Memory | None,
    ) -> None:
        self._samples = table.samples
        self._clustering = clustering
        self._generation = generation
        self._labeller = labeller
        self._memory = memory
        self._stats: Stats = nothing(labeller.model)
        self._faded = [] if memory is None else [(self._paths(version), decay) for version, decay in memory.folds]
        self._clusters = clustering.clusters(generation)
        medoids = (self._clusters[column].to_pylist() for column in ("medoid_key", "medoid_shard", "cluster"))
        self._medoids = {(key, shard): cluster for key, shard, cluster in zip(*medoids, strict=True) if key is not None}
        self.sizes: Counter[int] = Counter()
        self.weight = 0.0

    def file(self, file: SampleFile) -> None:
        """The rows of one samples file."""
        rows = read_rows(self._samples, file, self._labeller)
        found = self._clustering.read_assignments(self._generation, file)
        for column in ("key", "shard"):
            if not found[column].equals(rows.names[column]):
                raise self._wrong(f"other {column}s in the assignments of shard {file.shard} than in its samples")
        self.sizes.update(found["cluster"].to_pylist())
        self._check_medoids(found)
        self._count(file, rows, found)

    def clusters(self) -> None:
        """Sizes as published are those of the rows, and every cluster has a medoid among them."""
        published = dict(zip(self._clusters["cluster"].to_pylist(), self._clusters["size"].to_pylist(), strict=True))
        if published != dict(self.sizes):
            wrong = sorted({key for key, _ in published.items() ^ self.sizes.items()})[:3]
            pairs = ", ".join(f"{each}: {published.get(each, 0)} for {self.sizes[each]} rows" for each in wrong)
            raise self._wrong(f"sizes of clusters that are not their rows' ({pairs})")
        if self._medoids:
            raise self._wrong(f"medoids that are no rows of it, first {min(self._medoids)}")
        _check_events(self._clustering, self._generation, set(published) - {NOISE})

    def statistics(self) -> float | None:
        """The largest relative difference, at most TOLERANCE."""
        if self._memory is None:
            return None
        stored = self._memory.stats().tensors()
        counted = float(stored["count_K"].sum()) if "count_K" in stored else self.weight
        if abs(counted - self.weight) > TOLERANCE * max(self.weight, 1.0):
            raise self._wrong(f"statistics of {counted} rows for {self.weight}")
        if not self._labeller.model.hard:
            return None  # what each row was given in is known to the statistics alone
        error = apart(stored, self._stats.tensors())
        if not error <= TOLERANCE:
            raise self._wrong(f"statistics that differ from those of its rows by {error:.3g}, beyond {TOLERANCE:g}")
        return error

    def _count(self, file: SampleFile, rows: Rows, found: pa.Table) -> None:
        """Add the file's rows to the statistics, by stored component, having compared component and cluster."""
        model = self._labeller.model
        component_N = self._index(model, found["component"].to_numpy(), file)
        cluster_N = torch.from_numpy(np.array(found["cluster"].to_numpy()))
        other = (model.id_K[component_N] != cluster_N) & (cluster_N != NOISE)
        if other.any():
            raise self._wrong(f"{int(other.sum())} rows of shard {file.shard} in another cluster than their component")
        weight = float(np.prod([decay for paths, decay in self._faded if file.path in paths]))
        self.weight += weight * len(component_N)
        if model.hard and self._memory is not None:
            weight_N = None if weight == 1.0 else torch.full((len(component_N),), weight, dtype=torch.float64)
            self._stats = self._stats + model.counted(rows.x_ND, component_N, weight_N)

    def _index(self, model: Clusterer, stored_N: np.ndarray, file: SampleFile) -> Tensor:
        """Where the components are in the model."""
        index = {component: k for k, component in enumerate(model.component_K.tolist())}
        unknown = sorted(set(stored_N.tolist()) - set(index))
        if unknown:
            raise self._wrong(f"components {unknown[:3]} of shard {file.shard} that its model does not have")
        return torch.tensor([index[component] for component in stored_N.tolist()], dtype=torch.int64)

    def _check_medoids(self, found: pa.Table) -> None:
        """Strike out the medoids that are rows of this file, in the right cluster."""
        names = zip(*(found[column].to_pylist() for column in ("key", "shard", "cluster")), strict=True)
        for key, shard, cluster in names:
            if (key, shard) in self._medoids and self._medoids.pop((key, shard)) != cluster:
                raise self._wrong(f"the medoid {key} of shard {shard} in cluster {cluster}, which is not its own")

    def _paths(self, version: int) -> set[str]:
        return {file.path for file in self._samples.files(version=version)}

    def _wrong(self, what: str) -> ShoalError:
        return _wrong(self._clustering, self._generation, what)


def apart(stored: Mapping[str, Tensor], counted: Mapping[str, Tensor], names: Iterable[str] = MOMENTS) -> float:
    """The largest difference of these statistics, relative to the largest value of the same component.

    Components much smaller than the largest one are compared with a millionth of that. Raises ShoalError where there
    are no moments to compare.
    """
    if not set(MOMENTS) & set(counted):
        raise ShoalError(f"Statistics hold {sorted(counted)} but none of {', '.join(MOMENTS)}; nothing is compared.")
    return max(_relative(stored[name], counted[name]) for name in names if name in counted)


def _relative(stored: Tensor, counted: Tensor) -> float:
    if stored.shape != counted.shape:
        return math.inf
    if not counted.numel():
        return 0.0
    rows = len(counted) if counted.ndim else 1
    size_K = counted.abs().reshape(rows, -1).amax(dim=1)
    size_K = size_K.clamp_min(max(1e-6 * float(size_K.max()), 1e-300))
    error_K = (stored - counted).abs().reshape(rows, -1).amax(dim=1)
    error = float((error_K / size_K).max())
    return error if math.isfinite(error) else math.inf  # NaN is larger than nothing


def _memory(table: Collection, generation: Generation, model: Clusterer) -> Memory | None:
    """The statistics of a generation, with every byte that they build on compared with its digest."""
    digest = generation.statistics
    while digest is not None:
        digest = table.artifacts.read(digest).manifest["base"]
    return None if generation.statistics is None else read_memory(table.artifacts, generation.statistics, model)


def _check_coverage(clustering: Clustering, generation: Generation, files: Sequence[SampleFile]) -> None:
    """That assignments are there for as many rows as samples; that they are the same is seen file by file."""
    assigned, rows = clustering.counts(generation)["assignments"], sum(file.rows for file in files)
    if assigned != rows:
        raise _wrong(clustering, generation, f"assignments of {assigned} rows for {rows} samples")


def _check_events(clustering: Clustering, generation: Generation, living: set[int]) -> None:
    """Every cluster of the parent lives on or has died; what is new says so and has an id that was never given."""
    rows = clustering.events(generation).to_pylist()
    died = {row["cluster"] for row in rows if row["event"] == "died"}
    fresh = {row["cluster"] for row in rows if row["event"] in _FRESH and row["cluster"] not in (row["parents"] or ())}
    if died & living:
        raise _wrong(clustering, generation, f"clusters {sorted(died & living)[:3]} that died and have rows")
    lineage = clustering.lineage().select(["generation", "cluster"]).to_pylist()
    again = fresh & {row["cluster"] for row in lineage if row["generation"] < generation.generation}
    if again:
        raise _wrong(clustering, generation, f"new clusters {sorted(again)[:3]} with ids that others had before")
    before = {each.generation: each for each in clustering.generations()}.get(generation.parent or 0)
    if before is None:
        return
    old = set(clustering.clusters(before)["cluster"].to_pylist()) - {NOISE}
    if old - living != died or living - old != fresh:
        raise _wrong(
            clustering,
            generation,
            f"clusters {sorted((old - living) ^ died)[:3]} gone or {sorted((living - old) ^ fresh)[:3]} new "
            "without an event, or an event without that",
        )


def _wrong(clustering: Clustering, generation: Generation, what: str) -> ShoalError:
    return ShoalError(
        f"Generation {generation.generation} of clustering {clustering.name} is damaged: it has {what}; "
        "go back to an earlier one by `shoal rollback`, or fit again."
    )


def against_one_pass(table: Collection, name: str) -> float:
    """The largest relative difference of the latest statistics from one pass of the model over all rows.

    They are equal, up to rounding, where the model was held fixed since they were made by a full fit.
    """
    found = published(table, name)
    stored = read_memory(table.artifacts, found.generation.statistics or "", found.labeller.model).stats()
    rows = found.rows()
    whole = total(found.labeller.model, rows.x_ND, rows.row_N, found.labeller.config.fit.block_rows)
    known = [name for name, value in stored.tensors().items() if not value.isnan().any()]  # not all can be subtracted
    return apart(stored.tensors(), whole.tensors(), {*MOMENTS, *known})
