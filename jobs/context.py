"""The machine a command runs on: a Ray of its own, or the cluster it is told of."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from typing import Any

from pydantic import Field

from jobs.journal import RUN_ID, current, interrupted, submission
from jobs.room import Room, room_for
from models.config import Config
from models.errors import ShoalError
from pipeline.progress import Progress, silent

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_TQDM": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_PATIENCE_S = 10


class RayConfig(Config):
    """Where tasks run. A Ray is never joined because it happens to be there: only by `address` or RAY_ADDRESS."""

    address: str | None = Field(
        default=None, description="cluster to join; `local`: a Ray of our own; null: RAY_ADDRESS if set, else `local`"
    )
    num_cpus: int | None = Field(default=None, ge=1, description="CPU slots of a local Ray; null: what the machine has")
    object_store_bytes: int | None = Field(
        default=None, ge=80_000_000, description="object store of a local Ray; null: 15 % of memory, at most 2 GB"
    )
    wait_s: float = Field(
        default=0, ge=0, description="how long to wait for machines that a cluster has not got yet, and asks for"
    )


@contextmanager
def local_ray(
    config: RayConfig,
    *,
    needed: bool = True,
    preload: str | None = None,
    room: Room = (),
    on_progress: Progress = silent,
) -> Iterator[None]:
    """A Ray session for the commands inside; what it started it stops, and a session already open is left alone.

    Nothing where none is `needed`, unless a cluster is named: then its dashboard is to know of the work. The module
    `preload` is imported first: once Ray is up, the machine has its workers to start. `room` is what the work inside
    wants at once, such as `[{"CPU": 2, "GPU": 1}] * 8`: with `wait_s` a cluster is asked for it, and waited for. Takes
    4-7 s to start, a tenth of a second to join. Raises ShoalError when the cluster of `address` does not answer.
    """
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    if not needed and (address == "local" or not _answers(address)):
        yield
        return
    _prepare_environment(own=address == "local")
    import ray  # noqa: PLC0415  only now: its C++ part reads the environment when it loads

    if preload is not None:
        import_module(preload)

    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    with _signals_kept(), _start_explained(address):
        ray.init(
            address=address,
            logging_level=logging.ERROR,
            log_to_driver=False,
            job_config=ray.job_config.JobConfig(metadata=_metadata()),
            runtime_env=_environment(own=address == "local"),
            **_options(config, address),
        )
    shut_down = True
    try:
        with room_for(room, 0 if address == "local" else config.wait_s, on_progress):
            yield
    except KeyboardInterrupt:
        interrupted()
        shut_down = address == "local"  # a cluster notices by itself that this process is gone
        raise
    finally:
        if shut_down:
            _let_executors_end()
            ray.shutdown()


def _let_executors_end() -> None:
    """Ray Data's threads may go on for a moment; a Ray that is gone by then ends the process on the spot."""
    for thread in threading.enumerate():
        if type(thread).__name__ == "StreamingExecutor":
            thread.join(_PATIENCE_S)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray would take SIGTERM for itself, and end the process as one that met a defect."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _start_explained(address: str) -> Iterator[None]:
    """What Ray raises where it does not come up, as a sentence; its own says little, and hides in a traceback."""
    try:
        yield
    except (RuntimeError, OSError) as error:  # connections and time limits among them
        cause = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
        if address == "local":
            sentence = f"Ray did not start on this machine ({cause}); see that memory and the disk of /tmp suffice"
        else:
            sentence = (
                f"The Ray cluster at {address!r} does not take this command ({cause}); see that Ray here has its "
                "version, and RAY_AUTH_MODE=token with RAY_AUTH_TOKEN_PATH its token"
            )
        raise ShoalError(f"{sentence}, and run the same command again: it continues.") from error


def _metadata() -> dict[str, str]:
    """What Ray's dashboard shows of the work, beside what `shoal submit` said of it."""
    work = current()
    told = {
        "shoal_run": work.run,
        "shoal_command": work.command,
        "shoal_config": work.config,
        "shoal_output": work.output,
        "shoal_version": version("shoal"),
    }
    return {name: value for name, value in told.items() if value is not None}


def _environment(own: bool) -> dict[str, Any] | None:
    """What workers on other machines are to know; those of our own Ray, and of a submitted job, know it."""
    run = os.environ.get(RUN_ID)
    return None if own or not run or submission() else {"env_vars": {RUN_ID: run}}


def _answers(address: str) -> bool:
    try:
        _check_reachable(address)
    except ShoalError:
        return False
    return True


def _check_reachable(address: str) -> None:
    """Ray itself would try for more than ten minutes before it says that nobody is there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except OSError as error:
        raise ShoalError(
            f"No Ray cluster answers at {address!r} ({error}); "
            "start one there, or use this machine with --set ray.address=local."
        ) from error


def _prepare_environment(own: bool) -> None:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if own and "RAY_AUTH_MODE" not in os.environ:
        # Ray would write a token to the home folder, which changes every later `ray start` there. Ours lives and dies
        # with this process and its children, and keeps other users of the machine out.
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))


def _options(config: RayConfig, address: str) -> dict[str, Any]:
    if address != "local":
        return {}
    return {
        "include_dashboard": False,
        "num_cpus": config.num_cpus,
        "object_store_memory": config.object_store_bytes or _default_object_store_bytes(),
    }


def _default_object_store_bytes() -> int:
    """Pixels never pass through the object store, so it holds file names and small tables."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(100_000_000, min(2_000_000_000, memory_bytes * 15 // 100))
