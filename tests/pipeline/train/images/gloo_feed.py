"""What one of several processes does in test_workers.py: its parts of an epoch, and a pass over all images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from image_shards import IMAGES, LOOP, PIXELS, SMALL, RowStats

from pipeline.train.images.feed import ImageSource
from pipeline.train.images.index import load_index
from pipeline.train.world import Alone, Group, World


def main(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    world: World = Alone()
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
        world = Group(torch.device("cpu"), leads_machine=rank == 0)
    source = ImageSource.of(load_index(folder / "index"), IMAGES, SMALL, PIXELS, seed=3)
    feed = source.open(LOOP, 16, world, None)
    batches = list(feed.draw(0, 1))
    total = feed.passes.total(RowStats.of)
    arrays = {f"view_{batch}": each.views[0].numpy() for batch, each in enumerate(batches)}
    arrays |= {f"row_{batch}": each.row_B.numpy() for batch, each in enumerate(batches)}
    np.savez(folder / f"{size}-{rank}.npz", count=total.count.numpy(), total=total.total.numpy(), **arrays)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
