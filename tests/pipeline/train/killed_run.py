"""A fit or a training run that is killed half-way, as a process of its own for the tests."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from toy_objective import Toy

from models.gmm import GMMConfig
from pipeline.cluster.fit import FitConfig, fit_rows
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.config import TrainConfig
from pipeline.train.rows import SavedRows
from pipeline.train.trainer import train_rows

GMM = GMMConfig(clusters=5, restarts=1, tolerance=0)
FIT = FitConfig(block_rows=100, max_passes=12, checkpoint_every_s=0)
TRAIN = TrainConfig(epochs=5, batch_size=64, block_rows=100)
KILL_AT = 3
STEPS = 16  # of an epoch of the 1,003 rows


def main(kind: str, rows: Path, folder: Path) -> None:
    steps = STEPS if kind == "train" else 1

    def kill(step: str, done: int, total: int | None) -> None:
        if done == KILL_AT * steps:
            os.kill(os.getpid(), signal.SIGKILL)

    store = CheckpointStore(folder, kind)
    if kind == "fit":
        fit_rows(GMM, SavedRows(rows), FIT, kill, store)
    else:
        train_rows(Toy(), SavedRows(rows), TRAIN, kill, store)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
