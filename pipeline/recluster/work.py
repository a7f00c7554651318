"""What one reclustering is about, and what its parts tell each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from models.drift import Drift
from pipeline.cluster.fitted import Labeller
from pipeline.cluster.label import Rows, read_rows
from pipeline.cluster.memory import Memory, Part
from pipeline.cluster.tally import Tally
from pipeline.progress import Progress
from pipeline.recluster.config import Mode, ReclusterConfig
from pipeline.recluster.delta import Delta
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SampleFile

_KEPT_BYTES = 256 * 2**20  # of arrivals, and of labels, so that a refinement need not read them again


@dataclass
class Reading:
    """What was read so far."""

    files: int = 0
    rows: int = 0
    bytes: int = 0

    def add(self, file: SampleFile) -> None:
        """A samples file was opened."""
        self.files, self.rows, self.bytes = self.files + 1, self.rows + file.rows, self.bytes + file.bytes


@dataclass(frozen=True)
class Work:
    """A generation, what is remembered of it, and what changed since."""

    config: ReclusterConfig
    labeller: Labeller
    memory: Memory
    delta: Delta
    on_progress: Progress
    reading: Reading = field(default_factory=Reading)
    kept: dict[str, Rows] = field(default_factory=dict)  # of files that arrived, by path
    labels: dict[str, np.ndarray] = field(default_factory=dict)  # components of rows, by path
    apart: bool = True  # whether rows that went are still in what is remembered, to be taken out

    def rows(self, file: SampleFile, *, keep: bool = False) -> Rows:
        """One samples file through the reduction; what is to be needed again is kept while there is little of it."""
        if file.path in self.kept:
            return self.kept[file.path]
        rows = read_rows(self.table.samples, file, self.labeller)
        self.reading.add(file)
        if keep and sum(each.x_ND.nbytes for each in self.kept.values()) + rows.x_ND.nbytes <= _KEPT_BYTES:
            self.kept[file.path] = rows
        return rows

    def components(self, file: SampleFile) -> np.ndarray:
        """The component of each row of a file that the generation knows; kept while there is little of it."""
        if file.path not in self.labels:
            labels = self.clustering.read_assignments(self.before, file, columns=["component"])
            stored_N: np.ndarray = labels["component"].to_numpy()
            if sum(each.nbytes for each in self.labels.values()) + stored_N.nbytes > _KEPT_BYTES:
                return stored_N
            self.labels[file.path] = stored_N
        return self.labels[file.path]

    @property
    def table(self) -> Collection:
        """Of the rows."""
        return self.delta.table

    @property
    def clustering(self) -> Clustering:
        """Of the generation."""
        return self.delta.clustering

    @property
    def before(self) -> Generation:
        """That is continued."""
        return self.delta.before

    def weight(self, file: SampleFile) -> float:
        """How much a row of a file counts in the statistics, after the fold that is under way; 1 unless rows fade."""
        found = 1.0
        for paths, decay in self._faded:
            found *= decay if file.path in paths else 1.0
        return found

    @cached_property
    def _faded(self) -> list[tuple[set[str], float]]:
        """Files whose rows each fold made count less, and by how much. O(folds) listings."""
        samples = self.table.samples
        return [({file.path for file in samples.files(version=version)}, decay) for version, decay in self.folds]

    @cached_property
    def fades(self) -> bool:
        """Whether older rows count less from now on: only rows that are really new make them."""
        return self.config.decay < 1 and any(bool(self.delta.fresh(file).any()) for file in self.delta.added)

    @property
    def decay(self) -> float:
        """What the statistics before are multiplied by."""
        return self.config.decay if self.fades else 1.0

    @property
    def folds(self) -> Sequence[tuple[int, float]]:
        """As of Memory, with the one that is under way."""
        own = [(self.before.samples_version, self.config.decay)] if self.fades else []
        return [*self.memory.folds, *own]


@dataclass(frozen=True)
class Arrived:
    """Rows that came, labelled by the model as it is, and what those that went take with them."""

    written: list[tuple[SampleFile, WrittenFile]]  # assignments of the added files, unseen so far
    tally: Tally  # of all rows that there are now
    part: Part  # to be added to what is remembered
    rows: int
    gone: int
    lost: dict[int, float]  # cluster -> share of its rows that went


@dataclass(frozen=True)
class Decision:
    """What is due, and the tests that say so."""

    mode: Mode
    why: str
    drift: Drift
    tests: dict[str, Any]
    touched: tuple[int, ...]  # clusters that rows are read again of


@dataclass(frozen=True)
class Outcome:
    """What a decision led to, ready to be published."""

    files: list[WrittenFile]  # of the samples files whose assignments changed
    kept: int  # files of assignments that stay as they are
    publish: dict[str, Any]
