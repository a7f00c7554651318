"""Jobs on real clusters of this machine's loopback: submitted, watched, stopped, continued, refused."""

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

from jobs.submit.parse import parse_command
from jobs.submit.submission import check_settings
from pipeline.tables.collection import Collection

pytestmark = pytest.mark.slow
WAIT_S = 400
QUICK = ["demo", "--set", "cluster.reduce.kind=none", "--set", "baseline=false"]  # where any work will do


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with head(tmp_path_factory.mktemp("head")) as found:
        yield found


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "jobs", *map(str, words)]


def shoal(cluster: Head, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), env={**cluster.env, **env}, capture_output=True, text=True, timeout=WAIT_S, check=False
    )


def figures(cluster: Head, folder: Path, *words: str | Path) -> dict[str, Any]:
    """The JSON of a command that ends well."""
    file = folder / "figures.json"
    ended = shoal(cluster, *words[:1], *words[1:2], "--json", file, *words[2:])
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def submitted(cluster: Head, folder: Path, *words: str | Path) -> dict[str, Any]:
    file = folder / "submitted.json"
    ended = shoal(cluster, "submit", "--json", file, *words)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def listed(cluster: Head, folder: Path, id_: str) -> dict[str, Any]:
    jobs: list[dict[str, Any]] = figures(cluster, folder, "jobs", "list")["jobs"]
    return next(each for each in jobs if each["job"] == id_)


def until(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S} s"
        time.sleep(0.2)


def status(folder: Path) -> dict[str, Any]:
    path = folder / "status.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def test_the_demo_stopped_in_the_middle_and_submitted_again_is_finished(cluster: Head, tmp_path: Path) -> None:
    output = tmp_path / "demo"
    first = submitted(cluster, tmp_path, "demo", "--output", output)
    until(lambda: status(output).get("step") == "extract", "the first attempt embeds")
    stopped = figures(cluster, tmp_path, "jobs", "stop", first["job"])
    assert stopped["state"] == "STOPPED"
    assert not (output / "report.html").exists()
    until(lambda: status(output).get("state") == "interrupted", "the status says so")

    again = shoal(cluster, "submit", "--watch", "demo", "--output", output)
    assert again.returncode == 0, again.stderr
    assert (output / "report.html").exists()
    assert Collection.open(output / "table").samples.count("ok") == 1797
    assert f"run {first['run']}, attempt 2" in again.stderr
    assert "extract" in again.stderr
    assert "reject fraction" in again.stdout  # figures, as if it had run here
    found = listed(cluster, tmp_path, again.stderr.split("Job ")[1].split()[0])
    assert (found["state"], found["exit_code"], found["run"]) == ("SUCCEEDED", 0, first["run"])
    assert found["command_line"] == f"demo --output {output}"
    assert listed(cluster, tmp_path, first["job"])["state"] == "STOPPED"


def test_exit_codes_and_sentences_are_the_commands_own(cluster: Head, tmp_path: Path) -> None:
    refused = shoal(cluster, "submit", "--watch", "show", tmp_path / "missing")
    assert refused.returncode == 2
    assert str(tmp_path / "missing") in refused.stderr
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "broken.png").write_bytes(b"no image")
    shoal(cluster, "submit", "--watch", "shards", tmp_path / "images", "--output", tmp_path / "shards")
    pixels = ["--backbone", "pixels", "--output", tmp_path / "table"]
    missed = shoal(cluster, "submit", "--watch", "extract", tmp_path / "shards", *pixels)
    assert missed.returncode == 1, missed.stderr
    assert "1 of 1 samples were rejected" in missed.stderr


def test_a_killed_command_says_by_what(cluster: Head, tmp_path: Path) -> None:
    with subprocess.Popen(
        command("submit", "--watch", *QUICK, "--output", tmp_path / "demo"),
        env=cluster.env,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        until(lambda: status(tmp_path / "demo").get("state") == "running", "the demo runs")
        for pid in cluster.find("jobs.submit.entry"):
            os.kill(pid, signal.SIGKILL)
        _, said = watching.communicate(timeout=WAIT_S)
    assert watching.returncode == 137
    assert "signal 9; submit the same command again" in said


def test_who_watches_may_go_and_the_job_goes_on(cluster: Head, tmp_path: Path) -> None:
    with subprocess.Popen(
        command("submit", "--watch", "--id", "detached", *QUICK, "--output", tmp_path / "demo"),
        env=cluster.env,
        stderr=subprocess.PIPE,
        text=True,
    ) as watching:
        until(lambda: status(tmp_path / "demo").get("state") == "running", "the demo runs")
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=WAIT_S)
    assert watching.returncode == 130
    assert "the job goes on" in said
    assert listed(cluster, tmp_path, "detached")["state"] == "RUNNING"
    taken = shoal(cluster, "submit", "--id", "detached", "show", "/")
    assert (taken.returncode, "already exists" in taken.stderr) == (2, True)
    assert "started demo" in shoal(cluster, "jobs", "logs", "detached").stderr
    assert figures(cluster, tmp_path, "jobs", "stop", "detached")["state"] == "STOPPED"
    followed = shoal(cluster, "jobs", "logs", "detached", "--follow")
    assert followed.returncode == 130
    assert "started demo" in followed.stderr


