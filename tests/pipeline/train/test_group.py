"""The Ray Train implementation of both seams, against the one in process. Starting a group takes most of the time."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from queue import Queue

import numpy as np
import pytest
import torch
import torch.distributed as dist
import toy_objective
from gloo_worker import TRAIN
from object_store import FORBIDDEN, ObjectStore
from pyarrow.fs import AzureFileSystem
from torch import nn
from toy_objective import Toy

from models.errors import ShoalError
from models.gmm import GMMConfig
from models.kmeans import KMeansConfig
from models.objective import EpochEnd, Passes
from models.reduce import PCAConfig
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fit import FitConfig, fit_rows
from pipeline.cluster.published import published
from pipeline.tables.collection import Collection
from pipeline.tables.imports import import_files
from pipeline.tables.place import place
from pipeline.train import group
from pipeline.train.checkpoints import Checkpoint, CheckpointStore
from pipeline.train.group import Workers, _Storage, _watched, run_group, with_gpus
from pipeline.train.result import Fit
from pipeline.train.rows import HeldRows, Rows, SavedRows
from pipeline.train.trainer import train, train_rows
from pipeline.train.world import World

TWO = Workers(count=2, cpus=1, gpus=0, max_failures=0)


@pytest.mark.parametrize(
    ("asked", "there", "gpus"),
    [(None, {"CPU": 8.0, "GPU": 2.0}, 1), (None, {"CPU": 8.0}, 0), (0, {"GPU": 2.0}, 0), (1, {"CPU": 8.0}, 1)],
)
def test_workers_have_gpus_where_there_are_any_unless_it_is_said(
    asked: int | None, there: dict[str, float], gpus: int
) -> None:
    assert with_gpus(replace(TWO, gpus=asked), there).gpus == gpus


@pytest.fixture
def by_value(ray_session: None) -> Iterator[None]:
    """Workers have this repository's packages, but not its tests."""
    import sys  # noqa: PLC0415

    from ray import cloudpickle  # noqa: PLC0415

    modules = [toy_objective, sys.modules[__name__]]
    for module in modules:
        cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        cloudpickle.unregister_pickle_by_value(module)


