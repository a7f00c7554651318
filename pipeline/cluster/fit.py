"""The one loop of contract A: expect over blocks of rows, sum, maximize, until the model settles.

Shapes: N rows, D dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from models.clusterer import Clusterer, DataSummary, Move, Stats
from models.config import Config
from models.errors import ShoalError
from models.registry import ClustererConfig, load, start
from pipeline.cluster.metrics import FitMeter
from pipeline.cluster.threads import threads
from pipeline.progress import Progress, silent
from pipeline.train.checkpoints import Checkpoint, CheckpointStore, shared
from pipeline.train.passes import WorkerRows
from pipeline.train.result import Fit, Pass, story_from, story_record
from pipeline.train.rows import HeldRows, Rows, RowSource, kept, span
from pipeline.train.world import Alone, World

__all__ = ["Fit", "FitConfig", "Pass", "blocks", "fit", "fit_rows", "summarize", "total"]

STEP = "fit"
_OVERHEAD = 20  # a checkpoint that took a second is followed by 20 seconds of work at least


class FitConfig(Config):
    """How passes over the rows are made; none of it changes the result but `seed`, `sample_rows` and `max_passes`."""

    seed: int = Field(0, ge=0)
    max_passes: int = Field(500, ge=1, description="stop with a warning after so many passes without convergence")
    sample_rows: int = Field(131_072, ge=1, description="rows that seeds are chosen from")
    # Blocks begin at multiples of this count whoever holds the rows: sums are the same on any number of workers.
    block_rows: int = Field(65_536, ge=1, description="rows per call of the model")
    threads: int = Field(1, ge=1, description="blocks that a worker passes over at the same time")
    checkpoint_every_s: float = Field(5.0, ge=0, description="seconds of work that a killed fit may lose")
    workers: int = Field(1, ge=1, description="1 fits in this process; more are a Ray Train worker group")
    max_failures: int = Field(3, ge=0, description="times that a group which lost a worker is started again")

    @property
    def outcome(self) -> dict[str, object]:
        """The settings that a result depends on, for a fit's fingerprint."""
        return self.model_dump(mode="json", include={"seed", "max_passes", "sample_rows", "block_rows"})


@dataclass(frozen=True)
class _Search:
    """A fit so far: all that the next pass needs, and so all that a checkpoint holds."""

    model: Clusterer
    rng_state: Tensor
    history: tuple[Pass, ...] = ()
    moves: tuple[tuple[int, Move], ...] = ()
    settled: bool = False
    seconds: float = 0.0  # that the passes took

    def after(self, stats: Stats) -> _Search:
        rng = torch.Generator()
        rng.set_state(self.rng_state)
        update = self.model.maximize(stats, rng)
        return _Search(
            update.model,
            rng.get_state(),
            (*self.history, Pass(update.objective, len(update.model.id_K.unique()))),
            (*self.moves, *((len(self.history), move) for move in update.moves)),
            update.settled,
            self.seconds,
        )


def fit(
    algorithm: ClustererConfig,
    x_ND: np.ndarray,
    row_N: np.ndarray,
    config: FitConfig,
    on_progress: Progress = silent,
    store: CheckpointStore | None = None,
) -> Fit:
    """Fit `algorithm` to resident (or memory-mapped) float32 rows; `row_N` are their stable int64 hashes.

    The result is the same for any order of commits, workers and blocks of the same rows. Each pass costs what the
    model's `expect` costs; memory is one block and its statistics for each thread, beside the rows. With a `store` a
    fit that was killed goes on from its last checkpoint, to the same result.

    Raises ShoalError when there are no rows, when the algorithm refuses them, or the store is another fit's.
    """
    return fit_rows(algorithm, HeldRows(x_ND, row_N), config, on_progress, store)


def fit_rows(
    algorithm: ClustererConfig,
    source: RowSource,
    config: FitConfig,
    on_progress: Progress = silent,
    store: CheckpointStore | None = None,
) -> Fit:
    """As `fit`, for rows that workers can read by themselves: each reads and holds its own blocks only."""
    if config.workers == 1:
        with threads(1):  # those of torch and FAISS spin where they wait; `config.threads` are other ones
            return _fit_worker(algorithm, source, config, Alone(), store, on_progress)
    from pipeline.train.group import Workers, run_group  # noqa: PLC0415  Ray takes seconds to import

    with kept(store, source) as (checkpoints, rows):
        work = partial(_fit_worker, algorithm, rows, config, store=checkpoints)
        workers = Workers(config.workers, config.threads, 0, config.max_failures)
        run_group(work, workers, checkpoints, lambda number: on_progress(STEP, number - 1, None))
        found = checkpoints.latest()
        if found is None or not found.record["finished"]:
            raise ShoalError(
                f"The workers have ended, but {checkpoints.folder} lacks their result for this process; "
                "put the table on storage that all machines share."
            )
        return _finished(algorithm, found)


