"""Where a worker's batches come from: a seam with one implementation for resident embeddings and one for images.

Shapes: N rows over all workers, B rows of this worker's part of a batch, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from models.clusterer import DataSummary, Stats
from models.errors import ShoalError
from models.objective import Batch, Passes
from pipeline.train.checkpoints import Checkpoint, CheckpointStore, shared
from pipeline.train.config import TrainConfig
from pipeline.train.passes import WorkerRows
from pipeline.train.rows import Rows, RowSource, all_rows, as_tensor, span
from pipeline.train.world import World

S = TypeVar("S", bound=Stats)


class Feed(Protocol):
    """One worker's view of the data. Batches are the same on any number of workers, which hold parts of each."""

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        ...

    @property
    def data(self) -> Any:
        """The summary that objectives are built from; equal on all workers."""
        ...

    @property
    def passes(self) -> Passes:
        """Over all rows, between epochs."""
        ...

    def draw(self, epoch: int, start: int) -> Generator[Batch]:
        """This worker's parts of batches `start` and later of an epoch, on the worker's device.

        A pure function of its arguments. What it holds (threads, files) it lets go when the iterator is closed.
        """
        ...


class Source(Protocol):
    """Data that any worker can open by itself. Picklable: it says where rows are and does not hold them."""

    @property
    def rows(self) -> int:
        """N."""
        ...

    def fingerprint(self) -> str:
        """Names the rows, and what decides which batches they come in: others have another."""
        ...

    def summary(self, config: TrainConfig, store: CheckpointStore) -> Any:
        """That of `Feed.data`, for a process that opens nothing; `store` is where worker 0 may have kept it."""
        ...

    def open(self, config: TrainConfig, batch_rows: int, world: World, store: CheckpointStore | None) -> Feed:
        """The feed of one worker, with `batch_rows` rows in a batch over all workers (up to one less).

        `store`, on worker 0 only, may keep what a later attempt would have to compute again. Raises ShoalError when
        batches cannot be cut into parts for so many workers.
        """
        ...


@dataclass(frozen=True)
class Embeddings:
    """Resident (or memory-mapped) float32 rows as a Source."""

    source: RowSource

    @property
    def rows(self) -> int:
        """N."""
        return self.source.rows

    def fingerprint(self) -> str:
        """Of the rows."""
        return self.source.fingerprint()

    def summary(self, config: TrainConfig, store: CheckpointStore) -> DataSummary:
        """From checkpoint 0. Raises ShoalError when it is not there."""
        found = store.first()
        if found is None:
            raise ShoalError(
                f"{store.folder} lacks the workers' first checkpoint for this process; "
                "put the table on storage that all machines share."
            )
        return _kept_summary(found)

    def open(self, config: TrainConfig, batch_rows: int, world: World, store: CheckpointStore | None) -> RowFeed:
        """As of Source. The summary of the rows is kept as checkpoint 0, and costs two passes where it is not there."""
        rows = all_rows(self.source, world)
        begin, end = span(len(rows), config.block_rows, world.rank, world.size)
        mine = WorkerRows(rows[begin:end], world, config.block_rows, config.cpus_per_worker)
        return RowFeed(rows, _RunPasses(_summary(mine, config, world, store), mine), config.seed, batch_rows)


@dataclass(frozen=True)
class _RunPasses:
    """`Passes` over this worker's blocks and the others'."""

    data: DataSummary
    blocks: WorkerRows

    def total(self, expect: Callable[[Tensor, Tensor], S]) -> S:
        """As `WorkerRows.total`."""
        return self.blocks.total(expect)


class RowFeed:
    """Batches of rows that every worker can see all of."""

    def __init__(self, rows: Rows, passes: _RunPasses, seed: int, batch_rows: int) -> None:
        """Raises ShoalError when a batch has fewer rows than there are workers."""
        self._rows = rows
        self._world = passes.blocks.world
        self._seed = seed
        self.passes = passes
        self.steps = -(-len(rows) // batch_rows)
        smallest, workers = len(rows) // self.steps, self._world.size
        if smallest < workers:
            raise ShoalError(
                f"Batches of {smallest} rows cannot be cut into parts for {workers} workers; "
                f"set train.batch_size to at least {2 * workers}, or train.workers to at most {smallest}."
            )

    @property
    def data(self) -> DataSummary:
        """Of all rows."""
        return self.passes.data

    def draw(self, epoch: int, start: int) -> Generator[Batch]:
        """One permutation of all rows per epoch, cut into batches of equal size up to one row, each into equal parts.

        Nothing is dropped, no part is empty, and batches know nothing of workers. 8 N bytes.
        """
        order_N = torch.randperm(len(self._rows), generator=_generator(self._seed, epoch + 1))
        x_ND, row_N = as_tensor(self._rows.x_ND), as_tensor(self._rows.row_N)
        rank, size, device = self._world.rank, self._world.size, self._world.device
        for batch in range(start, self.steps):
            begin, end = (len(order_N) * each // self.steps for each in (batch, batch + 1))
            first, last = ((end - begin) * each // size for each in (rank, rank + 1))
            part_B = order_N[begin + first : begin + last]
            yield Batch((x_ND[part_B].to(device),), row_N[part_B].to(device), first, end - begin)


def _kept_summary(found: Checkpoint) -> DataSummary:
    """What `_summary` left as checkpoint 0."""
    return DataSummary(found.record["rows"], **found.tensors, seed=found.record["seed"])


def _summary(mine: WorkerRows, config: TrainConfig, world: World, store: CheckpointStore | None) -> DataSummary:
    """From the store, where an earlier attempt left it, or by two passes over the rows."""
    found = shared(store.first() if store else None, world)
    if found is not None:
        return _kept_summary(found)
    data = mine.summarize(config.sample_rows, config.seed)
    if store:
        tensors = {"mean_D": data.mean_D, "covariance_DD": data.covariance_DD, "sample_MD": data.sample_MD}
        store.save(Checkpoint(0, {"rows": data.rows, "seed": data.seed}, tensors))
    return data


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


def seed_of(*key: int) -> int:
    """63 bits that depend on all of `key`."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
