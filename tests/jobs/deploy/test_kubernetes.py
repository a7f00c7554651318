"""A run as Kubernetes objects, by the rules of tests/support/manifests, and by the few that only a rendering has."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from manifests import problems
from orders import ordered
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from jobs.deploy.kubernetes import documents
from jobs.submit.parse import parse_command
from models.errors import ShoalError

Tree = dict[str, Any]


def job(*sets: str, **more: Any) -> Tree:
    return next(each for each in documents(ordered(*sets, **more)) if each["kind"] == "RayJob")


def groups(*sets: str) -> list[Tree]:
    found: list[Tree] = job(*sets)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    return found


@pytest.mark.parametrize(
    "sets",
    [
        (),
        ("deploy.gpu.most=4",),
        ("deploy.queue=team", "deploy.gpu.count=2"),
        ("deploy.storage.claim=pictures", "deploy.input=/data/in", "deploy.output=/data/out", "deploy.egress_ports=[]"),
        ("deploy.storage.secret=keys", "deploy.pull_secret=registry", "deploy.deadline_s=86400"),
        ("deploy.cpu.count=0", "deploy.gpu.count=2", "deploy.gpu.gpus=8", "deploy.gpu.selector={zone: '1e3'}"),
        ("deploy.input=gs://a/in", "deploy.role_annotations={iam.gke.io/gcp-service-account: a@b.c}"),
        ("deploy.name=another", "deploy.namespace=team-1", "deploy.operator_namespace=ray-system"),
    ],
)
def test_every_rendering_holds(sets: tuple[str, ...]) -> None:
    assert problems(documents(ordered(*sets))) == []


def test_the_full_imagenet_holds() -> None:
    assert problems(documents(ordered(file=Path("imagenet_full")))) == []


def test_a_config_file_goes_along_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# why\nmax_reject_fraction: 0.5\ncluster:\n  algorithm: {prior_scale: 0.3}\n")
    objects = documents(ordered(file=file))
    assert problems(objects) == []
    assert [each["data"] for each in objects if each["kind"] == "ConfigMap"] == [{"shoal.yaml": file.read_text()}]
    entrypoint = next(each for each in objects if each["kind"] == "RayJob")["spec"]["entrypoint"]
    assert parse_command(shlex.split(entrypoint)[1:]).config == Path("/etc/shoal/shoal.yaml")


def test_a_config_that_shoal_ships_is_in_the_image() -> None:
    objects = documents(ordered(file=Path("digits")))
    assert "ConfigMap" not in {each["kind"] for each in objects}
    assert "--config digits" in objects[-1]["spec"]["entrypoint"]


def test_the_head_has_no_cpus_and_the_first_group_runs_the_command() -> None:
    assert job("deploy.gpu.count=1")["spec"]["rayClusterSpec"]["headGroupSpec"]["resources"] == {"CPU": "0"}
    assert [each.get("resources") for each in groups("deploy.gpu.count=1")] == [{"shoal_driver": "1"}, None]
    assert [each.get("resources") for each in groups("deploy.gpu.count=1", "deploy.cpu.count=0")] == [
        {"shoal_driver": "1"}
    ]


def test_autoscaling_is_on_where_machines_may_come() -> None:
    fixed, growing = job("deploy.gpu.count=2"), job("deploy.gpu.count=1", "deploy.gpu.most=5")
    assert "enableInTreeAutoscaling" not in fixed["spec"]["rayClusterSpec"]
    assert growing["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
    gpu = growing["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    assert (gpu["replicas"], gpu["minReplicas"], gpu["maxReplicas"]) == (1, 1, 5)


def test_rays_autoscaler_understands_the_machines() -> None:
    cluster = job("deploy.gpu.count=1", "deploy.gpu.most=4")["spec"]["rayClusterSpec"]
    config = _derive_autoscaling_config_from_ray_cr({"metadata": {"name": "a", "namespace": "b"}, "spec": cluster})
    types = config["available_node_types"]
    assert {name: (each["min_workers"], each["max_workers"]) for name, each in types.items()} == {
        **{"headgroup": (0, 0), "cpu": (1, 1), "gpu": (1, 4)}
    }
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["cpu"]["resources"] == {"CPU": 8, "memory": 32 * 2**30, "shoal_driver": 1}
    assert types["gpu"]["resources"] == {"CPU": 8, "GPU": 1, "memory": 64 * 2**30}
    assert config["idle_timeout_minutes"] == 5


def test_jobs_of_one_namespace_share_accounts_and_nothing_else() -> None:
    one, other = documents(ordered("deploy.name=one")), documents(ordered("deploy.name=other"))
    assert one[:2] == other[:2]
    assert not {each["metadata"]["name"] for each in one[2:]} & {each["metadata"]["name"] for each in other[2:]}


def test_kueue_and_autoscaling_exclude_each_other() -> None:
    with pytest.raises(ShoalError, match=r"deploy\.queue is team and autoscaling is on"):
        job("deploy.queue=team", "deploy.gpu.most=2")
    assert job("deploy.queue=team")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"


def test_only_workers_have_credentials_and_data() -> None:
    spec = job("deploy.storage.secret=keys", "deploy.storage.claim=pictures", "deploy.gpu.count=1")["spec"]
    cluster = spec["rayClusterSpec"]
    for pod in (spec["submitterPodTemplate"], cluster["headGroupSpec"]["template"]):
        assert "keys" not in str(pod)
        assert "pictures" not in str(pod)
        assert pod["spec"]["serviceAccountName"] == "shoal-head"
    for group in cluster["workerGroupSpecs"]:
        container = group["template"]["spec"]["containers"][0]
        assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
        assert {"name": "data", "mountPath": "/data"} in container["volumeMounts"]
        assert group["template"]["spec"]["serviceAccountName"] == "shoal"


def test_only_the_autoscaler_has_a_token_for_kubernetes() -> None:
    cluster = job("deploy.gpu.most=2")["spec"]["rayClusterSpec"]
    assert "kube-api" in {mount["name"] for mount in cluster["autoscalerOptions"]["volumeMounts"]}
    head = cluster["headGroupSpec"]["template"]["spec"]
    assert "kube-api" not in {mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    assert "kube-api" not in str(job()["spec"])


def test_the_clouds_metadata_is_reached_only_for_a_role() -> None:
    def reached(*sets: str) -> str:
        policies = [each for each in documents(ordered(*sets)) if each["kind"] == "NetworkPolicy"]
        rules = next(each for each in policies if each["metadata"]["name"] == "shoal-worker")["spec"]["egress"]
        return str([rule["to"] for rule in rules if "except" not in str(rule)])

    assert "169.254.170.23/32" in reached()  # s3://, and no secret
    assert "169.254.169.254/32" in reached("deploy.input=gs://a/b")
    assert "169.254.1" not in reached("deploy.storage.secret=keys")


def test_shared_memory_holds_rays_object_store() -> None:
    volumes = groups("deploy.cpu.memory_gib=100")[0]["template"]["spec"]["volumes"]
    assert next(each for each in volumes if each["name"] == "shm")["emptyDir"] == {
        "medium": "Memory",
        "sizeLimit": "30Gi",
    }
