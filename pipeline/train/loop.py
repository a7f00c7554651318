"""Training, as each worker runs it: epochs of batches that are the same on any number of workers.

Shapes: N rows over all workers, B rows of this worker's part of a batch, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from models.clusterer import DataSummary, Move, Stats
from models.errors import ShoalError
from models.objective import Batch, EpochEnd, Loss, Objective
from pipeline.train.config import TrainConfig
from pipeline.train.optimizer import make_optimizer, operate, read_state, schedule, write_state
from pipeline.train.passes import WorkerRows
from pipeline.train.result import Pass
from pipeline.train.rows import Rows, as_tensor
from pipeline.train.world import World

S = TypeVar("S", bound=Stats)


@dataclass(frozen=True)
class RunPasses:
    """`Passes` over this worker's blocks and the others'."""

    data: DataSummary
    blocks: WorkerRows

    def total(self, expect: Callable[[Tensor, Tensor], S]) -> S:
        """As `WorkerRows.total`."""
        return self.blocks.total(expect)


@dataclass
class Run:
    """What training has come to: changed by every step."""

    objective: Objective
    net: nn.Module
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # how many are finished
    history: list[Pass] = field(default_factory=list)
    moves: list[tuple[int, Move]] = field(default_factory=list)
    scalars: list[Mapping[str, float]] = field(default_factory=list)
    settled: bool = False


class Trainer:
    """One worker's part of a run.

    Randomness is keyed by (seed, epoch, worker) and set anew in each epoch, so a run that stopped between epochs goes
    on as if it had not: there is no generator to keep. Gradients are averaged by the same sums as everything else, and
    not by DistributedDataParallel: its hooks need every output of a network to take part in every loss, which
    objectives with phases do not promise; and it would have to be wrapped anew after each surgery. What it gains,
    overlap of sums with the backward pass, is nothing for networks of this size.
    """

    def __init__(self, config: TrainConfig, rows: Rows, passes: RunPasses, world: World) -> None:
        """`rows` are all rows. Raises ShoalError when a batch has fewer rows than there are workers."""
        self._config = config
        self._rows = rows
        self._passes = passes
        self._world = world
        self._batches = -(-len(rows) // config.batch_size)
        smallest = len(rows) // self._batches
        if smallest < world.size:
            raise ShoalError(
                f"Batches of {smallest} rows cannot be cut into parts for {world.size} workers; "
                f"set train.batch_size to at least {2 * world.size}, or train.workers to at most {smallest}."
            )

    def start(self, run: Run) -> None:
        """Before the first epoch of a fresh run."""
        with _randomness(self._config.seed, 0, 0):
            run.net.eval()
            run.objective.on_start(run.net, self._passes)
        run.optimizer = make_optimizer(self._config, run.objective, run.net)  # parameters may have been replaced

    def epoch(self, run: Run) -> None:
        """One epoch, and what the objective makes of it. Raises ShoalError when the loss is not finite."""
        with _randomness(self._config.seed, run.epoch + 1, self._world.rank + 1):
            run.net.train()
            scalars = self._steps(run)
        if not math.isfinite(scalars["loss"]):
            raise ShoalError(
                f"The loss of epoch {run.epoch + 1} is {scalars['loss']} but must be finite; "
                "lower train.lr, or set train.precision to fp32."
            )
        self._share_buffers(run.net)
        with _randomness(self._config.seed, run.epoch + 1, 0):  # no worker in it: what follows is equal on all
            end = self._end(run)
        run.history.append(Pass(-scalars["loss"] if math.isnan(end.objective) else end.objective, end.clusters))
        run.moves += [(run.epoch, move) for move in end.moves]
        run.scalars.append(scalars)
        run.settled = end.settled
        run.epoch += 1

    def _end(self, run: Run) -> EpochEnd:
        run.net.eval()
        shapes = {name: parameter.shape for name, parameter in run.net.named_parameters()}
        state = read_state(run.optimizer, run.net)
        end = run.objective.on_epoch_end(run.net, run.epoch, self._passes)
        if end.surgery is not None:
            run.optimizer = make_optimizer(self._config, run.objective, run.net)
            write_state(run.optimizer, run.net, operate(state, end.surgery, shapes, run.net))
        return end

    def _steps(self, run: Run) -> dict[str, float]:
        """All batches of an epoch; the mean of each scalar over the rows of all workers."""
        sums: dict[str, Tensor] = {}
        for number, (batch, share) in enumerate(self._draw(run.epoch)):
            step = run.epoch * self._batches + number
            schedule(self._config, run.optimizer, (step + 0.5) / self._batches)
            loss = self._step(run, batch, step, share)
            for name, value in {**loss.scalars, "loss": loss.total}.items():
                sums[name] = sums.get(name, 0.0) + len(batch.x_BD) * value.detach().double()
        totals = self._world.sum(*(sums[name] for name in sorted(sums)))
        return {name: float(total) / len(self._rows) for name, total in zip(sorted(sums), totals, strict=True)}

    def _step(self, run: Run, batch: Batch, step: int, share: float) -> Loss:
        """`share` is this part's share of the batch: losses are means over rows, and so is that of the batch."""
        run.net.zero_grad(set_to_none=True)
        with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            loss = run.objective.loss(run.net, batch, step, self._world.sum)
        loss.total.backward(torch.full_like(loss.total, share))
        self._sum_gradients(run.net)
        run.objective.after_backward(run.net, step)
        run.optimizer.step()
        run.objective.after_step(run.net, batch, step, self._world.sum)
        return loss

    def _draw(self, epoch: int) -> Iterator[tuple[Batch, float]]:
        """This worker's part of each batch, and the share of the batch that it is.

        One permutation of all rows per epoch, cut into batches of equal size up to one row, each cut into equal parts
        up to one row: nothing is dropped, no part is empty, and batches know nothing of workers. 8 N bytes.
        """
        order_N = torch.randperm(len(self._rows), generator=_generator(self._config.seed, epoch + 1))
        x_ND, row_N = as_tensor(self._rows.x_ND), as_tensor(self._rows.row_N)
        rank, size, device = self._world.rank, self._world.size, self._world.device
        for batch in range(self._batches):
            begin, end = (len(order_N) * each // self._batches for each in (batch, batch + 1))
            first, last = (begin + (end - begin) * each // size for each in (rank, rank + 1))
            part_B = order_N[first:last]
            yield Batch(x_ND[part_B].to(device), row_N[part_B].to(device)), (last - first) / (end - begin)

    def _sum_gradients(self, net: nn.Module) -> None:
        """Add up what each part contributes. A parameter that no worker's loss used keeps no gradient."""
        if self._world.size == 1:
            return
        parameters = list(net.parameters())
        used_P = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        (used_P,) = self._world.sum(used_P)
        taking_part = [parameter for parameter, used in zip(parameters, used_P.tolist(), strict=True) if used]
        for parameter in taking_part:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad = parameter.grad.contiguous()
        self._world.sum_in_place([parameter.grad for parameter in taking_part if parameter.grad is not None])

    def _share_buffers(self, net: nn.Module) -> None:
        """Buffers that batches change (running means) become worker 0's."""
        if self._world.size == 1:
            return
        mine = [buffer if self._world.rank == 0 else torch.zeros_like(buffer) for buffer in net.buffers()]
        for buffer, value in zip(net.buffers(), self._world.sum(*mine), strict=True):
            buffer.copy_(value)


def _generator(*key: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*key))


@contextmanager
def _randomness(*key: int) -> Iterator[None]:
    """torch's own generators seeded by `key`; the caller's are given back."""
    with torch.random.fork_rng():
        torch.manual_seed(_seed(*key))
        yield


def _seed(*key: int) -> int:
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
