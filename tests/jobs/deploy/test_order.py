"""What a command means on other machines."""

from __future__ import annotations

from pathlib import Path

import pytest
from orders import ordered

from jobs.config import digest, resolve
from jobs.deploy.order import elsewhere, order, placeholders
from jobs.extract import room_of
from models.errors import ShoalError

RUN = ("run", "s3://a/in", "--output", "s3://a/out")


def test_without_a_command_it_is_run_of_what_the_settings_name() -> None:
    found = ordered("deploy.gpu.count=3", "max_reject_fraction=0.5")
    assert found.parsed.words == [
        "run",
        "s3://pictures/shards",
        "--output",
        "s3://pictures/run",
        "--set",
        "max_reject_fraction=0.5",
    ]
    assert found.deploy.gpu.count == 3
    assert found.digest == digest(resolve(None, ["max_reject_fraction=0.5"]))


def test_without_a_command_and_an_input_there_is_nothing_to_run() -> None:
    with pytest.raises(ShoalError, match=r"deploy\.output has no value.*--set deploy\.output=URL"):
        order([], None, ["deploy.input=s3://a/b"])


def test_a_command_has_the_settings_of_render_before_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("max_reject_fraction: 0.25\n# kept\n")
    found = order([*RUN, "--set", "max_reject_fraction=0.75"], file, ["max_reject_fraction=0.5", "deploy.retries=1"])
    assert found.parsed.sets == ["max_reject_fraction=0.5", "max_reject_fraction=0.75"]
    assert found.settings.max_reject_fraction == 0.75
    assert found.deploy.retries == 1
    assert found.file_text == "max_reject_fraction: 0.25\n# kept\n"
    assert found.at("/there.yaml").parsed.config == Path("/there.yaml")
    assert found.at("/there.yaml").typed.config == file


def test_a_command_with_a_config_keeps_to_it(tmp_path: Path) -> None:
    file = tmp_path / "machines.yaml"
    file.write_text("deploy: {retries: 7}\n")
    found = order([*RUN, "-c", "digits"], file, ["max_reject_fraction=0.5"])
    assert (found.parsed.config, found.parsed.sets, found.file_text) == (Path("digits"), [], None)
    assert found.deploy.retries == 7


def test_a_command_without_settings_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("max_reject_fraction: 0.5\n")
    found = order(["show", "s3://a/b"], file, ["deploy.retries=1"]).waiting()
    assert found.parsed.words == ["show", "s3://a/b"]


def test_it_waits_for_machines_unless_the_settings_say_how_long() -> None:
    assert "ray.wait_s=1800" in ordered().waiting().parsed.sets
    assert ordered("ray.wait_s=5").waiting().parsed.sets == ["ray.wait_s=5"]


LATE = ("deploy.gpu.most=4", "deploy.gpu.gpus=2")


def extraction(*sets: str, late: bool = False, words: tuple[str, ...] = ()) -> list[str]:
    """What is added to the settings of extraction, without its name."""
    given = [each for each in sets if each.startswith("extract.")]
    waiting = ordered(*sets, words=words).waiting(late=late)
    found = [each.removeprefix("extract.") for each in waiting.parsed.sets if each.startswith("extract.")]
    assert waiting.typed.sets == waiting.parsed.sets
    assert waiting.waiting(late=late) is waiting
    return found[: len(found) - len(given)]


def test_gpus_that_come_on_demand_are_asked_for() -> None:
    wanted = ["gpus_per_actor=1", "actors=8", "autoscale=true"]
    assert extraction(*LATE) == wanted
    assert extraction(*LATE, "deploy.gpu.count=1") == wanted
    assert extraction(*LATE, words=("probe", "s3://a/b", "--output", "s3://a/c", "--backbone", "pixels")) == wanted
    extract = ordered(*LATE).waiting().settings.extract
    assert (extract.gpus_per_actor, extract.actors, extract.autoscale) == (1.0, 8, True)
    room = room_of(ordered(*LATE).waiting().settings, 100)
    assert room == [{"CPU": 1, "GPU": 1}] * 8  # and so extraction waits for them: see jobs.room


