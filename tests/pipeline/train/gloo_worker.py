"""What one of two processes does in test_world.py: sums, fits and training in a process group, without Ray."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from swav_run import LOOP, STOP, Double, Held
from torch import nn
from toy_objective import Toy

from models.dpm.config import DPMConfig
from models.gmm import GMMConfig
from models.kmeans import KMeansConfig
from models.objective import Batch, Loss, Reduce
from pipeline.cluster.fit import FitConfig, _fit_worker
from pipeline.train import world as worlds
from pipeline.train.checkpoints import Checkpoint, CheckpointStore
from pipeline.train.config import TrainConfig
from pipeline.train.feed import Embeddings
from pipeline.train.passes import WorkerRows
from pipeline.train.rows import HeldRows, SavedRows, all_rows
from pipeline.train.trainer import Setting, run_worker
from pipeline.train.world import Group

ALGORITHMS = {
    "kmeans": KMeansConfig(clusters=5, restarts=1),
    "gmm": GMMConfig(clusters=5, restarts=1),
    "dpm": DPMConfig(),
}
FIT = FitConfig(block_rows=100, sample_rows=300)
TRAIN = TrainConfig(epochs=4, batch_size=64, block_rows=100, sample_rows=300)


class OneIsBroken(Toy):
    """Two losses are not finite, on the second worker only."""

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        found = super().loss(net, batch, step, reduce)
        return Loss(found.total * (torch.nan if batch.begin and step in (3, 20) else 1.0), found.scalars)


def store(folder: Path, name: str) -> CheckpointStore:
    return CheckpointStore(folder / name, name)


def sums(world: Group) -> dict[str, torch.Tensor]:
    """Two small types, one tensor of several chunks, and summands that must stay what they were."""
    worlds._CHUNK_BYTES = 1000
    big = torch.arange(1000, dtype=torch.float64).reshape(10, 100) + world.rank
    count, half = torch.tensor([world.rank + 1]), torch.full((3,), 0.5)
    total = dict(zip(("big", "count", "half"), world.sum(big, count, half), strict=True))
    assert int(count) == world.rank + 1
    strided = torch.zeros(2, 2)
    strided[:, 0] = world.rank + 1.0
    (largest,) = world.max(torch.tensor([-1.0, 0.0, 1.0]) * (2 * world.rank - 1))
    return total | {"strided": world.sum(strided.T)[0], "largest": largest}


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    world = Group(torch.device("cpu"), leads_machine=rank == 0)
    assert world.share(b"mine" if rank == 0 else b"yours") == b"mine"
    assert world.share(b"") == b""
    total = sums(world)
    source = SavedRows(folder / "rows")
    held = source.read(0, source.rows)
    everything = all_rows(HeldRows(held.x_ND, held.row_N), world)
    assert (everything.x_ND == held.x_ND).all()
    one_block = WorkerRows(held if rank == 0 else held[:0], world, 10_000)  # worker 1 has no rows
    data = one_block.summarize(300, seed=0)
    first = {"mean_D": data.mean_D, "covariance_DD": data.covariance_DD, "sample_MD": data.sample_MD}
    if rank == 0:
        store(folder, "sums").save(Checkpoint(1, {"rows": data.rows}, total | first))
    for kind, algorithm in ALGORITHMS.items():
        _fit_worker(algorithm, source, FIT, world, store(folder, kind))
    run_worker(Toy(), Embeddings(source), TRAIN, world, Setting(store(folder, "toy")))
    run = run_worker(OneIsBroken(), Embeddings(source), TRAIN, world, Setting(store(folder, "broken")))
    assert run.skipped == 2  # on both, though one of them saw nothing wrong
    with suppress(KeyboardInterrupt):
        run_worker(Double(stop=STOP), Held(), LOOP, world, Setting(store(folder, "swav")))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