def _close(here: Fit, there: Fit) -> None:
    assert [each.clusters for each in here.history] == [each.clusters for each in there.history]
    np.testing.assert_allclose(
        [each.objective for each in here.history], [each.objective for each in there.history], rtol=1e-9
    )
    assert str(here.moves) == str(there.moves)
    for name, value in there.model.tensors().items():
        torch.testing.assert_close(here.model.tensors()[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_a_group_trains_what_one_process_does(by_value: None, rows: Rows, tmp_path: Path) -> None:
    seen: list[int] = []
    store = CheckpointStore(tmp_path / "run", "mine")
    config = TRAIN.model_copy(update={"workers": 2})
    together = train(Toy(), rows.x_ND, rows.row_N, config, lambda _, done, __: seen.append(done), store)
    alone = train(Toy(), rows.x_ND, rows.row_N, TRAIN)
    _close(together, alone)
    for here, there in zip(together.scalars, alone.scalars, strict=True):
        assert dict(here) == pytest.approx(dict(there), rel=1e-4)
    assert seen == sorted(seen)
    assert {path.suffix for path in store.folder.iterdir()} == {".json", ".safetensors"}  # rows and Ray's folder went
    with pytest.raises(ShoalError, match="3 workers with 1 CPU each need 3 CPU but the cluster has 2"):
        train(Toy(), rows.x_ND, rows.row_N, TRAIN.model_copy(update={"workers": 3}))


@pytest.mark.slow
def test_a_group_begins_with_the_workers_that_there_is_room_for(by_value: None, rows: Rows, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", "mine")
    config = TRAIN.model_copy(update={"workers": 5, "min_workers": 1})
    together = train(Toy(), rows.x_ND, rows.row_N, config, store=store)
    alone = train(Toy(), rows.x_ND, rows.row_N, TRAIN)
    _close(together, alone)
    assert together.scalars != alone.scalars  # rounding tells that there were several


def _fit_both(world: World, saved: SavedRows, folder: Path) -> None:
    from pipeline.cluster.fit import _fit_worker  # noqa: PLC0415

    for name, algorithm in (("kmeans", KMeansConfig(clusters=5)), ("gmm", GMMConfig(clusters=5))):
        _fit_worker(algorithm, saved, FitConfig(block_rows=100), world, CheckpointStore(folder / name, "mine"))
    if world.rank == 0:
        CheckpointStore(folder, "mine").save(Checkpoint(1, {"size": world.size}, {}))


@pytest.mark.slow
def test_a_group_clusters_a_table_as_one_process_does(by_value: None, rows: Rows, tmp_path: Path) -> None:
    tables = []
    for folder in ("one", "two"):
        names = []
        for number, part in enumerate((rows[:400], rows[400:])):
            names.append(tmp_path / f"{number}.npy")
            np.save(names[-1], part.x_ND)
        import_files(names, tmp_path / folder)
        tables.append(Collection.open(tmp_path / folder))
    config = ClusterConfig(algorithm=GMMConfig(clusters=5), reduce=PCAConfig(n_components=2))
    fits = (FitConfig(block_rows=100), FitConfig(block_rows=100, workers=2))
    for table, each in zip(tables, fits, strict=True):
        cluster(table, config.model_copy(update={"fit": each}))
    alone, together = (published(table, "gmm") for table in tables)
    assert together.labeller.config.workers == 2
    assert alone.assigned()["cluster"].equals(together.assigned()["cluster"])
    for name, value in alone.labeller.artifact.tensors.items():
        np.testing.assert_allclose(together.labeller.artifact.tensors[name], value, rtol=1e-6, atol=1e-6)
    assert not (tables[1].path / "unfinished").exists()


class _Dies(Toy):
    """Takes its worker with it at the end of epoch 2, once."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = marker

    def on_epoch_end(self, net: nn.Module, epoch: int, passes: Passes) -> EpochEnd:
        if dist.get_rank() == 0:
            with self.marker.with_name("epochs").open("a") as file:
                file.write(str(epoch))
        if epoch == 2 and dist.get_rank() == 1 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().on_epoch_end(net, epoch, passes)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(
    by_value: None, saved: SavedRows, tmp_path: Path
) -> None:
    marker, seen = tmp_path / "died", list[int]()
    config = TRAIN.model_copy(update={"workers": 2, "max_failures": 1})
    store = CheckpointStore(tmp_path / "run", "mine")
    together = train_rows(_Dies(marker), saved, config, lambda _, done, __: seen.append(done), store)
    assert marker.exists()
    assert marker.with_name("epochs").read_text() == "01223"  # what was finished is not done again
    assert seen
    _close(together, train_rows(Toy(), saved, TRAIN))


def _refuse(world: World) -> None:
    if world.rank == 1:
        raise ShoalError("Worker 1 says why.")
    world.barrier()


def _crash(world: World) -> None:
    raise ZeroDivisionError("a mistake")


@pytest.mark.slow
def test_what_a_worker_says_is_what_the_user_reads(by_value: None, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "run", "mine")
    with pytest.raises(ShoalError, match=r"^Worker 1 says why\.$"):
        run_group(_refuse, Workers(2, 1, 0, max_failures=1), store, lambda _: None)
    with pytest.raises(ShoalError, match=r"The workers failed 1 times \(.*a mistake.*\)"):
        run_group(_crash, TWO, store, lambda _: None)
    assert list(store.folder.iterdir()) == []


@pytest.mark.slow
def test_a_group_fits_what_one_process_does(by_value: None, saved: SavedRows, tmp_path: Path) -> None:
    run_group(partial(_fit_both, saved=saved, folder=tmp_path), TWO, CheckpointStore(tmp_path, "mine"), lambda _: None)
    found = CheckpointStore(tmp_path, "mine").latest()
    assert found is not None
    assert found.record == {"size": 2}
    for name, algorithm in (("kmeans", KMeansConfig(clusters=5)), ("gmm", GMMConfig(clusters=5))):
        config = FitConfig(block_rows=100)
        together = fit_rows(algorithm, saved, config, store=CheckpointStore(tmp_path / name, "mine"))  # finished there
        _close(together, fit_rows(algorithm, HeldRows(*vars(saved.read(0, saved.rows)).values()), config))


def test_a_worker_opens_the_storage_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "opened-here-only")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "aGlkZGVu")
    message = pickle.dumps(_Storage(place("az://box/run")))
    assert b"aGlkZGVu" not in message
    there = pickle.loads(message)  # noqa: S301 - our own
    assert there.base_path == "box/run/"
    assert isinstance(there.base_fs, AzureFileSystem)
    assert b"aGlkZGVu" in pickle.dumps(there.base_fs)  # from the environment of whoever unpickles


def test_the_watcher_outlives_a_store_that_does_not_answer(
    bucket: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "_WATCH_STORE_S", 0.05)
    store, seen = CheckpointStore(f"{bucket.url}/run", "mine"), Queue[int]()
    bucket.fail("^GET .*list-type", FORBIDDEN, times=3)
    with _watched(store, seen.put):
        while len(bucket.failed) < 3:
            time.sleep(0.01)
        store.save(Checkpoint(1, {}, {}))
        assert seen.get(timeout=60) == 1


def test_ray_train_is_imported_in_one_place_and_only_when_it_is_used() -> None:
    root = Path(run_group.__code__.co_filename).parents[2]
    sources = [path for package in ("models", "pipeline", "jobs") for path in (root / package).rglob("*.py")]
    assert [path.relative_to(root).as_posix() for path in sources if "import ray.train" in path.read_text()] == [
        "pipeline/train/group.py"
    ]
    assert all(
        line.startswith("    ")
        for line in Path(run_group.__code__.co_filename).read_text().splitlines()
        if "import ray" in line and "`" not in line
    )
