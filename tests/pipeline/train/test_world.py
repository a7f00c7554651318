"""Two processes against one: the same sums, the same fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gloo_worker import ALGORITHMS, FIT, TRAIN, store
from swav_run import IMAGES, LOOP, STEPS, STOP, Double, Held
from toy_objective import Toy

from models.objective import ImageSummary
from pipeline.cluster.fit import _finished, fit_rows
from pipeline.train.checkpoints import Checkpoint
from pipeline.train.feed import Embeddings
from pipeline.train.loop import plan_of
from pipeline.train.passes import WorkerRows
from pipeline.train.rows import HeldRows, Rows, SavedRows, all_rows, span
from pipeline.train.trainer import Setting, _trained, run_worker, train_rows
from pipeline.train.world import Alone

pytestmark = pytest.mark.slow  # two processes that both import torch take half a minute to start


@pytest.fixture(scope="module")
def folder(saved: SavedRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left; see gloo_worker.py."""
    folder = tmp_path_factory.mktemp("group")
    (folder / "rows").symlink_to(saved.folder)
    script = Path(__file__).with_name("gloo_worker.py")
    started = [subprocess.Popen([sys.executable, script, str(rank), "2", folder]) for rank in range(2)]
    assert [each.wait(timeout=300) for each in started] == [0, 0]
    return folder


@pytest.fixture(scope="module")
def sums(folder: Path) -> Checkpoint:
    found = store(folder, "sums").latest()
    assert found is not None
    return found


def test_sums_over_two_workers_by_hand(sums: Checkpoint) -> None:
    expected = 2 * torch.arange(1000, dtype=torch.float64).reshape(10, 100) + 1
    assert torch.equal(sums.tensors["big"], expected)
    assert sums.tensors["count"].tolist() == [3]
    assert sums.tensors["half"].tolist() == [1.0, 1.0, 1.0]
    assert sums.tensors["strided"].tolist() == [[3.0, 3.0], [0.0, 0.0]]
    assert sums.tensors["largest"].tolist() == [1.0, 0.0, 1.0]  # of (1, 0, -1) and (-1, 0, 1)


def test_alone_a_sum_is_its_summand() -> None:
    summand = torch.ones(2)
    assert Alone().sum(summand)[0] is summand
    assert Alone().max(summand)[0] is summand
    assert Alone().share(b"mine") == b"mine"


def test_the_summary_of_two_workers_is_that_of_one(sums: Checkpoint, rows: Rows) -> None:
    whole = WorkerRows(rows, Alone(), 100).summarize(300, seed=0)
    assert sums.record["rows"] == len(rows)
    assert torch.equal(sums.tensors["sample_MD"], whole.sample_MD)
    torch.testing.assert_close(sums.tensors["mean_D"], whole.mean_D, rtol=1e-12, atol=0)
    torch.testing.assert_close(sums.tensors["covariance_DD"], whole.covariance_DD, rtol=1e-11, atol=0)


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_two_workers_fit_what_one_does(kind: str, folder: Path, saved: SavedRows) -> None:
    alone = fit_rows(ALGORITHMS[kind], saved, FIT)
    found = store(folder, kind).latest()
    assert found is not None
    assert found.record["finished"]
    together = _finished(ALGORITHMS[kind], found)
    assert together.settled
    assert [each.clusters for each in together.history] == [each.clusters for each in alone.history]
    np.testing.assert_allclose(
        [each.objective for each in together.history], [each.objective for each in alone.history], rtol=1e-9
    )
    assert [(sweep, move.kind, move.clusters) for sweep, move in together.moves] == [
        (sweep, move.kind, move.clusters) for sweep, move in alone.moves
    ]
    assert alone.stats is not None
    assert together.stats is not None
    for name, value in alone.stats.tensors().items():
        torch.testing.assert_close(together.stats.tensors()[name], value, rtol=1e-6, atol=1e-6)
    x_ND = torch.from_numpy(np.array(saved.read(0, saved.rows).x_ND))
    assert torch.equal(together.model.assign(x_ND).cluster_N, alone.model.assign(x_ND).cluster_N)