def _fit_worker(
    algorithm: ClustererConfig,
    source: RowSource,
    config: FitConfig,
    world: World,
    store: CheckpointStore | None = None,
    on_progress: Progress = silent,
) -> Fit:
    """What each worker does. Worker 0 alone maximizes, and tells the others: they need not round as it does."""
    rows = WorkerRows(
        source.read(*span(source.rows, config.block_rows, world.rank, world.size)),
        world,
        config.block_rows,
        config.threads,
    )
    saver = _Saver(store if world.rank == 0 else None, config.checkpoint_every_s)
    found = shared(saver.latest(), world)
    if found is not None and found.record["finished"]:
        return _finished(algorithm, found)
    search = _started(algorithm, rows, config) if found is None else _restored(algorithm, found)
    meter = FitMeter(algorithm.kind)
    meter.start()
    try:
        while not search.settled and len(search.history) < config.max_passes:
            began = time.perf_counter()
            stats = rows.total(search.model.expect)
            search = _agreed(algorithm, search.after(stats) if world.rank == 0 else None, world)
            search = replace(search, seconds=search.seconds + time.perf_counter() - began)
            if world.rank == 0:
                meter.passed(search.history, search.moves)
            saver.save_now_and_then(search)
            on_progress(STEP, len(search.history), None)
    except BaseException:  # a stop by the keyboard, too: the passes up to here need not be made again
        saver.save(search)
        raise
    stats = rows.total(search.model.expect)
    saver.save(search, stats)
    return Fit(search.model, stats, search.history, search.moves, search.settled, seconds=search.seconds)


def _started(algorithm: ClustererConfig, rows: WorkerRows, config: FitConfig) -> _Search:
    data = rows.summarize(config.sample_rows, config.seed)
    rng_state = torch.Generator().manual_seed(config.seed).get_state()
    first = None
    if rows.world.rank == 0:
        model = start(algorithm, data)
        opening: tuple[Move, ...] = getattr(model, "opening", ())  # of a search on the sample
        first = _Search(model, rng_state, moves=tuple((0, move) for move in opening))
    return _agreed(algorithm, first, rows.world)


def _agreed(algorithm: ClustererConfig, own: _Search | None, world: World) -> _Search:
    """Worker 0's search, on every worker."""
    if own is not None and world.size == 1:
        return own
    found = shared(None if own is None else _checkpoint(own), world)
    return own or _restored(algorithm, cast(Checkpoint, found))  # worker 0 always has one


class _Saver:
    """Saves searches, but spends no more than a small share of the time on it. Without a store it does nothing."""

    def __init__(self, store: CheckpointStore | None, every_s: float) -> None:
        self._store = store
        self._every_s = every_s
        self._due = time.monotonic() + every_s
        self._saved: _Search | None = None

    def latest(self) -> Checkpoint | None:
        return self._store.latest() if self._store else None

    def save_now_and_then(self, search: _Search) -> None:
        if self._store and time.monotonic() >= self._due:
            began = time.monotonic()
            self.save(search)
            now = time.monotonic()
            self._due = now + max(self._every_s, _OVERHEAD * (now - began))

    def save(self, search: _Search, stats: Stats | None = None) -> None:
        """With the statistics of the final model, the fit is finished."""
        if self._store is None or (search is self._saved and stats is None):
            return
        self._store.save(_checkpoint(search, stats))
        self._saved = search


def _checkpoint(search: _Search, stats: Stats | None = None) -> Checkpoint:
    tensors = {f"model.{name}": value for name, value in search.model.tensors().items()}
    tensors |= {f"stats.{name}": value for name, value in (stats.tensors() if stats else {}).items()}
    record = story_record(search.history, search.moves) | {
        "settled": search.settled,
        "seconds": search.seconds,
        "finished": stats is not None,
    }
    # Number 0 of a store is kept for ever, which a model before its first pass is not worth.
    return Checkpoint(len(search.history) + 1, record, tensors | {"rng": search.rng_state})


def _restored(algorithm: ClustererConfig, found: Checkpoint) -> _Search:
    history, moves = story_from(found.record)
    model = load(algorithm, _part(found, "model."))
    settled, seconds = found.record["settled"], found.record["seconds"]
    return _Search(model, found.tensors["rng"], tuple(history), tuple(moves), settled, seconds)


def _finished(algorithm: ClustererConfig, found: Checkpoint) -> Fit:
    search = _restored(algorithm, found)
    empty = search.model.expect(torch.empty(0, search.model.dim), torch.empty(0, dtype=torch.int64))
    stats = empty.with_tensors(_part(found, "stats."))
    return Fit(search.model, stats, search.history, search.moves, search.settled, seconds=search.seconds)


def _part(found: Checkpoint, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in found.tensors.items() if name.startswith(prefix)}


def total(model: Clusterer, x_ND: np.ndarray, row_N: np.ndarray, block_rows: int) -> Stats:
    """The statistics of all rows: one `expect` per block, summed in row order."""
    return WorkerRows(Rows(x_ND, row_N), Alone(), block_rows).total(model.expect)


def blocks(x_ND: np.ndarray, row_N: np.ndarray, block_rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive blocks as tensors that share the rows' memory."""
    return Rows(x_ND, row_N).blocks(block_rows)


def summarize(x_ND: np.ndarray, row_N: np.ndarray, config: FitConfig) -> DataSummary:
    """What an algorithm may know of these rows; see `WorkerRows.summarize`."""
    return WorkerRows(Rows(x_ND, row_N), Alone(), config.block_rows).summarize(config.sample_rows, config.seed)
