"""Jobs on real clusters, killed in the middle: what is seen then is whole, and the same submit finishes them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from head import Head, head
from small_disk import small_disk
from whole import visible

from jobs.bench.killer import count_commits
from jobs.journal import FINISHED, INTERRUPTED, RUNNING, STATUS

pytestmark = pytest.mark.slow

WAIT_S = 300
IMAGES, SHARDS = 1797, 90
STEPS_OF = {"cluster": ("read embeddings", "fit pca", "fit", "assign"), "report": ("contact sheets", "map")}
SETTINGS = (
    "shards.images_per_shard=20",
    "extract.actors=1",
    "extract.commit_shards=1",  # so that the command is nearly always in a commit
    "cluster.reduce.kind=pca",
    "cluster.reduce.n_components=16",
    "cluster.algorithm.kind=dpm",
    "baseline=false",
    "report.map_rows=500",
)


def command(output: Path, *settings: str) -> list[str]:
    """The one command of these tests."""
    sets = [part for each in (*SETTINGS, *settings) for part in ("--set", each)]
    return [sys.executable, "-m", "jobs", "submit", "--watch", "demo", "--output", str(output), *sets]


class Watched:
    """A submitted job, and who watches it."""

    def __init__(self, cluster: Head, output: Path, *settings: str) -> None:
        self.output = output
        self.process = subprocess.Popen(
            command(output, *settings), env=cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def reaches(self, holds: Callable[[], object]) -> None:
        """Wait until something holds of the work, which is not over by then."""
        deadline = time.monotonic() + WAIT_S
        while not holds():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, status(self.output)
            time.sleep(0.01)

    def commits(self, number: int) -> None:
        """Wait for so many commits of embeddings."""
        self.reaches(lambda: count_commits(self.output / "table") >= number)
        assert count_commits(self.output / "table") < SHARDS

    def ends(self) -> tuple[int, str]:
        """Its exit code and what it said."""
        _, said = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, said

    def dropped(self) -> None:
        """Whoever watched is of no interest any more."""
        self.process.kill()
        self.process.communicate()


def status(output: Path) -> dict[str, Any]:
    path = output / STATUS
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def is_python(pid: int) -> bool:
    """And no shell that has the command as its argument."""
    return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")


def table_of(seen: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = seen["tables"]["table"]
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """For those that leave it alive."""
    with head(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
def alone(cluster: Head, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What is seen of a job that nothing happened to."""
    output = tmp_path_factory.mktemp("alone") / "out"
    code, said = Watched(cluster, output).ends()
    assert code == 0, said
    seen = visible(output)
    assert len(table_of(seen)["ok"]) == IMAGES
    assert len(seen["shards"]) == SHARDS
    return seen


def finishes(cluster: Head, output: Path, alone: dict[str, Any]) -> None:
    """The same submit once more leaves what a job leaves that nothing happened to."""
    attempts = status(output)["attempt"]
    code, said = Watched(cluster, output).ends()
    assert code == 0, said
    assert visible(output) == alone
    assert (status(output)["state"], status(output)["attempt"]) == (FINISHED, attempts + 1)


def half_done(output: Path, alone: dict[str, Any]) -> set[str]:
    """The shards that are seen of a job in the middle of its extraction, each with all of its rows; and no clusters."""
    seen = visible(output)
    rows = table_of(seen)["ok"]
    shards = {shard for shard, _, _ in rows}
    assert 0 < len(shards) < SHARDS
    assert rows == [row for row in table_of(alone)["ok"] if row[0] in shards]
    assert table_of(seen).keys() == {"ok", "rejected"}
    assert seen["files"] == []
    return shards


def test_sigterm_to_the_entrypoint(cluster: Head, alone: dict[str, Any], tmp_path: Path) -> None:
    job = Watched(cluster, tmp_path / "out")
    job.commits(8)
    [driver] = [pid for pid in cluster.find("jobs.submit.entry") if is_python(pid)]
    os.kill(driver, signal.SIGTERM)
    code, said = job.ends()
    assert code == 130, said
    assert "Interrupted; what was committed is kept" in said
    assert status(job.output)["state"] == INTERRUPTED
    half_done(job.output, alone)
    finishes(cluster, job.output, alone)


def test_a_disk_that_becomes_full_during_a_commit(cluster: Head, alone: dict[str, Any], tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 64) as disk:
        job = Watched(cluster, disk.home / "out")
        job.commits(8)
        disk.fill(2)
        code, said = job.ends()
        assert code == 2, said
        assert "disk is full" in said or "No space left on device" in said
        shards = half_done(job.output, alone)
        again = Watched(cluster, job.output).ends()  # still full
        assert again[0] == 2, again
        assert half_done(job.output, alone) >= shards
        disk.empty()
        finishes(cluster, job.output, alone)


def test_sigkill_to_one_head_after_the_other(alone: dict[str, Any], tmp_path: Path) -> None:
    """In the extraction, in the clustering, in the report; each time with the driver and all workers."""
    output = tmp_path / "out"
    for moment in ("extract", *STEPS_OF):
        with head(tmp_path) as doomed:
            job = Watched(doomed, output)
            if moment == "extract":
                job.commits(8)
            else:
                job.reaches(lambda: status(output)["job"] != before and status(output).get("step") in STEPS_OF[moment])  # noqa: B023
            before = status(output)["job"]
            doomed.kill()
            job.dropped()
        assert status(output)["state"] == RUNNING  # nobody could say otherwise
        if moment == "extract":
            half_done(output, alone)
        else:
            assert table_of(visible(output))["ok"] == table_of(alone)["ok"]
    with head(tmp_path) as last:
        finishes(last, output, alone)


def test_a_machine_that_is_lost_costs_nothing(alone: dict[str, Any], tmp_path: Path) -> None:
    """The command is elsewhere, so the job itself goes on."""
    with head(tmp_path, num_cpus=1) as cluster:
        machine = cluster.join(num_cpus=1)
        job = Watched(cluster, tmp_path / "out", "extract.actors=2")
        job.commits(8)
        assert machine.find("ShardActor"), "no worker is there"
        machine.kill()
        half_done(job.output, alone)
        code, said = job.ends()
        assert code == 0, said
        assert visible(job.output) == alone