def test_two_workers_train_what_one_does(folder: Path, saved: SavedRows) -> None:
    alone = train_rows(Toy(), saved, TRAIN)
    run = _trained(Toy(), Embeddings(saved), TRAIN, store(folder, "toy"))
    assert str(run.moves) == str(list(alone.moves))  # a ratio may be nan
    assert [each.clusters for each in run.history] == [2, 3, 3, 3]
    np.testing.assert_allclose(
        [each.objective for each in run.history], [each.objective for each in alone.history], rtol=1e-9
    )
    for here, there in zip(run.scalars, alone.scalars, strict=True):
        assert here.keys() == there.keys() == {"loss", "accuracy", "batch"}
        assert dict(here) == pytest.approx(dict(there), rel=1e-4)
    assert all(scalars["batch"] > 60 for scalars in run.scalars)  # `reduce` saw whole batches, not one worker's part


def test_a_step_that_is_not_finite_on_one_worker_is_skipped_on_both(folder: Path) -> None:
    found = store(folder, "broken").latest()
    assert found is not None
    assert (found.number, found.record["skipped"]) == (TRAIN.epochs * 16, 2)
    assert all(value.isfinite().all() for value in found.tensors.values())


def test_swav_stopped_on_two_workers_in_mid_epoch_goes_on_alone_as_if_nothing_had_been(folder: Path) -> None:
    checkpoints = store(folder, "swav")
    assert checkpoints.newest == STOP
    resumed = run_worker(Double(), Held(), LOOP, Alone(), Setting(checkpoints))
    alone = run_worker(Double(), Held(), LOOP, Alone())
    assert (resumed.steps, alone.steps) == (3 * STEPS, 3 * STEPS)
    moved = 0.0
    begun = Double().build(ImageSummary(IMAGES, LOOP.seed), plan_of(IMAGES, LOOP)).state_dict()
    for name, value in alone.net.state_dict().items():
        torch.testing.assert_close(resumed.net.state_dict()[name], value, rtol=0, atol=1e-9, msg=name)
        moved = max(moved, float((value - begun[name]).abs().max()))
    assert moved > 0.01
    for name, value in alone.objective.state().items():
        torch.testing.assert_close(resumed.objective.state()[name], value, rtol=0, atol=1e-9, equal_nan=True, msg=name)
    assert float(alone.objective.state()["queue.filled"]) == 24
    for here, there in zip(resumed.scalars, alone.scalars, strict=True):
        assert dict(here) == pytest.approx(dict(there), rel=1e-9)


@pytest.mark.parametrize(("count", "block", "size"), [(1003, 100, 2), (1003, 100, 4), (5, 10, 3), (0, 10, 2)])
def test_spans_are_whole_blocks_and_cover_all_rows(count: int, block: int, size: int) -> None:
    spans = [span(count, block, rank, size) for rank in range(size)]
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == count
    assert all(begin % block == 0 or begin == count for begin, _ in spans)


def test_rows_that_are_held_saved_and_alone_are_the_same(rows: Rows, saved: SavedRows, tmp_path: Path) -> None:
    held = HeldRows(rows.x_ND, rows.row_N)
    assert held.fingerprint() == saved.fingerprint()
    assert (held.rows, held.dim) == (saved.rows, saved.dim) == (1003, 3)
    changed = np.array(rows.x_ND)
    changed[5, 1] += 1
    assert HeldRows(changed, rows.row_N).fingerprint() != held.fingerprint()
    np.testing.assert_array_equal(all_rows(saved, Alone()).x_ND, rows.x_ND)
    np.testing.assert_array_equal(saved.read(100, 250).row_N, rows.row_N[100:250])
