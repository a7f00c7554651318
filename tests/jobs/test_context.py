"""Ray sessions: joined only when told, and left as they were found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from jobs.context import RayConfig, local_ray

UNUSED = "127.0.0.1:1"  # port 1 is never a Ray's


def test_a_session_that_is_open_is_used_and_left_open(ray_session: None) -> None:
    job = ray.get_runtime_context().get_job_id()
    with local_ray(RayConfig(address=UNUSED)):
        assert ray.get_runtime_context().get_job_id() == job
    assert ray.is_initialized()


@pytest.mark.parametrize(("address", "variable"), [(UNUSED, None), (None, UNUSED), (f"ray://{UNUSED}", None)])
def test_a_cluster_that_does_not_answer_is_one_sentence(address: str | None, variable: str | None) -> None:
    """In a process of its own, where no session is open."""
    code = (
        "from jobs.context import RayConfig, local_ray\n"
        "from jobs.outcome import sentences\n"
        f"with sentences(), local_ray(RayConfig(address={address!r})):\n"
        "    print('joined')\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    if variable is not None:
        environment["RAY_ADDRESS"] = variable
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert "joined" not in run.stdout
    assert f"No Ray cluster answers at {(address or variable)!r}" in run.stderr
    assert "or use this machine with --set ray.address=local." in run.stderr


@pytest.mark.slow
def test_a_session_of_our_own_leaves_nothing_in_the_home_folder(tmp_path: Path) -> None:
    code = (
        "from jobs.context import RayConfig, local_ray\n"
        "with local_ray(RayConfig(address='local', num_cpus=1, object_store_bytes=100_000_000)):\n"
        "    import ray\n"
        "    print(ray.get(ray.remote(lambda: 'worked').remote()), ray.cluster_resources()['CPU'])\n"
        "print(ray.is_initialized())\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_ADDRESS": UNUSED}  # `local` counts for more
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert run.stdout.split() == ["worked", "1.0", "False"]
    assert list(tmp_path.glob(".ray*")) == []