def test_without_the_token_nothing_is_told(cluster: Head) -> None:
    wrong = shoal(cluster, "submit", "demo", "--output", "/o", RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode == 2
    assert "does not accept this token" in wrong.stderr
    none = shoal(cluster, "jobs", "list", RAY_AUTH_MODE="disabled")
    assert none.returncode == 2
    assert "wants a token; set RAY_AUTH_MODE=token" in none.stderr
    assert "Traceback" not in wrong.stderr + none.stderr


def test_a_job_that_is_not_there(cluster: Head) -> None:
    for words in (["logs", "nobody"], ["logs", "nobody", "--follow"], ["stop", "nobody"]):
        ended = shoal(cluster, "jobs", *words)
        assert ended.returncode == 2
        assert "has no job 'nobody'" in ended.stderr


def test_other_versions_are_refused_on_the_cluster(cluster: Head, tmp_path: Path) -> None:
    """The sender has another numpy: one whose metadata say so."""
    other = tmp_path / "numpy-0.1.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
    refused = shoal(cluster, "submit", "--watch", "show", tmp_path, PYTHONPATH=str(tmp_path))
    assert refused.returncode == 2
    assert "but 0.1 was sent" in refused.stderr
    taken = shoal(cluster, "submit", "--watch", "--pin", "off", "show", tmp_path, PYTHONPATH=str(tmp_path))
    assert "versions not compared" in taken.stderr


def test_the_packed_tree_runs_and_a_config_file_goes_with_it(
    cluster: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder that is no working tree, with a config file of the user's there."""
    (tmp_path / "mine.yaml").write_text("max_reject_fraction: 0.5\n")
    ended = subprocess.run(
        command("submit", "--watch", "demo", "--dry-run", "-c", "mine.yaml"),
        env={**cluster.env, "PYTHONPATH": str(Path(__file__).parents[2])},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    monkeypatch.chdir(tmp_path)
    digest = check_settings(parse_command(["demo", "-c", "mine.yaml"]))
    assert digest is not None
    assert digest in ended.stdout  # of the plan that the cluster made


def test_a_head_without_cpus_does_none_of_the_work(tmp_path: Path) -> None:
    """The command runs where a machine offers itself, every worker where CPUs are; the head has neither."""
    output = tmp_path / "demo"
    on_head: set[str] = set()
    with head(tmp_path, num_cpus=0) as cluster:
        machine = cluster.join(num_cpus=2, resources={"shoal_driver": 1})
        job = submitted(cluster, tmp_path, *QUICK, "--output", output)
        assert "shoal_driver" in job["runs_on"]
        seen_there: set[str] = set()

        def over() -> bool:
            on_head.update(_work(cluster.pids()))
            seen_there.update(_work(machine.pids()))
            return status(output).get("state") in ("finished", "failed")

        until(over, "the demo is over")
        assert status(output)["state"] == "finished", shoal(cluster, "jobs", "logs", job["job"]).stdout
    assert any("jobs.submit.entry" in each for each in seen_there)
    assert any("ShardActor" in each for each in seen_there)
    assert on_head == set()


def test_a_cluster_that_goes_away_and_a_new_one_in_its_place(tmp_path: Path) -> None:
    output, token = tmp_path / "demo", "7" * 64
    with head(tmp_path, token=token) as cluster:
        port = int(cluster.dashboard.rpartition(":")[2])
        with subprocess.Popen(
            command("submit", "--watch", *QUICK, "--output", output), env=cluster.env, stderr=subprocess.PIPE, text=True
        ) as watching:
            until(lambda: status(output).get("step") == "extract", "the demo embeds")
            cluster.kill()
            with head(tmp_path, token=token, port=port) as again:
                _, said = watching.communicate(timeout=WAIT_S)
                assert watching.returncode == 2
                assert "was started anew and no longer knows job" in said
                ended = shoal(again, "submit", "--watch", *QUICK, "--output", output)
                assert ended.returncode == 0, ended.stderr
    assert Collection.open(output / "table").samples.count("ok") == 1797
    assert "attempt 2" in ended.stderr


def _work(pids: list[int]) -> set[str]:
    """Command lines of a job's command and of workers that have CPUs; actors without, which count and coordinate, may
    be anywhere."""
    lines = set()
    for pid in pids:
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if "jobs.submit.entry" in line or line.startswith(("ray::MapWorker", "ray::RayTrainWorker")):
            lines.add(line)
    return lines
