"""Train any Objective: in this process, or on a Ray Train worker group that runs the same loop."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.errors import ShoalError
from models.objective import Objective
from pipeline.cluster.metrics import FitMeter
from pipeline.cluster.threads import threads
from pipeline.progress import Progress, silent
from pipeline.tables.place import Place
from pipeline.train.checkpoints import Checkpoint, CheckpointStore, shared
from pipeline.train.config import TrainConfig
from pipeline.train.feed import Embeddings, Source
from pipeline.train.heap import keep_heap
from pipeline.train.loop import Run, Trainer, plan_of
from pipeline.train.metrics import Recorder
from pipeline.train.optimizer import flatten, make_optimizer, read_state, unflatten, write_state
from pipeline.train.result import Fit, story_from, story_record
from pipeline.train.rows import HeldRows, RowSource, kept
from pipeline.train.world import Alone, World

STEP = "train"


def train(
    objective: Objective,
    x_ND: np.ndarray,
    row_N: np.ndarray,
    config: TrainConfig,
    on_progress: Progress = silent,
    store: CheckpointStore | None = None,
) -> Fit:
    """Train on resident (or memory-mapped) float32 rows; `row_N` are their stable int64 hashes.

    With a `store` a run that was stopped goes on from its last checkpoint, to the same result. Raises ShoalError when
    there are no rows, the loss stays without a finite value, or the store has checkpoints of another run.
    """
    return train_rows(objective, HeldRows(x_ND, row_N), config, on_progress, store)


def train_rows(
    objective: Objective,
    source: RowSource,
    config: TrainConfig,
    on_progress: Progress = silent,
    store: CheckpointStore | None = None,
    meter: FitMeter | None = None,
) -> Fit:
    """As `train`, for rows that workers can read by themselves; `meter` is told of every epoch."""
    setting = Setting(store, on_progress=on_progress, meter=meter)
    if config.workers == 1:
        return fit_of(_alone(objective, Embeddings(source), config, setting))
    with kept(store, source) as (checkpoints, rows):
        return fit_of(_together(objective, Embeddings(rows), config, replace(setting, store=checkpoints)))


def train_source(
    objective: Objective,
    source: Source,
    config: TrainConfig,
    store: CheckpointStore,
    on_progress: Progress = silent,
    metrics: Place | None = None,
) -> Run:
    """As `train`, on any source; `metrics` is a folder for what can be watched while it runs (see Recorder).

    The run comes back with its network on the CPU where workers trained it, and where this process did on its device.
    """
    how = _alone if config.workers == 1 else _together
    return how(objective, source, config, Setting(store, metrics, on_progress))


def fit_of(run: Run) -> Fit:
    """The clusterer that was trained, and the story."""
    model = run.objective.clusterer(run.net.eval())
    return Fit(
        model,
        None,
        tuple(run.history),
        tuple(run.moves),
        run.settled,
        tuple(run.scalars),
        warnings=tuple(sentence for _, sentence in run.warnings),
    )


@dataclass(frozen=True)
class Setting:
    """What a run leaves behind while it is under way, and who is told of it."""

    store: CheckpointStore | None = None
    metrics: Place | None = None
    on_progress: Progress = silent
    meter: FitMeter | None = None


def run_worker(
    objective: Objective, source: Source, config: TrainConfig, world: World, setting: Setting | None = None
) -> Run:
    """What each worker does, from opening its data to the last checkpoint."""
    keep_heap()
    setting = setting or Setting()
    store = setting.store if world.rank == 0 else None
    feed = source.open(config, config.batch_rows, world, store)
    run = _fresh(objective, config, feed.data, world.device)
    found = shared(store.latest() if store else None, world)
    if found is not None and found.number > 0:
        _restore(run, config, found)
    with closing(_Watcher(config, world, store, setting.on_progress)) as watcher:
        if world.rank == 0:
            watcher.record(setting, run.steps)
        trainer = Trainer(config, feed, world, watcher)
        if found is None or found.number == 0:
            trainer.start(run)
        while not run.over:
            told = len(run.warnings)
            trainer.epoch(run)
            watcher.ended(run, run.warnings[told:])
    return run


class _Watcher:
    """Saves, records and tells how far it is. Every worker has one, for whether to save is decided by worker 0."""

    def __init__(self, config: TrainConfig, world: World, store: CheckpointStore | None, on_progress: Progress) -> None:
        self._config = config
        self._world = world
        self._store = store
        self._on_progress = on_progress
        self._recorder: Recorder | None = None
        self._meter: FitMeter | None = None
        self._saved = time.monotonic()

    def record(self, setting: Setting, steps: int) -> None:
        """From now on keep metrics in a folder, where a run of so many steps left some, and tell a meter."""
        if setting.metrics is not None:
            self._recorder = Recorder(setting.metrics, steps, epochs=self._config.epochs)
        self._meter = setting.meter
        if self._meter:
            self._meter.start()

    def logged(self, run: Run, means: Mapping[str, float]) -> None:
        """As of Watcher."""
        if self._recorder:
            self._recorder.record(run.steps, means)
        if run.taken == run.plan.steps:
            return  # the epoch is not over before the objective has had its say
        if self._config.checkpoint_minutes is not None and self._time_is_up(self._config.checkpoint_minutes):
            self._save(run)
        self._on_progress(STEP, run.steps, run.plan.steps * run.plan.epochs)

    def ended(self, run: Run, sentences: Sequence[tuple[int, str]]) -> None:
        """An epoch is over."""
        if self._recorder:
            self._recorder.record(run.steps, {"clusters": run.history[-1].clusters})
            for _, sentence in sentences:
                self._recorder.note(run.steps, sentence)
        if self._meter:
            self._meter.passed(run.history, run.moves)
        if self._world.size == 1:  # what workers print nobody sees
            _tell(sentences)
        config = self._config
        due = [config.checkpoint_every] + ([config.keep_every] if config.keep_every else [])
        if run.over or any(run.epoch % every == 0 for every in due):
            self._save(run)
        self._on_progress(STEP, run.steps, run.plan.steps * run.plan.epochs)

    def close(self) -> None:
        """Nothing more comes."""
        if self._recorder:
            self._recorder.close()

    def _time_is_up(self, minutes: float) -> bool:
        late = self._world.rank == 0 and time.monotonic() - self._saved > 60 * minutes
        return bool(self._world.sum(torch.tensor(int(late)))[0])

    def _save(self, run: Run) -> None:
        if self._recorder:
            self._recorder.flush()  # first: what follows a checkpoint is made again, what comes before it is not
        if self._store:
            self._store.save(_checkpoint(run))
        self._saved = time.monotonic()


def _alone(objective: Objective, source: Source, config: TrainConfig, setting: Setting) -> Run:
    with threads(config.cpus_per_worker):
        return run_worker(objective, source, config, Alone(_device(config)), setting)


def _together(objective: Objective, source: Source, config: TrainConfig, setting: Setting) -> Run:
    from pipeline.train.group import Workers, run_group  # noqa: PLC0415  Ray takes seconds to import

    assert setting.store is not None  # noqa: S101 - both callers have one
    workers = Workers(
        config.workers, config.cpus_per_worker, config.gpus_per_worker, config.max_failures, config.min_workers
    )
    plan = plan_of(source.rows, config)
    work = partial(run_worker, objective, source, config, setting=replace(setting, on_progress=silent))
    run_group(work, workers, setting.store, _Listener(setting, plan.steps * plan.epochs))
    return _trained(objective, source, config, setting.store)


class _Listener:
    """Tells this process what workers have saved."""

    def __init__(self, setting: Setting, steps: int) -> None:
        self._setting = setting
        self._steps = steps
        self._told = 0

    def __call__(self, number: int) -> None:
        """A checkpoint is there."""
        self._setting.on_progress(STEP, number, self._steps)
        record = self._setting.store.record(number) if self._setting.store else None
        if record is not None:
            _tell(record["warnings"][self._told :])
            self._told = len(record["warnings"])


def _tell(sentences: Sequence[tuple[int, str]]) -> None:
    for _, sentence in sentences:
        warnings.warn(sentence, stacklevel=2)


def _device(config: TrainConfig) -> torch.device:
    if config.gpus_per_worker and not torch.cuda.is_available():
        raise ShoalError(
            f"train.gpus_per_worker is {config.gpus_per_worker} but this process sees no GPU; "
            "set it to 0, or train where there is one."
        )
    wanted = torch.cuda.is_available() if config.gpus_per_worker is None else config.gpus_per_worker
    return torch.device("cuda" if wanted else "cpu")


def _fresh(objective: Objective, config: TrainConfig, data: Any, device: torch.device) -> Run:
    plan = plan_of(data.rows, config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = objective.build(data, plan).to(device)
    return Run(objective, net, make_optimizer(config, objective, net), plan)


def _trained(objective: Objective, source: Source, config: TrainConfig, store: CheckpointStore) -> Run:
    """What the workers of a group came to."""
    last = store.latest()
    over = plan_of(source.rows, config).steps * config.epochs
    if last is None or not (last.number == over or last.record["settled"]):
        raise ShoalError(
            f"The workers have ended, but {store.folder} lacks their last checkpoint for this process; "
            "put the table on storage that all machines share."
        )
    run = _fresh(objective, config, source.summary(config, store), torch.device("cpu"))
    _restore(run, config, last)
    return run


def _checkpoint(run: Run) -> Checkpoint:
    parts: dict[str, dict[str, Tensor]] = {
        "net": run.net.state_dict(),
        "optimizer": flatten(read_state(run.optimizer, run.net)),
        "objective": run.objective.state(),
    }
    tensors = {f"{part}.{name}": value for part, known in parts.items() for name, value in known.items()}
    record: dict[str, Any] = story_record(run.history, run.moves) | {name: getattr(run, name) for name in _KEPT}
    return Checkpoint(run.steps, record, tensors)


_KEPT = ("epoch", "taken", "scalars", "sums", "skipped", "in_a_row", "settled", "warnings")


def _restore(run: Run, config: TrainConfig, found: Checkpoint) -> None:
    parts: dict[str, dict[str, Tensor]] = {"net": {}, "optimizer": {}, "objective": {}}
    for full, value in found.tensors.items():
        part, name = full.split(".", 1)
        parts[part][name] = value
    run.objective.load(parts["objective"], run.net)
    run.net.load_state_dict(parts["net"])
    run.optimizer = make_optimizer(config, run.objective, run.net)
    write_state(run.optimizer, run.net, unflatten(parts["optimizer"], run.net))
    run.history, run.moves = story_from(found.record)
    for name in _KEPT:
        setattr(run, name, found.record[name])
    run.warnings = [(epoch, sentence) for epoch, sentence in found.record["warnings"]]
