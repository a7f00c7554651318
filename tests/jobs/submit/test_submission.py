"""A job as it is handed over."""

from __future__ import annotations

import json
import shlex
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from commands import shoal

from jobs.submit.client import Node
from jobs.submit.package import Package
from jobs.submit.parse import parse_command
from jobs.submit.submission import Submission, check_settings, driver_resource, has_idle_head, new_id, run_id
from models.errors import ShoalError

PACKAGE = Package(Path("/staged"), 1, 1)
HEAD, IDLE_HEAD = Node("10.0.0.1", True, {"CPU": 8}), Node("10.0.0.1", True, {"memory": 1})
WORKER, DRIVER = Node("10.0.0.2", False, {"CPU": 8}), Node("10.0.0.3", False, {"CPU": 8, "shoal_driver": 1})


def submission(*words: str, **more: Any) -> Submission:
    parsed = parse_command(words or ["run", "s3://b/in", "--output", "s3://b/out/", "--set", "report.title=a b"])
    return Submission(
        parsed, "abc", new_id(parsed, None), **{"pin": "require", "pins": {"numpy": "1", "ray": "2"}, **more}
    )


def test_what_the_cluster_is_told() -> None:
    job = submission()
    options = job.options(PACKAGE)
    assert shlex.split(options["entrypoint"]) == [
        *("exec", "python", "-m", "jobs.submit.entry", "--"),
        *("run", "s3://b/in", "--output", "s3://b/out/", "--set", "report.title=a b"),
    ]
    assert options["submission_id"] == job.id
    assert options["entrypoint_resources"] is None
    assert options["metadata"] == {
        "shoal_run": job.run,
        "shoal_command": "run s3://b/in --output s3://b/out/ --set 'report.title=a b'",
        "shoal_config": "abc",
        "shoal_output": "s3://b/out/",
        "shoal_report": "s3://b/out/report.html",
        "shoal_version": version("shoal"),
        "shoal_pins": options["metadata"]["shoal_pins"],
    }


def test_nothing_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hunter2")
    for pin in ("require", "install", "off"):
        options = submission(pin=pin).options(PACKAGE)
        assert "hunter2" not in json.dumps(options)
        assert options["runtime_env"]["env_vars"].keys() == {"SHOAL_LOG", "SHOAL_RUN_ID", "RAY_JOB_STOP_WAIT_TIME_S"}
        assert options["runtime_env"].get("pip") == (["numpy==1"] if pin == "install" else None)


def test_the_same_work_is_the_same_run_and_every_job_is_another() -> None:
    first, again, other = submission(), submission(), submission("run", "s3://b/in", "--output", "s3://b/other")
    assert first.run == again.run != other.run
    assert first.id.startswith(f"shoal-{first.run}-")
    assert first.id != again.id
    more_workers = parse_command(["run", "s3://b/in", "--output", "s3://b/out/", "--set", "extract.workers=9"])
    assert run_id(more_workers) == first.run
    assert run_id(parse_command(["run", "s3://b/in", "--output", "s3://b/out"])) == first.run
    named = [run_id(parse_command(["cluster", "t", *name])) for name in ([], ["--name", "a"], ["--name", "b"])]
    assert len(set(named)) == 3


def test_keys_of_what_is_removed_are_not_in_the_metadata() -> None:
    job = submission("remove", "/t", "--shard", "s", "secret-1", "secret-2")
    assert job.metadata()["shoal_command"] == "remove /t --shard s (2 keys)"
    assert "secret" not in json.dumps(job.metadata())
    assert submission("remove", "/t", "--keys", "/f").metadata()["shoal_command"] == "remove /t --keys /f"


@pytest.mark.parametrize("given", ["", "a/b", "-x", "a b", "x" * 101, "a\n"])
def test_ids_are_parts_of_urls(given: str) -> None:
    with pytest.raises(ShoalError, match="--id is"):
        new_id(parse_command(["show", "x"]), given)


@pytest.mark.parametrize(
    ("nodes", "given", "resource"),
    [
        ([], None, None),
        ([HEAD], None, None),
        ([HEAD, DRIVER], None, None),  # a head that works runs the command, too
        ([IDLE_HEAD, WORKER], None, None),
        ([IDLE_HEAD, WORKER, DRIVER], None, "shoal_driver"),
        ([IDLE_HEAD, WORKER], "mine", "mine"),  # which autoscaling may bring
        ([IDLE_HEAD, DRIVER], "", None),
    ],
)
def test_the_command_runs_on_a_machine_that_offers_itself_if_the_head_does_not_work(
    nodes: list[Node], given: str | None, resource: str | None
) -> None:
    assert driver_resource(nodes, given) == resource
    assert submission(driver=resource).options(PACKAGE)["entrypoint_resources"] == ({resource: 1} if resource else None)


def test_a_head_without_cpus_is_there_to_coordinate() -> None:
    assert has_idle_head([IDLE_HEAD, WORKER])
    assert not has_idle_head([HEAD, WORKER])
    assert not has_idle_head([])  # the cluster does not say


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "--output", "o"],
        ["demo", "--output", "o", "--set", "baseline=false"],
        ["run", "IMAGES", "--output", "o", "--backbone", "pixels", "--max-reject-fraction", "0.1"],
    ],
)
def test_the_digest_is_that_of_the_command_itself(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "a.png").write_bytes(b"")
    words = [str(tmp_path) if word == "IMAGES" else word for word in words]
    planned = shoal(*words, "--dry-run", "--json", tmp_path / "plan.json")
    assert planned.exit_code == 0, planned.output
    digest = check_settings(parse_command(words))
    assert digest is not None
    assert digest in json.dumps(json.loads((tmp_path / "plan.json").read_text()))


def test_what_an_artifact_decides_is_not_known_here() -> None:
    assert check_settings(parse_command(["extract", "/i", "--output", "/t", "--backbone", "/runs/a"])) is None
    assert check_settings(parse_command(["show", "/t"])) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cluster", "t", "--set", "clutser.seed=1"], "there is no setting 'clutser.seed'"),
        (["cluster", "t", "-c", "missing"], "There is no config file missing"),
        (["extract", "i", "--output", "t", "--backbone", "torchvision/resnet51"], "torchvision/resnet50"),
        (["recluster", "t", "--mode", "guess"], "recluster.mode is 'guess'"),
        (["extract", "i", "--output", "t", "--set", "backbone.weights=b.pth"], "a relative path, which a job does not"),
    ],
)
def test_settings_that_the_command_would_refuse_are_refused_here(words: list[str], said: str) -> None:
    with pytest.raises(ShoalError, match=said):
        check_settings(parse_command(words))
