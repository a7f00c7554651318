"""A cluster for Ray's launcher, by Ray's own schema, and by what a reviewer would refuse."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from orders import ordered
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.deploy.config import CloudConfig, MachinesConfig
from jobs.deploy.machines import machine_type
from jobs.deploy.ray_up import cluster, instructions
from jobs.deploy.text import as_yaml
from jobs.submit.parse import parse_command
from models.errors import ShoalError

GCP = ("deploy.cloud.provider=gcp", "deploy.cloud.project=vision-1")


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("deploy.gpu.count=1", "deploy.gpu.most=4", "deploy.cloud.spot=true", "deploy.cloud.role=reader"),
        ("deploy.cloud.security_groups=[sg-1]", "deploy.cloud.subnet=subnet-1", "deploy.cloud.private=true"),
        GCP,
        (*GCP, "deploy.gpu.most=4", "deploy.cloud.spot=true", "deploy.cloud.subnet=s", "deploy.cloud.role=a@b.c"),
    ],
)
def test_rays_launcher_takes_it(sets: tuple[str, ...]) -> None:
    validate_config(prepare_config(cluster(ordered(*sets))))


def nodes(*sets: str) -> dict[str, Any]:
    found: dict[str, Any] = cluster(ordered(*sets))["available_node_types"]
    return found


def test_the_head_works_for_nobody_and_shows_its_dashboard_to_itself() -> None:
    made = cluster(ordered())
    assert made["available_node_types"]["head"]["resources"] == {"CPU": 0}
    start = made["head_start_ray_commands"][-1]
    assert "--num-cpus=0 " in start
    assert "--dashboard-host=127.0.0.1 " in start
    assert "0.0.0.0" not in as_yaml([made])  # noqa: S104
    assert "-e RAY_AUTH_MODE=token" in made["docker"]["run_options"]


def test_the_machine_that_runs_the_command_is_never_a_spot() -> None:
    found = nodes("deploy.gpu.count=1", "deploy.cloud.spot=true")
    assert found["cpu"]["resources"] == {"CPU": 8, "shoal_driver": 1}
    assert found["gpu"]["resources"] == {"CPU": 8, "GPU": 1}
    assert [name for name, node in found.items() if "InstanceMarketOptions" in node["node_config"]] == ["gpu"]
    alone = nodes("deploy.gpu.count=1", "deploy.cpu.count=0", "deploy.cloud.spot=true")
    assert "InstanceMarketOptions" not in alone["gpu"]["node_config"]


def test_workers_have_the_role_for_the_storage_and_the_head_has_its_own() -> None:
    found = nodes("deploy.cloud.role=arn:aws:iam::1:instance-profile/x", "deploy.cloud.head_role=starts")
    assert found["cpu"]["node_config"]["IamInstanceProfile"] == {"Arn": "arn:aws:iam::1:instance-profile/x"}
    assert found["head"]["node_config"]["IamInstanceProfile"] == {"Name": "starts"}
    assert "IamInstanceProfile" not in nodes("deploy.cloud.role=x")["head"]["node_config"]


@pytest.mark.parametrize(
    ("image", "login"),
    [
        ("ghcr.io/a/shoal:1", []),
        ("europe-docker.pkg.dev/p/r/shoal:1", ["gcloud auth configure-docker europe-docker.pkg.dev --quiet"]),
        (
            "12.dkr.ecr.eu-west-1.amazonaws.com/shoal:1",
            [
                "aws ecr get-login-password --region eu-west-1 | "
                "docker login --username AWS --password-stdin 12.dkr.ecr.eu-west-1.amazonaws.com"
            ],
        ),
    ],
)
def test_machines_log_in_to_their_clouds_registry(image: str, login: list[str]) -> None:
    assert cluster(ordered(f"deploy.image={image}"))["initialization_commands"] == login


def test_a_spot_of_gcp_may_be_taken_away() -> None:
    found = nodes(*GCP, "deploy.gpu.count=1", "deploy.cloud.spot=true")
    assert found["gpu"]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
    assert "scheduling" not in found["cpu"]["node_config"]


@pytest.mark.parametrize(
    ("provider", "cpus", "memory", "gpus", "expected"),
    [
        ("aws", 2, 4, 0, "c7i.large"),
        ("aws", 8, 32, 0, "m7i.2xlarge"),
        ("aws", 8, 33, 0, "r7i.2xlarge"),
        ("aws", 8, 64, 1, "g6.4xlarge"),
        ("aws", 8, 64, 2, "g6.12xlarge"),
        ("gcp", 8, 32, 0, "n2-standard-8"),
        ("gcp", 8, 64, 1, "g2-standard-16"),
        ("gcp", 8, 64, 2, "g2-standard-24"),
    ],
)
def test_the_smallest_machine_that_will_do(provider: str, cpus: int, memory: int, gpus: int, expected: str) -> None:
    cloud = CloudConfig.model_validate({"provider": provider})
    assert machine_type(cloud, "cpu", MachinesConfig(cpus=cpus, memory_gib=memory, gpus=gpus)) == expected


def test_a_machine_that_nobody_sells_is_to_be_named() -> None:
    with pytest.raises(ShoalError, match=r"500 CPUs.*--set deploy\.cloud\.head=TYPE"):
        nodes("deploy.head.cpus=500")
    assert nodes("deploy.head.cpus=500", "deploy.cloud.head=u7i")["head"]["node_config"]["InstanceType"] == "u7i"


def test_what_is_to_be_typed_is_a_command_of_shoal() -> None:
    lines = instructions(ordered("max_reject_fraction=0.5").waiting(late=True), "a file.yaml")
    submit = shlex.split(next(line for line in lines if "shoal submit" in line))
    parsed = parse_command(submit[submit.index("--watch") + 1 :])
    assert parsed.values("source") == ("s3://pictures/shards",)
    assert parsed.sets == ["ray.wait_s=1800", "max_reject_fraction=0.5"]
    assert "ray up 'a file.yaml'" in lines
