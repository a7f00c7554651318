"""Joining a real cluster: room is asked for and given back, the run has its name there, SIGTERM stays ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from head import Head, head

CODE = """
import json, os, signal
from jobs import journal
from jobs.context import RayConfig, local_ray
from jobs.room import bundles
from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL as CHANNEL
from ray.experimental.internal_kv import _internal_kv_get

journal.begin("cluster")
told = []
before = signal.getsignal(signal.SIGTERM)
for count in (2, 4):
    with local_ray(RayConfig(wait_s=2), room=bundles(count, 1), on_progress=lambda *each: told.append(each)):
        import ray
        run = ray.get(ray.remote(lambda: os.environ.get("SHOAL_RUN_ID")).remote())
        asked = json.loads(_internal_kv_get(CHANNEL))
        print(json.dumps([run, len(asked), told[0][0], signal.getsignal(signal.SIGTERM) is before]))
    told.clear()
with local_ray(RayConfig(), needed=False):
    print(json.dumps([ray.is_initialized(), json.loads(_internal_kv_get(CHANNEL))]))
os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
with local_ray(RayConfig(), needed=False):
    print(json.dumps(ray.is_initialized()))
"""


@pytest.mark.slow
def test_a_session_on_a_cluster(tmp_path: Path) -> None:
    with head(tmp_path, num_cpus=2) as cluster:
        environment = {**os.environ, **cluster.env, "RAY_ADDRESS": cluster.address, "SHOAL_RUN_ID": "run-1"}
        run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
        assert run.returncode == 0, run.stderr
        jobs = asked(cluster, "/api/jobs/")
        stranger = refused({**environment, "RAY_AUTH_TOKEN": "0" * 64}, cluster.address)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert lines == [
        ["run-1", 2, "wait for machines, room for 2 of 2", True],
        ["run-1", 4, "wait for machines, room for 2 of 4", True],  # which never come, and are left to the work
        [True, []],  # joined though nothing needs it; nothing is asked for any more
        False,  # a cluster that is gone is not missed where nothing needs it
    ]
    told = [job["metadata"] for job in jobs]
    assert len(told) == 3
    assert f"The Ray cluster at '{cluster.address}' does not take this command" in stranger
    assert "RAY_AUTH_TOKEN_PATH its token" in stranger
    assert all(each["shoal_command"] == "cluster" and "shoal_version" in each for each in told)


def refused(environment: dict[str, str], address: str) -> str:
    """What a command says that the cluster at `address` does not let in."""
    code = (
        "from jobs.context import *\nfrom jobs.outcome import sentences\nwith sentences(), local_ray(RayConfig()): pass"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.returncode != 0
    return next(line for line in run.stderr.splitlines() if address in line and line.startswith("The Ray"))


def asked(cluster: Head, path: str) -> Any:
    headers = {"Authorization": f"Bearer {cluster.token}"}
    with urlopen(Request(cluster.dashboard + path, headers=headers)) as answer:  # noqa: S310  of our own on loopback
        return json.load(answer)
