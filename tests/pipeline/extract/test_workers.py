"""The actor's body with a real ledger; the pool around it is in test_extract."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from models.backbones import BackboneConfig
from pipeline.extract.ledger import MAX_UNEXPLAINED, Ledger, Standing
from pipeline.extract.pool import Node
from pipeline.extract.shard import Job
from pipeline.extract.workers import ShardActor, cluster_nodes

pytestmark = pytest.mark.usefixtures("ray_session", "torch_threads")


@pytest.fixture
def shard(tar: Callable[..., str], png: Callable[..., bytes], tmp_path: Path) -> str:
    return tar(tmp_path / "s.tar", [("a.png", png(1)), ("b.png", b"")])


@pytest.fixture
def ledger(ray_session: None) -> Any:
    return ray.remote(num_cpus=0)(Ledger).remote()


def result(job: Job, ledger: Any, shard: str) -> dict[str, Any]:
    [block] = ShardActor(job, ledger)({"shard": np.array([shard])})
    [text] = block["result"]
    return json.loads(text)


def test_a_result_is_plain_json_and_the_ledger_forgets_the_shard(
    make_job: Callable[..., Job], ledger: Any, shard: str
) -> None:
    done = result(make_job(), ledger, shard)
    assert (done["images"], done["rejects"], done["failure"], done["fatal"]) == (1, {"empty_image": 1}, None, None)
    assert ray.get(ledger.standing.remote()) == Standing(1.0, 1, 1)
    assert ray.get(ledger.begin.remote(shard)).deaths == 0


def test_what_a_worker_cannot_write_is_fatal(make_job: Callable[..., Job], ledger: Any, shard: str) -> None:
    job = make_job()
    Path(job.table.path, "status=ok").write_text("in the way")
    assert result(job, ledger, shard)["fatal"].startswith(f"A worker cannot write to {job.table.path} (")


def test_a_backbone_that_cannot_be_loaded_is_fatal(make_job: Callable[..., Job], ledger: Any, shard: str) -> None:
    missing = BackboneConfig(name="pixels", size=8, weights="/nowhere/weights.safetensors")
    job = Job(**{**make_job().__dict__, "backbone": missing})
    assert "/nowhere/weights.safetensors does not exist" in result(job, ledger, shard)["fatal"]


def test_a_shard_that_killed_too_many_workers_is_left_alone(
    make_job: Callable[..., Job], ledger: Any, shard: str
) -> None:
    for _ in range(MAX_UNEXPLAINED + 1):
        ray.get(ledger.begin.remote(shard))
    failed = result(make_job(), ledger, shard)
    assert failed["failure"] == "6 workers died on it, and not of single images"
    assert failed["files"] == []


def test_the_session_is_one_machine_of_two_cpus() -> None:
    assert cluster_nodes() == [Node(cpus=2, gpus=0)]
