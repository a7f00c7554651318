"""SwAV in float64, where rounding is far below what is looked for, on images that every worker holds."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from models.backbones import BackboneConfig
from models.objective import Batch, ImageSummary, Loss, Passes, Plan, Reduce
from models.swav.config import SwAVConfig
from models.swav.network import SwAVNet
from models.swav.objective import SwAVObjective
from models.views import Views
from models.views_config import Bank, ViewsConfig
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.config import TrainConfig
from pipeline.train.world import World

IMAGES, STEPS, STOP = 90, 4, 6  # STOP: in mid-epoch, after a checkpoint
VIEWS = ViewsConfig(
    policy="grey", base=16, banks=(Bank(size=12, count=2, area=(0.3, 1)), Bank(size=8, count=2, area=(0.1, 0.3)))
)
SWAV = SwAVConfig(prototypes=14, queue=24, queue_start=0.5, freeze=0.5, hidden=12, dim=6)
LOOP = TrainConfig(
    batch_size=24,
    accumulate=2,
    epochs=3,
    optimizer="sgd",
    lr=0.1,
    weight_decay=1e-4,
    log_every=1,
    checkpoint_minutes=1e-9,
    keep=100,
)


class Double(SwAVObjective):
    """Stops as if by the keyboard before some step."""

    def __init__(self, stop: int = -1) -> None:
        super().__init__(SWAV, BackboneConfig(name="shoal/conv4_grey", weights="random"), VIEWS)
        self.stop = stop

    def build(self, data: ImageSummary, plan: Plan) -> SwAVNet:
        return super().build(data, plan).double()

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        if step == self.stop:
            raise KeyboardInterrupt
        return super().loss(net, batch, step, reduce)


@dataclass(frozen=True)
class Held:
    """Images that are smooth, so that their views have something to agree on. A Source."""

    rows: int = IMAGES

    def fingerprint(self) -> str:
        return "held"

    def summary(self, config: TrainConfig, store: CheckpointStore) -> ImageSummary:
        return ImageSummary(self.rows, config.seed)

    def open(self, config: TrainConfig, batch_rows: int, world: World, store: CheckpointStore | None) -> HeldFeed:
        rng = np.random.default_rng(1)
        coarse = torch.from_numpy(rng.uniform(0, 255, (self.rows, 1, 4, 4))).float()
        image_NCHW = nn.functional.interpolate(coarse, size=16, mode="bilinear").to(torch.uint8)
        return HeldFeed(image_NCHW, batch_rows, world, config.seed)


class HeldFeed:
    """A Feed: the same batches for any number of workers, cut into parts that are not equal."""

    passes = cast(Passes, None)  # nothing is asked of them

    def __init__(self, image_NCHW: torch.Tensor, batch_rows: int, world: World, seed: int) -> None:
        self.image_NCHW, self.world = image_NCHW, world
        self.steps = -(-len(image_NCHW) // batch_rows)
        self.views = Views(VIEWS, 1, seed)
        self.data: Any = ImageSummary(len(image_NCHW), seed)

    def draw(self, epoch: int, start: int) -> Generator[Batch]:
        order_N = np.random.default_rng(epoch).permutation(len(self.image_NCHW))
        for batch in range(start, self.steps):
            row_B = order_N[len(order_N) * batch // self.steps : len(order_N) * (batch + 1) // self.steps]
            rank, size = self.world.rank, self.world.size
            first, last = (round(len(row_B) * (each / size) ** 2) for each in (rank, rank + 1))
            mine_B = row_B[first:last].astype(np.int64)
            views = self.views.of_batch(self.image_NCHW[torch.from_numpy(mine_B)], mine_B, epoch)
            there = tuple(view.to(self.world.device) for view in views)
            yield Batch(there, torch.from_numpy(mine_B).to(self.world.device), first, len(row_B))
