"""DeepDPM tuned on what arrived: its networks and its search go on, on the arrivals and a sample of older rows."""

from __future__ import annotations

from dataclasses import replace

import torch

from models.deepdpm.model import DeepDPM
from models.deepdpm.tuning import TuningObjective, begin, remembered
from models.increment import Held
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fit import Fit
from pipeline.progress import Progress, silent
from pipeline.train.config import TrainConfig
from pipeline.train.rows import HeldRows
from pipeline.train.trainer import train_rows


def tuned(config: ClusterConfig, model: DeepDPM, held: Held, epochs: int = 5, on_progress: Progress = silent) -> Fit:
    """The model after some epochs on the rows at hand: clusters that live on keep their ids, new ones get fresh ids.

    `held` are all arrivals, and older rows that each stand for `weight_N` rows (all rows that they are a uniform sample
    of, over their number). An epoch is a pass over them, but at least as many steps as lie between two rounds of moves.
    It runs in this process, and costs what training costs on these rows. Its statistics are not those of all rows:
    count these anew.
    """
    rng = torch.Generator().manual_seed(config.train.seed)
    held = remembered(model, held, rng)
    beginning = begin(model, held, rng)
    objective = TuningObjective(beginning, held.row_N, held.weight_N)
    train = _settings(config.train, model, len(held), epochs, births=len(beginning.parent_B) > 0)
    fit = train_rows(objective, HeldRows(held.x_ND.numpy(), held.row_N.numpy()), train, on_progress)
    moves = tuple((0, move) for move in beginning.moves)
    return replace(fit, moves=moves + fit.moves)


def _settings(train: TrainConfig, model: DeepDPM, rows: int, epochs: int, *, births: bool) -> TrainConfig:
    """Passes enough for that many epochs, after as many steps as nets need to learn what was born."""
    steps = -(-rows // train.batch_size)
    wanted = epochs * max(steps, model.config.interval) + model.config.warmup * births
    return train.model_copy(update={"epochs": -(-wanted // steps), "workers": 1})
