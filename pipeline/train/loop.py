"""Training, as each worker runs it: epochs of steps that are the same on any number of workers.

Shapes: B rows of this worker's part of a batch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from models.clusterer import Move
from models.errors import ShoalError
from models.objective import Batch, EpochEnd, Objective, Plan
from pipeline.train.config import TrainConfig
from pipeline.train.feed import Feed, seed_of
from pipeline.train.optimizer import make_optimizer, operate, read_state, schedule, write_state
from pipeline.train.result import Pass
from pipeline.train.world import World

_STEP = 1  # ends the key of a step's randomness; that of what happens between epochs has no such end


class Watcher(Protocol):
    """Told on every worker, alike and in the same order, what a run came to; it may save it."""

    def logged(self, run: Run, means: Mapping[str, float]) -> None:
        """After every so many steps, in mid-epoch: means over the rows since it was told last, and rates."""
        ...


@dataclass
class Run:
    """What training has come to: changed by every step."""

    objective: Objective
    net: nn.Module
    optimizer: torch.optim.Optimizer
    plan: Plan
    epoch: int = 0  # how many are finished
    taken: int = 0  # steps of the epoch under way
    history: list[Pass] = field(default_factory=list)
    moves: list[tuple[int, Move]] = field(default_factory=list)
    scalars: list[Mapping[str, float]] = field(default_factory=list)
    warnings: list[tuple[int, str]] = field(default_factory=list)  # epoch, sentence
    sums: dict[str, float] = field(default_factory=dict)  # of the epoch under way, over all workers; see `_Sums`
    skipped: int = 0  # steps without a finite loss and gradient
    in_a_row: int = 0  # of them the last, without one that was made in between
    settled: bool = False

    @property
    def steps(self) -> int:
        """That were made or skipped, from the beginning."""
        return self.epoch * self.plan.steps + self.taken

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        return self.settled or self.epoch >= self.plan.epochs


def plan_of(rows: int, config: TrainConfig) -> Plan:
    """How so many rows will be trained on."""
    losses = -(-rows // config.batch_rows)
    return Plan(config.batch_rows, -(-losses // config.accumulate), config.epochs)


class Trainer:
    """One worker's part of a run.

    Randomness is keyed by (seed, step, worker) and set anew in each step, so a run that stopped between two steps goes
    on as if it had not: there is no generator to keep. Gradients are averaged by the same sums as everything else, and
    not by DistributedDataParallel: its hooks need every output of a network to take part in every loss, which
    objectives with phases do not promise; it would have to be wrapped anew after each surgery; and it weights workers
    alike, whatever they hold of a batch. What it gains is that sums overlap with the backward pass.
    """

    def __init__(self, config: TrainConfig, feed: Feed, world: World, watcher: Watcher) -> None:
        self._config = config
        self._feed = feed
        self._world = world
        self._watcher = watcher

    def start(self, run: Run) -> None:
        """Before the first epoch of a fresh run."""
        with self._randomness(0, 0):
            run.net.eval()
            run.objective.on_start(run.net, self._feed.passes)
        run.optimizer = make_optimizer(self._config, run.objective, run.net)  # parameters may have been replaced

    def epoch(self, run: Run) -> None:
        """The rest of an epoch, and what the objective makes of it.

        Raises ShoalError when too many steps in a row had no finite loss and gradient.
        """
        skipped = run.skipped
        with self._randomness(run.epoch + 1, self._world.rank + 1):
            run.net.train()
            scalars = self._steps(run)
        self._share_buffers(run.net)
        with self._randomness(run.epoch + 1, 0):  # no worker in it: what follows is equal on all
            end = self._end(run)
        if run.skipped > skipped:
            run.warnings.append((run.epoch, _skipped_sentence(run.epoch, run.skipped - skipped, run.plan.steps)))
        run.history.append(Pass(-scalars["loss"] if math.isnan(end.objective) else end.objective, end.clusters))
        run.moves += [(run.epoch, move) for move in end.moves]
        run.warnings += [(run.epoch, sentence) for sentence in end.warnings]
        run.scalars.append(scalars)
        run.settled = end.settled
        run.epoch, run.taken, run.sums = run.epoch + 1, 0, {}

    def _end(self, run: Run) -> EpochEnd:
        run.net.eval()
        shapes = {name: parameter.shape for name, parameter in run.net.named_parameters()}
        state = read_state(run.optimizer, run.net)
        end = run.objective.on_epoch_end(run.net, run.epoch, self._feed.passes)
        if end.surgery is not None:
            run.optimizer = make_optimizer(self._config, run.objective, run.net)
            write_state(run.optimizer, run.net, operate(state, end.surgery, shapes, run.net))
        return end

    def _steps(self, run: Run) -> dict[str, float]:
        """All steps of an epoch that are left; the mean of each scalar over the rows of all workers."""
        sums = _Sums()
        with closing(self._feed.draw(run.epoch, run.taken * self._config.accumulate)) as batches:
            for losses in _together(batches, self._config.accumulate):
                torch.manual_seed(seed_of(self._config.seed, run.steps, self._world.rank, _STEP))
                schedule(self._config, run.optimizer, (run.steps + 0.5) / run.plan.steps)
                made = self._step(run, losses, sums)
                run.in_a_row = 0 if made else run.in_a_row + 1
                run.skipped += not made
                run.taken += 1
                if run.in_a_row == self._config.max_skipped:
                    raise ShoalError(
                        f"{run.in_a_row} steps in a row had no finite loss and gradient (epoch {run.epoch + 1}); "
                        "lower the learning rate (lr), or set precision to fp32."
                    )
                if run.taken % self._config.log_every == 0 and run.taken < run.plan.steps:
                    self._log(run, sums)
        self._log(run, sums)
        return _means(run.sums)

    def _log(self, run: Run, sums: _Sums) -> None:
        since, seconds = sums.flush(self._world)
        for name, value in since.items():
            run.sums[name] = run.sums.get(name, 0.0) + value
        rate = since.get("rows", 0.0) / seconds
        rates = {"lr": run.optimizer.param_groups[0]["lr"], "rows_per_second": rate, "skipped": run.skipped}
        self._watcher.logged(run, {"epoch": run.steps / run.plan.steps, **_means(since), **rates})

    def _step(self, run: Run, batches: Sequence[Batch], sums: _Sums) -> bool:
        """Losses are means over rows, and so are those of a batch. False, and nothing changed, if one is not finite."""
        run.net.zero_grad(set_to_none=True)
        step, before = run.steps, [buffer.clone() for buffer in run.net.buffers()]
        losses = []
        for batch in batches:
            with torch.autocast(self._world.device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
                loss = run.objective.loss(run.net, batch, step, self._world)
            loss.total.backward(torch.full_like(loss.total, batch.share / len(batches)))
            losses.append(loss)
        finite = all(bool(torch.isfinite(loss.total)) for loss in losses)
        if not self._sum_gradients(run.net, finite):
            for buffer, value in zip(run.net.buffers(), before, strict=True):
                buffer.copy_(value)
            return False
        run.objective.after_backward(run.net, step)
        run.optimizer.step()
        run.objective.after_step(run.net, batches[-1], step, self._world)
        for batch, loss in zip(batches, losses, strict=True):
            sums.add(len(batch.row_B), {**loss.scalars, "loss": loss.total})
        return True

    def _sum_gradients(self, net: nn.Module, finite: bool) -> bool:
        """Add up what each part contributes. A parameter that no worker's loss used keeps no gradient.

        Whether all of it, and every worker's loss, is finite: the same answer on all workers.
        """
        parameters = list(net.parameters())
        if self._world.size > 1:
            used_P = torch.tensor([*(parameter.grad is not None for parameter in parameters), finite]).int()
            (used_P,) = self._world.sum(used_P)
            *used, agreed = used_P.tolist()
            finite = agreed == self._world.size
            taking_part = [parameter for parameter, use in zip(parameters, used, strict=True) if use]
            for parameter in taking_part:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad = parameter.grad.contiguous()
            self._world.sum_in_place([parameter.grad for parameter in taking_part if parameter.grad is not None])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return finite and bool(torch.isfinite(nn.utils.get_total_norm(gradients)))

    @contextmanager
    def _randomness(self, *key: int) -> Iterator[None]:
        """torch's own generators seeded by the run's seed and `key`; the caller's are given back."""
        device = self._world.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed_of(self._config.seed, *key))
            yield

    def _share_buffers(self, net: nn.Module) -> None:
        """Buffers that batches change (running means) become worker 0's."""
        if self._world.size == 1:
            return
        mine = [buffer if self._world.rank == 0 else torch.zeros_like(buffer) for buffer in net.buffers()]
        for buffer, value in zip(net.buffers(), self._world.sum(*mine), strict=True):
            buffer.copy_(value)


