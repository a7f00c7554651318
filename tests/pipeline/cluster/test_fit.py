from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from signal import SIGKILL

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.dpm.config import DPMConfig
from models.errors import ShoalError
from models.gmm import GMMConfig
from models.kmeans import KMeansConfig
from pipeline.cluster.cluster import fit_array
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fit import Fit, FitConfig, fit, summarize, total
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.rows import HeldRows

KILLED = GMMConfig(clusters=5, restarts=1, tolerance=0)  # as in killed_run.py
SLOWLY = FitConfig(block_rows=100, max_passes=12, checkpoint_every_s=0)


def _same(here: Fit, there: Fit) -> None:
    """To the last bit."""
    assert here.history == there.history
    assert str(here.moves) == str(there.moves)  # a ratio may be nan
    assert here.stats is not None
    assert there.stats is not None
    for found, expected in ((here.model, there.model), (here.stats, there.stats)):
        for name, value in expected.tensors().items():
            assert torch.equal(found.tensors()[name], value), name


def _rows(count: int = 600, seed: int = 0, spread: float = 12) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x_ND = (rng.standard_normal((count, 3)) + spread * rng.integers(0, 2, (count, 3))).astype(np.float32)
    return x_ND, rng.integers(-(2**62), 2**62, count)


@settings(max_examples=20)
@given(block=st.integers(1, 700))
def test_summary_does_not_depend_on_blocks(block: int) -> None:
    x_ND, row_N = _rows()
    whole, parts = (summarize(x_ND, row_N, FitConfig(block_rows=size, sample_rows=100)) for size in (600, block))
    torch.testing.assert_close(parts.covariance_DD, whole.covariance_DD, rtol=1e-10, atol=1e-12)
    assert torch.equal(parts.sample_MD, whole.sample_MD)


