"""What one reclustering is about, and what its parts tell each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from models.drift import Drift
from pipeline.cluster.fitted import Labeller
from pipeline.cluster.memory import Memory, Part
from pipeline.cluster.tally import Tally
from pipeline.progress import Progress
from pipeline.recluster.config import Mode, ReclusterConfig
from pipeline.recluster.delta import Delta
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SampleFile


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

    def weight(self) -> Callable[[SampleFile], float]:
        """How much a row of a file counts in the statistics, after the fold that is under way; 1 unless rows fade."""
        samples = self.table.samples
        folds = [*self.memory.folds, *([(self.before.samples_version, self.config.decay)] if self.fades else [])]
        there = [({file.path for file in samples.files(version=version)}, decay) for version, decay in folds]

        def weight(file: SampleFile) -> float:
            found = 1.0
            for paths, decay in there:
                found *= decay if file.path in paths else 1.0
            return found

        return weight

    @property
    def fades(self) -> bool:
        """Whether older rows count less from now on."""
        return self.config.decay < 1 and bool(self.delta.added)

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
    lost: dict[int, float]  # component -> share of its rows that went


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