class _Sums:
    """Scalars of steps, times rows, until they are summed over workers."""

    def __init__(self) -> None:
        self._own: dict[str, Tensor] = {}
        self._began = time.perf_counter()

    def add(self, rows: int, scalars: Mapping[str, Tensor]) -> None:
        for name, value in (*scalars.items(), ("rows", torch.ones(()))):
            product = rows * value.detach().double()
            self._own[name] = self._own[name] + product if name in self._own else product

    def flush(self, world: World) -> tuple[dict[str, float], float]:
        """The sums over all workers since the last call, and the seconds. Empty if no step was made."""
        names = sorted(self._own)
        totals = world.sum(*(self._own[name] for name in names)) if names else ()
        now = time.perf_counter()
        seconds, self._began, self._own = max(now - self._began, 1e-9), now, {}
        return dict(zip(names, map(float, totals), strict=True)), seconds


def _means(sums: Mapping[str, float]) -> dict[str, float]:
    """Per row; of an epoch all of whose steps were skipped only that its loss is none."""
    return {name: value / sums["rows"] for name, value in sums.items() if name != "rows"} or {"loss": math.nan}


def _together(batches: Iterator[Batch], count: int) -> Iterator[list[Batch]]:
    """Runs of `count` batches; the last may be shorter."""
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if len(waiting) == count:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _skipped_sentence(epoch: int, skipped: int, steps: int) -> str:
    return (
        f"{skipped} of {steps} steps of epoch {epoch + 1} had no finite loss and gradient and were skipped; if that "
        "goes on, lower the learning rate (lr), or set precision to fp32."
    )
