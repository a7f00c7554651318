"""Train any Objective: in this process, or on a Ray Train worker group that runs the same loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.clusterer import DataSummary
from models.errors import ShoalError
from models.objective import Objective
from pipeline.cluster.threads import threads
from pipeline.progress import Progress, silent
from pipeline.train.checkpoints import Checkpoint, CheckpointStore, shared
from pipeline.train.config import TrainConfig
from pipeline.train.loop import Run, RunPasses, Trainer
from pipeline.train.optimizer import flatten, make_optimizer, read_state, unflatten, write_state
from pipeline.train.passes import WorkerRows
from pipeline.train.result import Fit, story_from, story_record
from pipeline.train.rows import HeldRows, RowSource, all_rows, kept, span
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
    there are no rows, the loss is not finite, or the store has checkpoints of another run.
    """
    return train_rows(objective, HeldRows(x_ND, row_N), config, on_progress, store)


def train_rows(
    objective: Objective,
    source: RowSource,
    config: TrainConfig,
    on_progress: Progress = silent,
    store: CheckpointStore | None = None,
) -> Fit:
    """As `train`, for rows that workers can read by themselves."""
    if config.workers == 1:
        with threads(config.cpus_per_worker):
            return _fit_of(run_worker(objective, source, config, Alone(_device(config)), store, on_progress))
    from pipeline.train.group import Workers, run_group  # noqa: PLC0415  Ray takes seconds to import

    workers = Workers(config.workers, config.cpus_per_worker, config.gpus_per_worker, config.max_failures)
    with kept(store, source) as (checkpoints, rows):
        work = partial(run_worker, objective, rows, config, store=checkpoints)
        run_group(work, workers, checkpoints, lambda epoch: on_progress(STEP, epoch, config.epochs))
        return _fit_of(_trained(objective, config, checkpoints))


def run_worker(
    objective: Objective,
    source: RowSource,
    config: TrainConfig,
    world: World,
    store: CheckpointStore | None = None,
    on_progress: Progress = silent,
) -> Run:
    """What each worker does, from its rows to the last checkpoint."""
    rows = all_rows(source, world)
    begin, end = span(len(rows), config.block_rows, world.rank, world.size)
    mine = WorkerRows(rows[begin:end], world, config.block_rows, config.cpus_per_worker)
    speaker = store if world.rank == 0 else None
    data = _summary(mine, config, world, speaker)
    run = _fresh(objective, config, data, world.device)
    trainer = Trainer(config, rows, RunPasses(data, mine), world)
    found = shared(speaker.latest() if speaker else None, world)
    if found is None or found.number == 0:
        trainer.start(run)
    else:
        _restore(run, config, found)
    while run.epoch < config.epochs and not run.settled:
        trainer.epoch(run)
        over = run.settled or run.epoch == config.epochs
        if speaker and (over or run.epoch % config.checkpoint_every == 0):
            speaker.save(_checkpoint(run))
        on_progress(STEP, run.epoch, config.epochs)
    return run


def _device(config: TrainConfig) -> torch.device:
    if config.gpus_per_worker and not torch.cuda.is_available():
        raise ShoalError(
            f"train.gpus_per_worker is {config.gpus_per_worker} but this process sees no GPU; "
            "set it to 0, or train where there is one."
        )
    return torch.device("cuda" if config.gpus_per_worker else "cpu")


def _fresh(objective: Objective, config: TrainConfig, data: DataSummary, device: torch.device) -> Run:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = objective.build(data).to(device)
    return Run(objective, net, make_optimizer(config, objective, net))


def _trained(objective: Objective, config: TrainConfig, store: CheckpointStore) -> Run:
    """What the workers of a group came to."""
    first, last = store.first(), store.latest()
    if first is None or last is None or not (last.number == config.epochs or last.record["settled"]):
        raise ShoalError(
            f"The workers have ended, but {store.folder} lacks their last checkpoint for this process; "
            "put the table on storage that all machines share."
        )
    run = _fresh(objective, config, _summary_from(first), torch.device("cpu"))
    _restore(run, config, last)
    return run


def _fit_of(run: Run) -> Fit:
    model = run.objective.clusterer(run.net.eval())
    return Fit(model, None, tuple(run.history), tuple(run.moves), run.settled, tuple(run.scalars))


def _summary(mine: WorkerRows, config: TrainConfig, world: World, store: CheckpointStore | None) -> DataSummary:
    """From the store, where an earlier attempt left it, or by two passes over the rows."""
    found = shared(store.first() if store else None, world)
    if found is not None:
        return _summary_from(found)
    data = mine.summarize(config.sample_rows, config.seed)
    if store:
        tensors = {"mean_D": data.mean_D, "covariance_DD": data.covariance_DD, "sample_MD": data.sample_MD}
        store.save(Checkpoint(0, {"rows": data.rows, "seed": data.seed}, tensors))
    return data


def _summary_from(found: Checkpoint) -> DataSummary:
    return DataSummary(found.record["rows"], **found.tensors, seed=found.record["seed"])


def _checkpoint(run: Run) -> Checkpoint:
    parts: dict[str, dict[str, Tensor]] = {
        "net": run.net.state_dict(),
        "optimizer": flatten(read_state(run.optimizer, run.net)),
        "objective": run.objective.state(),
    }
    tensors = {f"{part}.{name}": value for part, known in parts.items() for name, value in known.items()}
    record: dict[str, Any] = story_record(run.history, run.moves)
    return Checkpoint(run.epoch, record | {"scalars": run.scalars, "settled": run.settled}, tensors)


def _restore(run: Run, config: TrainConfig, found: Checkpoint) -> None:
    parts: dict[str, dict[str, Tensor]] = {"net": {}, "optimizer": {}, "objective": {}}
    for full, value in found.tensors.items():
        part, name = full.split(".", 1)
        parts[part][name] = value
    run.objective.load(parts["objective"], run.net)
    run.net.load_state_dict(parts["net"])
    run.optimizer = make_optimizer(config, run.objective, run.net)
    write_state(run.optimizer, run.net, unflatten(parts["optimizer"], run.net))
    run.epoch = found.number
    run.history, run.moves = story_from(found.record)
    run.scalars, run.settled = list(found.record["scalars"]), found.record["settled"]