def test_gpus_that_are_there_share_as_the_backbone_likes() -> None:
    assert extraction("deploy.gpu.count=4") == []  # KubeRay begins with all of them
    assert extraction("deploy.gpu.count=4", late=True) == ["gpus_per_actor=1", "actors=4", "autoscale=true"]
    assert extraction() == extraction(late=True) == []
    assert extraction("deploy.gpu.most=4", "deploy.gpu.gpus=0") == []


def test_settings_of_the_command_are_kept() -> None:
    assert extraction(*LATE, "extract.actors=3") == ["gpus_per_actor=1", "autoscale=true"]
    assert extraction(*LATE, "extract.gpus_per_actor=0.5") == ["actors=16", "autoscale=true"]
    assert extraction(*LATE, "extract.gpus_per_actor=2", "extract.autoscale=true") == ["actors=4"]
    assert extraction(*LATE, "extract.gpus_per_actor=0") == []  # is to be CPUs
    assert ordered(*LATE, "ray.wait_s=0").waiting().settings.ray.wait_s == 0  # said last, and so it counts


def test_a_command_that_extracts_nothing_has_no_gpus_added() -> None:
    assert extraction(*LATE, words=("cluster", "s3://a/b")) == []


def test_the_digest_is_that_of_the_settings_in_the_end() -> None:
    found = ordered(*LATE).waiting()
    assert found.digest == digest(resolve(None, found.parsed.sets)) != ordered(*LATE).digest


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["run", "pictures", "--output", "s3://a/b"], "SOURCE pictures is a path relative to this folder"),
        (["run", "/in", "--output", "out"], "--output out is a path relative"),
        (["run", "/in"], "Missing option"),
        (["demo"], "needs --output"),
        (["config", "show"], "not for a cluster"),
        (["run", "s3://a/\0", "--output", "/b"], "no text that a command line can hold"),
        (["run", "s3://a/\udc80", "--output", "/b"], "no text that a command line can hold"),
        ([*RUN, "--set", "scale=2"], "scale is 2"),
    ],
)
def test_what_the_machines_would_refuse_is_refused_here(words: list[str], reason: str) -> None:
    with pytest.raises(ShoalError, match=reason):
        order(words, None, [])


def test_somebody_has_to_do_the_work() -> None:
    with pytest.raises(ShoalError, match=r"no machines.*deploy\.cpu\.count=1"):
        ordered("deploy.cpu.count=0")


def test_the_first_group_that_has_machines_runs_the_command() -> None:
    assert list(ordered("deploy.gpu.most=2").groups) == ["cpu", "gpu"]
    assert list(ordered("deploy.cpu.count=0", "deploy.gpu.count=2").groups) == ["gpu"]


def test_the_image_is_of_this_version_and_has_cuda_where_there_are_gpus() -> None:
    assert ordered().image == "shoal:0.1.0-cpu"
    assert ordered("deploy.gpu.most=1").image == "shoal:0.1.0-cuda"
    assert ordered("deploy.image=r.example/s:1").image == "r.example/s:1"


def test_placeholders_are_found() -> None:
    found = ordered("deploy.input=s3://BUCKET/<folder>", "deploy.cloud.project=MY-PROJECT", "deploy.image=REGISTRY/s:1")
    assert placeholders(found) == ["<folder>", "BUCKET", "PROJECT", "REGISTRY"]
    assert placeholders(ordered("deploy.input=s3://my-bucket/PROJECTS")) == []


def test_a_disk_of_one_machine_is_not_shared() -> None:
    found = ordered("deploy.input=/data/in", "deploy.output=/database/out")
    assert elsewhere(found, None) == ["/data/in", "/database/out"]
    assert elsewhere(found, "/data") == ["/database/out"]
