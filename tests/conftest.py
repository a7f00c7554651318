"""One Ray for the whole test session, and deliberate thread counts."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
sys.path.insert(0, str(Path(__file__).with_name("support")))  # for object_store

import pytest
import torch
from hypothesis import settings
from object_store import ObjectStore, running

torch.set_num_threads(1)  # two threads on two busy cores wait for each other
settings.register_profile("shoal", deadline=None, max_examples=50)
settings.load_profile("shoal")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    from jobs.context import RayConfig, local_ray  # noqa: PLC0415  # most tests need no Ray

    with local_ray(RayConfig(num_cpus=2)):
        yield


@pytest.fixture(scope="session")
def s3_server() -> Iterator[ObjectStore]:
    with running() as store:
        yield store


@pytest.fixture
def bucket(s3_server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """An S3 bucket of the test's own, as the environment names it: no other store can be reached by accident."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-key-of-tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-secret-of-tests")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3_server.begin(f"bucket-{uuid4().hex}")
    return s3_server
