from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL
from typing import Any

import numpy as np
import pytest
import torch
from killed_run import KILL_AT, STEPS, TRAIN
from torch import Tensor, nn
from toy_objective import Toy

from models.clusterer import DataSummary
from models.errors import ShoalError
from models.objective import Batch, EpochEnd, Loss, Objective, Passes, Plan, Reduce
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.config import TrainConfig
from pipeline.train.feed import Embeddings
from pipeline.train.loop import Run, Trainer, plan_of
from pipeline.train.optimizer import make_optimizer
from pipeline.train.result import Fit
from pipeline.train.rows import HeldRows, Rows, SavedRows
from pipeline.train.trainer import _device, run_worker, train, train_rows
from pipeline.train.world import Alone


def _train(rows: Rows, objective: Objective | None = None, store: CheckpointStore | None = None, **changes: Any) -> Fit:
    config = TrainConfig.model_validate(TRAIN.model_dump() | changes)
    return train(objective or Toy(), rows.x_ND, rows.row_N, config, store=store)


def _same(here: Fit, there: Fit) -> None:
    """To the last bit."""
    assert here.history == there.history
    assert here.scalars == there.scalars
    assert str(here.moves) == str(there.moves)  # a ratio may be nan
    for name, value in there.model.tensors().items():
        assert torch.equal(here.model.tensors()[name], value), name


def test_a_toy_learns_its_clusters(rows: Rows) -> None:
    assert isinstance(Toy(), Objective)
    fit = _train(rows, lr=1e-2, epochs=20)
    assert [each.clusters for each in fit.history[:3]] == [2, 3, 3]
    assert [(sweep, move.kind) for sweep, move in fit.moves] == [(1, "split")]
    assert fit.scalars[-1]["loss"] < fit.scalars[3]["loss"]
    assert fit.scalars[-1]["accuracy"] > 0.9
    assert not fit.settled
    assert fit.stats is None


def test_a_settled_objective_ends_training(rows: Rows) -> None:
    fit = _train(rows, Toy(settle_at=3))
    assert fit.settled
    assert len(fit.history) == 3


def test_the_same_seed_trains_the_same_and_another_does_not(rows: Rows) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _train(rows)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's generator is left alone
    torch.manual_seed(6)
    _same(_train(rows, block_rows=100), first)
    assert _train(rows, seed=1).scalars != first.scalars


