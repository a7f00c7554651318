"""One Ray for the whole test session, and deliberate thread counts."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # two threads on two busy cores wait for each other
settings.register_profile("shoal", deadline=None, max_examples=50)
settings.load_profile("shoal")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    from jobs.context import RayConfig, local_ray  # noqa: PLC0415  # most tests need no Ray

    with local_ray(RayConfig(num_cpus=2)):
        yield
