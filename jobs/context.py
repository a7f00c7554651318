"""The machine a command runs on: a Ray of its own, or the cluster it is told of."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from pydantic import Field

from models.config import Config
from models.errors import ShoalError

_QUIET = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_TQDM": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


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
def local_ray(config: RayConfig, *, needed: bool = True, preload: str | None = None) -> Iterator[None]:
    """A Ray session for the commands inside; what it started it stops, and a session already open is left alone.

    Nothing where none is `needed`. The module `preload` is imported first: once Ray is up, the machine has its workers
    to start. Takes 4-7 s to start. Raises ShoalError when the cluster of `address` does not
    answer.
    """
    if not needed:
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    _prepare_environment(own=address == "local")
    import ray  # noqa: PLC0415  only now: its C++ part reads the environment when it loads

    if preload is not None:
        import_module(preload)

    if ray.is_initialized():
        yield
        return
    _check_reachable(address)
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **_options(config, address))
    try:
        yield
    finally:
        ray.shutdown()


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
