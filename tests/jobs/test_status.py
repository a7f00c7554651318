"""`shoal status`: what a folder says, and when it is not believed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from commands import figures_of, shoal

from jobs.status import judged

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def status(**more: Any) -> dict[str, Any]:
    here = {"host": socket.gethostname(), "pid": os.getpid(), "output": "/data/out"}
    return {"state": "running", "time": (NOW - timedelta(seconds=20)).isoformat(), **here, **more}


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


@pytest.mark.parametrize(
    ("found", "state"),
    [
        (status(), "running"),
        (status(time=ago(70)), "lost"),  # where a word is due every 5 s
        (status(time=ago(170), output="s3://bucket/out"), "running"),  # where a word a minute is enough
        (status(time=ago(190), output="s3://bucket/out"), "lost"),
        (status(time=ago(20), host="elsewhere", pid=2**22 - 1), "running"),
        (status(time=ago(20), pid=10**20), "running"),
        (status(time=ago(20), pid="x"), "running"),
        (status(time="yesterday"), "lost"),
        (status(time="2026-11-22T12:00:00"), "lost"),  # of which zone?
        (status(state="finished", time=ago(9999)), "finished"),
        (status(state="interrupted", time=ago(9999)), "interrupted"),
        (status(state="failed", time=ago(9999)), "failed"),
    ],
)
def test_a_run_that_is_silent_is_lost(found: dict[str, Any], state: str) -> None:
    assert judged(found, NOW)[0] == state


def test_a_run_whose_process_is_gone_is_lost_soon() -> None:
    over = subprocess.Popen([sys.executable, "-c", ""])
    over.wait()
    assert judged(status(pid=over.pid, time=ago(9)), NOW) == ("running", None)  # of a container with this one's name?
    assert judged(status(pid=over.pid, time=ago(11)), NOW) == (
        "lost",
        "no sign of life for 11 s; the same command continues",
    )


@pytest.mark.parametrize("steps", [5, "x", {"a": 1}, [1, None], None])
def test_a_status_of_somebody_else_is_no_traceback(tmp_path: Path, steps: Any) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"state": "finished", "steps": steps}))
    assert figures_of(tmp_path, "status", tmp_path)["steps"] == []


def test_a_path_is_no_job(tmp_path: Path) -> None:
    result = shoal("status", tmp_path / "nowhere")
    assert result.exit_code == 2
    assert "nowhere has no status: give the --output of" in result.output


def test_a_folder_without_a_status_is_told_what_has_one(tmp_path: Path) -> None:
    result = shoal("status", tmp_path)
    assert result.exit_code == 2
    assert f"{tmp_path} has no status: give the --output of `shoal run`" in result.output


def test_a_training_has_a_status_while_it_is_refused(tmp_path: Path) -> None:
    """Real commands: a folder of images that are none, packed and refused."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.jpg").write_bytes(b"no image")
    output = tmp_path / "out"
    assert shoal("run", images, "--output", output, "--set", "ray.num_cpus=0").exit_code == 2  # before anything
    assert not output.exists()
    result = shoal("train", images, "--output", output)
    assert result.exit_code == 2
    found = figures_of(tmp_path, "status", output)
    assert (found["state"], found["exit_code"], found["command"]) == ("failed", 2, "train")
    assert found["note"] == "when the cause is mended, the same command continues"
    assert found["message"] in " ".join(result.output.split())