def test_the_sample_does_not_depend_on_the_order_of_rows() -> None:
    x_ND, row_N = _rows()
    order_N = np.random.default_rng(1).permutation(len(x_ND))
    config = FitConfig(sample_rows=50)
    here, there = summarize(x_ND, row_N, config), summarize(x_ND[order_N], row_N[order_N], config)
    assert torch.equal(here.sample_MD, there.sample_MD)
    np.testing.assert_allclose(here.mean_D, x_ND.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(here.covariance_DD, np.cov(x_ND.astype(np.float64).T, bias=True), rtol=1e-9)


@pytest.mark.parametrize("algorithm", [DPMConfig(), KMeansConfig(clusters=8)], ids=lambda each: each.kind)
def test_the_order_of_rows_does_not_change_their_clusters(algorithm: DPMConfig | KMeansConfig) -> None:
    x_ND, row_N = _rows()
    order_N = np.random.default_rng(1).permutation(len(x_ND))
    labels = []
    for order in (np.arange(len(x_ND)), order_N):
        model = fit(algorithm, x_ND[order], row_N[order], FitConfig()).model
        labels.append(model.assign(torch.from_numpy(x_ND)).cluster_N)
    assert torch.equal(labels[0], labels[1])
    assert len(labels[0].unique()) == 8


def test_statistics_are_those_of_the_final_model() -> None:
    x_ND, row_N = _rows()
    found = fit(DPMConfig(), x_ND, row_N, FitConfig())
    again = total(found.model, x_ND, row_N, 100)
    assert found.stats is not None
    for name, value in found.stats.tensors().items():
        torch.testing.assert_close(value, again.tensors()[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("algorithm", [DPMConfig(), GMMConfig(clusters=8)], ids=lambda each: each.kind)
def test_threads_do_not_change_a_fit(algorithm: DPMConfig | GMMConfig) -> None:
    x_ND, row_N = _rows()
    one, two = (fit(algorithm, x_ND, row_N, FitConfig(block_rows=64, threads=threads)) for threads in (1, 2))
    _same(one, two)


def test_a_killed_fit_goes_on_with_the_same_history(tmp_path: Path) -> None:
    x_ND, row_N = _rows(spread=2.5)
    HeldRows(x_ND, row_N).saved(tmp_path / "rows")
    script = Path(__file__).parents[1] / "train" / "killed_run.py"
    run = [sys.executable, script, "fit", tmp_path / "rows", tmp_path / "store"]
    assert subprocess.run(run, check=False, timeout=300).returncode == -SIGKILL
    store, passes = CheckpointStore(tmp_path / "store", "fit"), list[int]()
    killed = store.latest()
    assert killed is not None
    kept = len(killed.record["history"])
    assert 1 <= kept <= 3  # the first at once; others when the one before has paid for itself
    resumed = fit(KILLED, x_ND, row_N, SLOWLY, lambda _, done, __: passes.append(done), store)
    assert passes == list(range(kept + 1, 13))
    _same(resumed, fit(KILLED, x_ND, row_N, SLOWLY))


def test_a_stop_by_the_keyboard_keeps_every_finished_pass(tmp_path: Path) -> None:
    def stop(step: str, done: int, total: int | None) -> None:
        if done == 5:
            raise KeyboardInterrupt

    (x_ND, row_N), store = _rows(spread=2.5), CheckpointStore(tmp_path, "mine")
    seldom = SLOWLY.model_copy(update={"checkpoint_every_s": 3600})
    with pytest.raises(KeyboardInterrupt):
        fit(KILLED, x_ND, row_N, seldom, stop, store)
    passes: list[int] = []
    resumed = fit(KILLED, x_ND, row_N, seldom, lambda _, done, __: passes.append(done), store)
    assert passes[0] == 6
    _same(resumed, fit(KILLED, x_ND, row_N, seldom))


def test_moves_and_the_random_state_survive_a_stop(tmp_path: Path) -> None:
    def stop(step: str, done: int, total: int | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    (x_ND, row_N), store = _rows(), CheckpointStore(tmp_path, "mine")
    config, algorithm = FitConfig(max_passes=8), DPMConfig(metropolis=True, initial_clusters=1)
    whole = fit(algorithm, x_ND, row_N, config)
    assert any(sweep < 4 for sweep, _ in whole.moves)
    assert any(sweep >= 4 for sweep, _ in whole.moves)
    with pytest.raises(KeyboardInterrupt):
        fit(algorithm, x_ND, row_N, config, stop, store)
    _same(fit(algorithm, x_ND, row_N, config, store=store), whole)


def test_a_finished_fit_is_read_back_without_a_pass(tmp_path: Path) -> None:
    (x_ND, row_N), store = _rows(), CheckpointStore(tmp_path, "mine")
    first = fit(KMeansConfig(clusters=4), x_ND, row_N, FitConfig(), store=store)
    again = fit(KMeansConfig(clusters=4), x_ND[:1], row_N[:1], FitConfig(), store=store)
    _same(again, first)
    assert again.settled


def test_a_store_of_another_fit_is_refused(tmp_path: Path) -> None:
    x_ND, row_N = _rows()
    fit(KMeansConfig(clusters=4), x_ND, row_N, FitConfig(), store=CheckpointStore(tmp_path, "theirs"))
    with pytest.raises(ShoalError, match="are of another run"):
        fit(KMeansConfig(clusters=4), x_ND, row_N, FitConfig(), store=CheckpointStore(tmp_path, "mine"))


def test_several_workers_without_ray_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # an earlier test may have started one
    x_ND, row_N = _rows()
    with pytest.raises(ShoalError, match="2 workers need a Ray session but there is none"):
        fit(KMeansConfig(clusters=4), x_ND, row_N, FitConfig(workers=2))


def test_running_out_of_passes_is_said() -> None:
    x_ND, row_N = _rows()
    found = fit(DPMConfig(), x_ND, row_N, FitConfig(max_passes=2))
    assert not found.settled
    assert len(found.history) == 2


def test_no_rows_is_a_sentence() -> None:
    with pytest.raises(ShoalError, match="0 embeddings but a fit needs at least 1"):
        fit_array(np.empty((0, 4), np.float32), ClusterConfig())
