"""SwAV as the documentation of lightly writes it: its head, prototypes and loss, one forward pass for each view.

`python -m jobs.bench.peers.lightly_swav LAYOUT WORK`, LAYOUT contiguous or channels_last, WORK as of
jobs.bench.swav_one; prints one JSON line. The network, the crops, the optimizer and its settings are shoal's; crops are
in memory, and scaled to floats beforehand, as lightly's own transforms leave them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
import typer
from lightly.loss import SwaVLoss
from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes
from torch import Tensor, nn
from torch.nn import functional

from jobs.bench.swav_one import Cached, Clock, Timed, Work, sourced
from models.backbones import Backbone, load_backbone
from pipeline.cluster.threads import threads


class SwaV(nn.Module):
    """The example of lightly's documentation, with the sizes of `work`."""

    def __init__(self, backbone: Backbone, work: Work) -> None:
        super().__init__()
        config = work.train.objective
        self.bf16 = work.train.loop.precision == "bf16"
        self.backbone = backbone.net.train().requires_grad_(True)
        self.projection_head = SwaVProjectionHead(backbone.dim, config.hidden, config.dim)
        self.prototypes = SwaVPrototypes(config.dim, n_prototypes=config.prototypes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Scores of one view."""
        z_BD = self.projection_head(self.backbone(x_BCHW).flatten(start_dim=1))
        scores_BK: Tensor = self.prototypes(functional.normalize(z_BD, dim=1, p=2))
        return scores_BK


def timed(work: Work, layout: torch.memory_format) -> Timed:
    """Train on crops in memory, as long as shoal does."""
    _, images = sourced(work)
    loop, config = work.train.loop, work.train.objective
    with threads(loop.cpus_per_worker):
        backbone = load_backbone(work.backbone)
        model = SwaV(backbone, work).to(memory_format=layout)
        batches = [
            [backbone.pixels.normalise(view).to(memory_format=layout) for view in batch.views]
            for batch in Cached.of(images, loop).batches
        ]
        criterion = SwaVLoss(config.temperature, config.iterations, config.epsilon)
        optimizer = torch.optim.SGD(model.parameters(), loop.lr, loop.momentum, weight_decay=loop.weight_decay)
        clock, assigning = Clock(images.rows), work.train.views.banks[0].count
        for _ in range(loop.epochs):
            total = torch.zeros(())
            for batch in batches:
                total += _step(model, criterion, optimizer, batch, assigning)
            typer.echo(f"loss {total / len(batches):.3f}", err=True)
            clock.mark()
    return clock.timed


def _step(
    model: SwaV,
    criterion: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: Sequence[Tensor],
    assigning: int,
) -> Tensor:
    model.prototypes.normalize()
    with torch.autocast("cpu", torch.bfloat16, enabled=model.bf16):
        scores = [model(view) for view in views]
        loss: Tensor = criterion(scores[:assigning], scores[assigning:])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach().float().squeeze()


def main(layout: str, work: str) -> None:
    """Print how fast it is."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    typer.echo(timed(Work.model_validate_json(work), formats[layout]).model_dump_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
