"""What a process says to Prometheus: counters and gauges of the Ray session it is in, exported as `ray_shoal_…`.

A metric is declared once, in the module that tells it. Telling costs a few microseconds where there is a session and
nothing where there is none, changes no result and raises nothing. Every process exports its own: sums over processes
are left to whoever reads them. All have the label `run`, the run's id from the environment.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

RUN_ID = "SHOAL_RUN_ID"


def ray_is_up() -> bool:
    """Whether this process is in a Ray session; without importing Ray, which takes seconds."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@dataclass(frozen=True)
class Counter:
    """Something that is counted; Ray exports it as `ray_NAME_total`, with its labels and `run`."""

    name: str
    what: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}_total"

    def add(self, value: float, **labels: str) -> None:
        """Count `value` more; what is not above zero is passed over, as Ray would refuse it."""
        if ray_is_up():
            _tell(self, value, labels)


@dataclass(frozen=True)
class Gauge:
    """Something that is as it is now; Ray exports it as `ray_NAME` while the process that told it lives."""

    name: str
    what: str
    labels: tuple[str, ...] = ()

    @property
    def exported(self) -> str:
        """Its name in Prometheus."""
        return f"ray_{self.name}"

    def set(self, value: float, **labels: str) -> None:
        """From now on it is `value`; what is not finite is passed over, and the last value stays."""
        if ray_is_up():
            _tell(self, value, labels)


UNDER_WAY = Gauge("shoal_under_way", "1 while the step is under way, 0 when it is over.", ("step",))


@contextmanager
def under_way(step: str) -> Iterator[None]:
    """Tell that a step has begun, and in the end that it is over, however it ended."""
    UNDER_WAY.set(1, step=step)
    try:
        yield
    finally:
        UNDER_WAY.set(0, step=step)


def _tell(metric: Counter | Gauge, value: float, labels: dict[str, str]) -> None:
    try:
        if value > 0 if isinstance(metric, Counter) else math.isfinite(value):
            _exporter(metric)(value, {**labels, "run": os.environ.get(RUN_ID, "")})
    except Exception as error:  # of whatever kind: nothing of a run depends on it
        _warn(metric.name, str(error))


@cache
def _exporter(metric: Counter | Gauge) -> Callable[[float, dict[str, str]], None]:
    """Made at the first value; it outlives a session, and serves the next one as well."""
    from ray.util import metrics as of_ray  # noqa: PLC0415  only where Ray is imported anyhow

    labels = (*metric.labels, "run")
    if isinstance(metric, Gauge):
        return of_ray.Gauge(metric.name, metric.what, labels).set
    return of_ray.Counter(metric.name, metric.what, labels).inc


@cache
def _warn(name: str, error: str) -> None:
    warnings.warn(f"The metric {name} cannot be told ({error}); the run goes on without it.", stacklevel=2)
