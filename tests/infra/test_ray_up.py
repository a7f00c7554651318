"""infra/ray-up: what Ray's launcher takes, with nothing open that should be shut."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

RAY_UP = Path(__file__).parents[2] / "infra" / "ray-up"
FILES = sorted(RAY_UP.glob("*.yaml"))
each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
PLACEHOLDERS = {
    "aws": {"BUCKET", "REGISTRY", "ami-IMAGE", "sg-GROUP", "subnet-SUBNET"},
    "gcp": {"BUCKET", "PROJECT", "REPOSITORY", "IMAGE_PROJECT", "IMAGE_FAMILY"},
}


def cluster(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def validate(config: dict[str, Any]) -> dict[str, Any]:
    """As `ray up` does before it starts anything; returns what it fills in."""
    from ray.autoscaler._private.util import prepare_config, validate_config  # noqa: PLC0415  # imports Ray

    filled: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(filled)
    return filled


def starts(config: dict[str, Any], which: str) -> list[str]:
    """Words of the `ray start` of head or worker."""
    (found,) = [each for each in config[f"{which}_start_ray_commands"] if each.startswith("ray start")]
    return shlex.split(found)[2:]


def header_of(path: Path) -> list[str]:
    """Lines of the comment at the top, those that go on joined."""
    lines = [line[1:].strip() for line in path.read_text().split("cluster_name")[0].splitlines()]
    return "\n".join(lines).replace("\\\n", "").splitlines()


def test_there_is_a_file_for_each_cloud() -> None:
    assert [path.stem for path in FILES] == ["aws", "gcp"]


@each_file
def test_rays_own_validator_takes_it_and_adds_no_command(path: Path) -> None:
    config = cluster(path)
    filled = validate(config)
    assert filled["provider"]["type"] == path.stem
    for key in [each for each in filled if each.endswith("_commands")]:
        assert filled[key] == config[key], key  # Ray's defaults would install another Ray and open the dashboard


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dokcer", {}),
        ("max_workers", "12"),
        ("head_node_type", "haed"),
        ("docker", {"imgae": "x"}),
        ("auth", {"user": "x"}),
    ],
)
def test_the_validator_refuses_what_is_wrong(key: str, value: object) -> None:
    with pytest.raises(Exception, match=r"dokcer|12|head_node_type|imgae|user"):
        validate(cluster(FILES[0]) | {key: value})


@each_file
def test_ray_start_has_the_options(path: Path) -> None:
    from ray.scripts.scripts import start  # noqa: PLC0415  # imports Ray

    config = cluster(path)
    for which in ("head", "worker"):
        context = start.make_context("start", starts(config, which))
        assert context.params["head"] == (which == "head")
        assert context.params["metrics_export_port"] == 8080  # which a firewall can be told
    assert "-e SHOAL_LOG=json" in config["docker"]["run_options"]


@each_file
def test_the_head_has_no_cpus_for_work_and_the_driver_has_a_place(path: Path) -> None:
    config = cluster(path)
    kinds = config["available_node_types"]
    assert config["head_node_type"] == "head"
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in starts(config, "head")
    assert [name for name, kind in kinds.items() if "shoal_driver" in kind["resources"]] == ["cpu"]
    assert kinds["cpu"]["min_workers"] >= 1  # or a command would wait for a machine that nothing asks for
    assert [name for name, kind in kinds.items() if "GPU" in kind["resources"]] == ["gpu"]


@each_file
def test_the_groups_fit_into_the_cluster_and_idle_machines_go(path: Path) -> None:
    config = cluster(path)
    workers = [kind for name, kind in config["available_node_types"].items() if name != "head"]
    assert sum(kind["max_workers"] for kind in workers) == config["max_workers"]
    assert all(kind["min_workers"] <= kind["max_workers"] for kind in workers)
    assert (config["upscaling_speed"], config["idle_timeout_minutes"]) == (1.0, 5)  # as `shoal render ray-up` has it
    assert config["provider"]["cache_stopped_nodes"] is False


@each_file
def test_the_dashboard_is_on_loopback_and_behind_a_token(path: Path) -> None:
    config = cluster(path)
    assert "--dashboard-host=127.0.0.1" in starts(config, "head")
    assert "0.0.0.0" not in path.read_text()  # noqa: S104  # looked for, not bound
    options = config["docker"]["run_options"]
    assert "-e RAY_AUTH_MODE=token" in options
    (where,) = config["file_mounts"]
    assert f"-e RAY_AUTH_TOKEN_PATH={where}" in options
    assert config["file_mounts"][where] == "~/.ray/auth_token"  # a copy of the user's own; none in this file


@each_file
def test_containers_have_no_privileges(path: Path) -> None:
    options = cluster(path)["docker"]["run_options"]
    assert {"--init", "--cap-drop=ALL", "--security-opt=no-new-privileges"} <= set(options)
    assert not any("privileged" in each and "no-new" not in each for each in options)


def test_on_aws_roles_and_security_group_are_named_and_disks_encrypted() -> None:
    for name, kind in cluster(RAY_UP / "aws.yaml")["available_node_types"].items():
        node = kind["node_config"]
        assert node["IamInstanceProfile"] == {"Name": "shoal-head" if name == "head" else "shoal-worker"}
        assert node["SecurityGroupIds"] and node["ImageId"] and node["SubnetIds"]
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])


def test_on_gcp_accounts_are_named() -> None:
    for name, kind in cluster(RAY_UP / "gcp.yaml")["available_node_types"].items():
        (account,) = kind["node_config"]["serviceAccounts"]
        assert account["email"].startswith("shoal-head@" if name == "head" else "shoal-worker@")


@each_file
def test_what_is_to_be_filled_in_is_in_capitals_and_is_all_there_is(path: Path) -> None:
    text = path.read_text()
    assert [each for each in PLACEHOLDERS[path.stem] if each not in text] == []
    assert not re.search(
        r"AKIA[0-9A-Z]{16}|PRIVATE KEY|ssh_private_key|\bami-[0-9a-f]{8,}|password *[:=]|aws_secret", text
    )


@each_file
def test_the_commands_of_the_header_are_shoals(path: Path) -> None:
    from jobs.submit.parse import parse_command  # noqa: PLC0415

    header = header_of(path)
    (submit,) = [line for line in header if "shoal submit" in line]
    words = shlex.split(submit.split("shoal submit ")[1], comments=True)
    assert parse_command(["submit", *words]).command == "submit"
    assert parse_command([word for word in words if word != "--watch"]).command == "run"
    assert [line.split()[1] for line in header if line.startswith("ray ")] == [
        "get-auth-token",
        "up",
        "dashboard",
        "down",
    ]
    assert all(f"infra/ray-up/{path.name}" in line for line in header if re.match("ray (up|dashboard|down)", line))


@each_file
def test_the_run_of_the_header_asks_for_gpus_that_can_come(path: Path) -> None:
    from jobs.config import resolve  # noqa: PLC0415  imports torch
    from jobs.extract import room_of  # noqa: PLC0415
    from jobs.submit.parse import parse_command  # noqa: PLC0415

    (submit,) = [line for line in header_of(path) if "shoal submit" in line]
    words = shlex.split(submit.split("shoal submit ")[1], comments=True)
    settings = resolve(None, parse_command([word for word in words if word != "--watch"]).sets)
    gpu = cluster(path)["available_node_types"]["gpu"]
    asked = sum(each.get("GPU", 0) for each in room_of(settings, shards=1000))
    assert 0 < asked <= gpu["max_workers"] * gpu["resources"]["GPU"]
    assert settings.ray.wait_s >= 600  # a machine with a GPU takes minutes to come
