"""The same work on a Ray Train worker group: started, watched, and started again when a worker dies.

The only file that imports `ray.train`, and only when it is used.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any, cast
from uuid import uuid4

import pyarrow.fs as pafs
import torch

from models.errors import ShoalError
from pipeline.tables.place import Place, remove_tree
from pipeline.tables.schema import TableError
from pipeline.tables.storage import open_filesystem
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.world import Group, World

_QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # seconds until a dead worker, or the end, is noticed
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TQDM": "0",
}
_REFUSAL = "refused.json"  # beside the checkpoints: the sentence of a worker that no new start would help
_TIMEOUT_S = 24 * 3600  # of a sum: workers may wait long for each other, and Ray notices those that died
_WATCH_S = 0.5
_WATCH_STORE_S = 5.0  # each look is a request


@dataclass(frozen=True)
class Workers:
    """How many, what each of them has, and how often they are started again."""

    count: int
    cpus: int
    gpus: int | None  # None: 1 where the cluster has any
    max_failures: int
    least: int | None = None  # with how many the work may begin where there is no room for `count`


def run_group(
    work: Callable[[World], Any],
    workers: Workers,
    store: CheckpointStore,
    on_checkpoint: Callable[[int], None],
) -> None:
    """Call `work` on every worker and wait. Takes 15-40 s beside the work. Needs a Ray session.

    A group that loses a worker is started again, and its work goes on from the store's last checkpoint; so `work` must
    leave there whatever is wanted of it. `on_checkpoint` hears of each one that this process sees.

    Raises ShoalError when the cluster has no room, when a worker raised one, or when the group died once too often.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray  # noqa: PLC0415  its C++ part reads the environment when it loads
    import ray.train.torch  # noqa: PLC0415

    workers = _settled(ray, workers)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    folder = store.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _REFUSAL).unlink(missing_ok=True)
    trainer = ray.train.torch.TorchTrainer(
        partial(_worker, work, workers, folder),
        torch_config=ray.train.torch.TorchConfig(timeout_s=_TIMEOUT_S),
        scaling_config=ray.train.ScalingConfig(
            num_workers=cast(Any, workers.count if workers.least is None else (workers.least, workers.count)),
            use_gpu=bool(workers.gpus),
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": workers.gpus} if workers.gpus else {}),
        ),
        run_config=ray.train.RunConfig(
            name=uuid4().hex,  # a name used twice would be resumed by Ray
            storage_path="ray",
            storage_filesystem=_Storage(folder),  # Ray's own would know neither endpoint nor patience
            failure_config=ray.train.FailureConfig(max_failures=workers.max_failures),
        ),
    )
    try:
        with _watched(store, on_checkpoint):
            trainer.fit()
    except ray.train.TrainingFailedError as error:
        _raise_refusal(folder)
        raise ShoalError(
            f"The workers failed {workers.max_failures + 1} times ({_last_line(error)}); what they finished is kept: "
            "mend the cause and run again, or allow more with max_failures."
        ) from error
    finally:
        remove_tree(folder / "ray")
    _raise_refusal(folder)


class _Storage(pafs.SubTreeFileSystem):  # type: ignore[misc]  # pyarrow has no types
    """A folder's filesystem, which every process opens for itself.

    Pickled, one of pyarrow's would carry keys that it was opened with, and forget to repeat requests.
    """

    def __init__(self, folder: Place) -> None:
        filesystem, path = open_filesystem(str(folder))
        super().__init__(path, filesystem)
        self._folder = folder

    def __reduce__(self) -> tuple[type[_Storage], tuple[Place]]:
        return _Storage, (self._folder,)


def _worker(work: Callable[[World], Any], workers: Workers, folder: Place) -> None:
    """What Ray Train calls in each worker process."""
    import ray.train.torch  # noqa: PLC0415

    if (folder / _REFUSAL).exists():
        return
    torch.set_num_threads(workers.cpus)
    device = ray.train.torch.get_device()
    leads_machine = ray.train.get_context().get_local_rank() == 0
    try:
        work(Group(device, leads_machine))
    except (ShoalError, TableError) as error:
        # A failed worker is all that ends the others, who wait for its sums; so Ray starts the group again, in vain.
        (folder / _REFUSAL).write_text(json.dumps(str(error)))
        raise


def _settled(ray: Any, workers: Workers) -> Workers:
    """The workers with GPUs or without. Raises ShoalError unless there is a Ray with room: else they wait for ever."""
    if not ray.is_initialized():
        raise ShoalError(f"{workers.count} workers need a Ray session but there is none; start one, or set workers=1.")
    there = ray.cluster_resources()
    settled = with_gpus(workers, there)
    _require_room(there, settled)
    return settled


def with_gpus(workers: Workers, there: Mapping[str, float]) -> Workers:
    """A GPU for each where the resources that are `there` have any, if the settings leave it open."""
    return workers if workers.gpus is not None else replace(workers, gpus=int(there.get("GPU", 0) > 0))


def _require_room(there: Mapping[str, float], workers: Workers) -> None:
    least = workers.least or workers.count
    for name, each in (("CPU", workers.cpus), ("GPU", workers.gpus or 0)):
        if least * each > there.get(name, 0):
            raise ShoalError(
                f"{least} workers with {each} {name} each need {least * each} {name} but the cluster "
                f"has {there.get(name, 0):g}; set workers lower, or wait until its nodes are up."
            )


def _raise_refusal(folder: Place) -> None:
    path = folder / _REFUSAL
    if path.exists():
        sentence = json.loads(path.read_text())
        path.unlink()
        raise ShoalError(sentence)


def _last_line(error: Exception) -> str:
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__).strip()


@contextmanager
def _watched(store: CheckpointStore, on_checkpoint: Callable[[int], None]) -> Iterator[None]:
    """Tell of checkpoints as they come, from a thread."""
    over = Event()
    pause = _WATCH_S if isinstance(store.folder, Path) else _WATCH_STORE_S

    def watch() -> None:
        seen = max(_newest(store), 0)
        while not over.wait(pause):
            newest = _newest(store)
            if newest > seen:
                seen = newest
                on_checkpoint(seen)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _newest(store: CheckpointStore) -> int:
    """-1 where the folder does not answer, as the next look may find it."""
    try:
        return store.newest
    except OSError:
        return -1