@pytest.mark.slow
def test_a_killed_process_goes_on_as_if_it_had_not_been(rows: Rows, saved: SavedRows, tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_run.py")
    ended = subprocess.run([sys.executable, script, "train", saved.folder, tmp_path], check=False, timeout=300)
    assert ended.returncode == -SIGKILL
    store = CheckpointStore(tmp_path, "train")
    assert store.newest == KILL_AT * STEPS  # epoch 2, with its surgery, is among those that are not done again
    toy = Toy()
    resumed = train_rows(toy, saved, TRAIN, store=store)
    assert toy.calls == ["build", *(f"epoch {epoch}" for epoch in range(KILL_AT, TRAIN.epochs))]
    _same(resumed, _train(rows))


@pytest.mark.parametrize("stop_at", [1, 2, 4])
def test_a_stop_by_the_keyboard_loses_nothing(rows: Rows, tmp_path: Path, stop_at: int) -> None:
    def stop(step: str, done: int, total: int | None) -> None:
        assert (step, total) == ("train", TRAIN.epochs * STEPS)
        if done == stop_at * STEPS:
            raise KeyboardInterrupt

    store = CheckpointStore(tmp_path, "mine")
    with pytest.raises(KeyboardInterrupt):
        train(Toy(), rows.x_ND, rows.row_N, TRAIN, stop, store)
    _same(_train(rows, store=store), _train(rows))


def test_checkpoints_every_few_epochs_resume_from_there(rows: Rows, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "mine")

    def stop(step: str, done: int, total: int | None) -> None:
        if done == 3 * STEPS:
            raise KeyboardInterrupt

    config = TRAIN.model_copy(update={"checkpoint_every": 2})
    with pytest.raises(KeyboardInterrupt):
        train(Toy(), rows.x_ND, rows.row_N, config, stop, store)
    assert store.newest == 2 * STEPS
    _same(train(Toy(), rows.x_ND, rows.row_N, config, store=store), _train(rows))
    assert store.newest == TRAIN.epochs * STEPS


def test_another_runs_checkpoints_are_refused(rows: Rows, tmp_path: Path) -> None:
    _train(rows, store=CheckpointStore(tmp_path, "theirs"))
    with pytest.raises(ShoalError, match="are of another run"):
        _train(rows, store=CheckpointStore(tmp_path, "mine"))


def test_a_finished_run_is_not_run_again(rows: Rows, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "mine")
    first, toy = _train(rows, store=store), Toy()
    _same(_train(rows, toy, store), first)
    assert toy.calls == ["build"]


class _Recorder(Toy):
    """Notes which rows each batch held, and in which mode the network was."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Tensor] = []
        self.modes: list[bool] = []

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        assert step == len(self.batches)
        assert net.training
        self.batches.append(batch.row_B)
        return super().loss(net, batch, step, reduce)

    def on_epoch_end(self, net: nn.Module, epoch: int, passes: Passes) -> EpochEnd:
        self.modes.append(net.training)
        return super().on_epoch_end(net, epoch, passes)


def test_every_row_is_in_one_batch_of_each_epoch(rows: Rows) -> None:
    recorder = _Recorder()
    _train(rows, recorder, epochs=2)
    epochs = [torch.cat(recorder.batches[:16]), torch.cat(recorder.batches[16:])]
    assert {len(batch) for batch in recorder.batches} == {62, 63}  # 1,003 rows in 16 batches of at most 64
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch.numpy()), np.sort(rows.row_N))
    assert not torch.equal(*epochs)
    assert recorder.modes == [False, False]


class _Frozen(Toy):
    """Its loss does not use the first layer before step 20."""

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        found = super().loss(net, batch, step, reduce)
        return found if step >= 20 else Loss((net[2].weight ** 2).sum(), found.scalars)


def test_parameters_that_a_loss_does_not_use_stay_as_they_are(rows: Rows) -> None:
    seen: list[Tensor] = []

    class Watched(_Frozen):
        def after_step(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> None:
            seen.append(net[0].weight.detach().clone())

    _train(rows, Watched(), epochs=2, weight_decay=0.1)
    assert all(torch.equal(weight, seen[0]) for weight in seen[:20])
    assert not torch.equal(seen[20], seen[0])


class _Broken(Toy):
    """Its loss is not finite in some steps; keeps the network's weights as they are after each that counts."""

    def __init__(self, broken: range) -> None:
        super().__init__()
        self.broken = broken
        self.weights: dict[int, Tensor] = {}

    def build(self, data: DataSummary, plan: Plan) -> nn.Module:
        return super().build(data, plan).append(nn.BatchNorm1d(2, affine=False))

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        found = super().loss(net, batch, step, reduce)
        if step not in self.broken:
            return found
        net[3](torch.full((2, 2), torch.inf))
        return Loss(found.total * torch.nan, found.scalars)

    def after_step(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> None:
        self.weights[step] = net[0].weight.detach().clone()
        assert net[3].running_mean.isfinite().all()

    def on_epoch_end(self, net: nn.Module, epoch: int, passes: Passes) -> EpochEnd:
        return EpochEnd(clusters=2)


def test_steps_that_are_not_finite_are_skipped_and_counted(rows: Rows) -> None:
    toy = _Broken(range(3, 6))
    with pytest.warns(UserWarning, match="3 of 16 steps of epoch 1 had no finite loss and gradient and were skipped"):
        run = run_worker(toy, Embeddings(HeldRows(rows.x_ND, rows.row_N)), TRAIN, Alone())
    assert run.skipped == 3
    assert set(toy.weights) == set(range(STEPS * TRAIN.epochs)) - {3, 4, 5}
    assert all(np.isfinite(value) for scalars in run.scalars for value in scalars.values())
    assert run.scalars[0]["batch"] == pytest.approx(1003 / STEPS, abs=0.5)  # means are over what was counted


@pytest.mark.filterwarnings("ignore:.*were skipped")
def test_steps_in_a_row_are_counted_over_epochs(rows: Rows) -> None:
    with pytest.raises(ShoalError, match=r"10 steps in a row had no finite loss and gradient \(epoch 3\)"):
        _train(rows[:250], _Broken(range(99)))  # 4 steps an epoch


def test_a_run_without_finite_steps_is_a_sentence(rows: Rows) -> None:
    with pytest.raises(ShoalError, match=r"10 steps in a row had no finite loss and gradient \(epoch 2\); lower the l"):
        _train(rows, _Broken(range(20, 99)))


def test_no_rows_are_a_sentence() -> None:
    with pytest.raises(ShoalError, match="0 embeddings but a fit needs at least 1"):
        train(Toy(), np.empty((0, 3), np.float32), np.empty(0, np.int64), TRAIN)


def test_a_gpu_that_is_not_there_is_a_sentence(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ShoalError, match="gpus_per_worker is 1 but this process sees no GPU"):
        _train(rows, gpus_per_worker=1)


def test_gpus_are_taken_where_there_are_any(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _train(rows, gpus_per_worker=None).history == _train(rows, gpus_per_worker=0).history
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert _device(TrainConfig(gpus_per_worker=None)).type == "cuda"
    assert _device(TrainConfig(gpus_per_worker=0)).type == "cpu"


def test_more_workers_than_a_batch_has_rows_are_a_sentence(rows: Rows, saved: SavedRows, tmp_path: Path) -> None:
    held, store = HeldRows(rows.x_ND, rows.row_N), CheckpointStore(tmp_path, "mine")
    Embeddings(held).open(TRAIN, 64, Alone(), store)
    with pytest.raises(ShoalError, match="Batches of 62 rows cannot be cut into parts for 70 workers"):
        Embeddings(saved).open(TRAIN, 64, Alone(size=70), store)


def test_one_row_trains(rows: Rows) -> None:
    assert len(_train(rows[:1], Toy(clusters=1), epochs=1).history) == 1


def test_bf16_trains_and_keeps_float32_weights(rows: Rows) -> None:
    kinds: list[Mapping[str, torch.dtype]] = []

    class Watched(Toy):
        def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
            kinds.append({"out": net(batch.x_BD).dtype, "weight": net[0].weight.dtype})
            return super().loss(net, batch, step, reduce)

    fit = _train(rows, Watched(), precision="bf16")
    assert kinds[0] == {"out": torch.bfloat16, "weight": torch.float32}
    assert fit.scalars[-1]["loss"] == pytest.approx(_train(rows).scalars[-1]["loss"], rel=0.05)


class _Hard(Toy):
    """Stops as if by the keyboard before the loss of some step."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.seen: list[int] = []

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        if step == self.at:
            raise KeyboardInterrupt
        self.seen.append(step)
        return super().loss(net, batch, step, reduce)


def test_a_run_that_is_stopped_in_mid_epoch_goes_on_from_there(rows: Rows, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "mine")
    changes = {"log_every": 3, "checkpoint_minutes": 1e-9}
    with pytest.raises(KeyboardInterrupt):
        _train(rows, _Hard(2 * STEPS + 11), store, **changes)
    assert store.newest == 2 * STEPS + 9
    rest = _Hard(-1)
    _same(_train(rows, rest, store, **changes), _train(rows, log_every=3))
    assert rest.seen == list(range(2 * STEPS + 9, TRAIN.epochs * STEPS))


class _Counted(_Recorder):
    """Four losses of a step, which all count as that step's."""

    def loss(self, net: nn.Module, batch: Batch, step: int, reduce: Reduce) -> Loss:
        assert step == len(self.batches) // 4
        self.batches.append(batch.row_B)
        return Toy.loss(self, net, batch, step, reduce)


def test_parts_of_a_batch_whose_gradients_accumulate_are_the_batch(rows: Rows) -> None:
    even = rows[:960]  # 15 batches of 64, each of four equal parts
    whole, parts = _Recorder(), _Counted()
    together, apart = _train(even, whole, epochs=1), _train(even, parts, epochs=1, accumulate=4)
    assert {len(batch) for batch in parts.batches} == {16}
    assert torch.equal(torch.cat(parts.batches), torch.cat(whole.batches))
    assert apart.scalars[0]["loss"] == pytest.approx(together.scalars[0]["loss"], rel=1e-5)


class _Lines:
    """Keeps what it is told of a run."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, Mapping[str, float]]] = []

    def logged(self, run: Run, means: Mapping[str, float]) -> None:
        self.lines.append((run.steps, dict(means)))


def test_means_are_told_every_few_steps_and_at_the_end_of_an_epoch(rows: Rows) -> None:
    lines, held = _Lines(), Embeddings(HeldRows(rows.x_ND, rows.row_N))
    config = TRAIN.model_copy(update={"epochs": 1, "log_every": 6, "schedule": "cosine"})
    feed = held.open(config, 64, Alone(), None)
    toy, plan = Toy(), plan_of(len(rows), config)
    net = toy.build(feed.data, plan)
    run = Run(toy, net, make_optimizer(config, toy, net), plan)
    Trainer(config, feed, Alone(), lines).epoch(run)
    assert [step for step, _ in lines.lines] == [6, 12, 16]
    assert [means["epoch"] for _, means in lines.lines] == [6 / 16, 12 / 16, 1.0]
    rates = [means["lr"] for _, means in lines.lines]
    assert rates == sorted(rates, reverse=True)
    counts = np.diff([1003 * step // 16 for step in (0, 6, 12, 16)])
    mean = np.average([means["loss"] for _, means in lines.lines], weights=counts)
    assert run.scalars[0]["loss"] == pytest.approx(mean, rel=1e-9)


def test_an_objectives_warnings_are_part_of_the_story(rows: Rows, tmp_path: Path) -> None:
    class Worried(Toy):
        def on_epoch_end(self, net: nn.Module, epoch: int, passes: Passes) -> EpochEnd:
            return replace(super().on_epoch_end(net, epoch, passes), warnings=(f"epoch {epoch} was odd",))

    store = CheckpointStore(tmp_path, "mine")
    with pytest.warns(UserWarning, match="epoch 1 was odd"):
        first = _train(rows, Worried(), store, epochs=2)
    assert first.warnings == ("epoch 0 was odd", "epoch 1 was odd")
    assert _train(rows, Worried(), store, epochs=2).warnings == first.warnings
