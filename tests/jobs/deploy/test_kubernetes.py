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


def pods(*sets: str) -> list[Tree]:
    """Templates of the pod that submits, of the head, of workers."""
    spec = job(*sets)["spec"]
    cluster = spec["rayClusterSpec"]
    return [spec["submitterPodTemplate"], *(each["template"] for each in (cluster["headGroupSpec"], *groups(*sets)))]


def egress(component: str, *sets: str) -> list[Tree]:
    found = {each["metadata"]["name"]: each for each in documents(ordered(*sets)) if each["kind"] == "NetworkPolicy"}
    rules: list[Tree] = found[f"shoal-{component}"]["spec"]["egress"]
    return rules


def blocks(rule: Tree) -> list[str]:
    return [each["ipBlock"]["cidr"] for each in rule["to"] if "except" not in each.get("ipBlock", {"except": ()})]


def disk(container: Tree) -> str:
    asked = container["resources"]
    assert asked["requests"] == asked["limits"]
    return str(asked["limits"]["ephemeral-storage"])


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
        ("deploy.input=az://a/in", "deploy.role_labels={azure.workload.identity/use: 'true'}", "deploy.gpu.most=2"),
        ("deploy.name=second", "deploy.namespace=team-1", "deploy.operator_namespace=ray-system"),
    ],
)
def test_every_rendering_holds(sets: tuple[str, ...]) -> None:
    assert problems(documents(ordered(*sets).waiting())) == []


def test_the_full_imagenet_holds() -> None:
    assert problems(documents(ordered(file=Path("imagenet_full")).waiting())) == []


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
    with pytest.raises(ShoalError, match=r"deploy\.queue is team and autoscaling is on.*without elastic jobs Kueue"):
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
    def reached(*sets: str) -> set[str]:
        return {
            block
            for rule in egress("worker", *sets)
            if 80 in {port["port"] for port in rule.get("ports", [])}
            for block in blocks(rule)
        }

    assert reached() == {"169.254.170.23/32", "fd00:ec2::23/128"}  # s3://, and no secret
    assert reached("deploy.input=gs://a/b", "deploy.output=gs://a/c") == {"169.254.169.254/32", "169.254.169.252/32"}
    assert reached("deploy.storage.secret=keys") == set()


@pytest.mark.parametrize("component", ["head", "worker", "submitter"])
def test_names_are_asked_of_dns_and_of_no_other_pod(component: str) -> None:
    rules = [each for each in egress(component) if 53 in {port["port"] for port in each.get("ports", [])}]
    pods, addresses = rules
    (peer,) = pods["to"]
    assert peer["namespaceSelector"]["matchExpressions"][0]["values"] == ["kube-system", "openshift-dns"]
    assert blocks(addresses) == ["169.254.20.10/32", "169.254.169.254/32"]
    assert addresses["ports"] == [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]


def test_what_a_pod_writes_is_asked_for() -> None:
    cluster = job("deploy.cpu.disk_gib=100", "deploy.gpu.most=2")["spec"]
    assert disk(cluster["submitterPodTemplate"]["spec"]["containers"][0]) == "2Gi"
    cluster = cluster["rayClusterSpec"]
    templates = [each["template"] for each in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert [disk(each["spec"]["containers"][0]) for each in templates] == ["30Gi", "110Gi", "60Gi"]
    assert [each["spec"]["volumes"][0]["emptyDir"]["sizeLimit"] for each in templates] == ["20Gi", "100Gi", "50Gi"]
    assert disk(cluster["autoscalerOptions"]) == "1Gi"


def test_ray_measures_the_disks_of_pods() -> None:
    for pod in pods():
        assert {"name": "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE", "value": "1"} in pod["spec"]["containers"][0]["env"]


def test_workers_alone_have_the_labels_of_a_role_and_keep_their_own() -> None:
    label = "azure.workload.identity/use"
    submitter, head, *workers = pods(f"deploy.role_labels={{{label}: 'true', app.kubernetes.io/component: head}}")
    assert [each["metadata"]["labels"].get(label) for each in (submitter, head)] == [None, None]
    assert {each["metadata"]["labels"][label] for each in workers} == {"true"}
    assert {each["metadata"]["labels"]["app.kubernetes.io/component"] for each in workers} == {"worker"}


def test_head_and_driver_are_not_evicted() -> None:
    sets = ("deploy.cpu.most=3", "deploy.gpu.most=2")
    (budget,) = [each for each in documents(ordered(*sets)) if each["kind"] == "PodDisruptionBudget"]
    assert budget["metadata"]["name"] == "shoal-stays"
    assert budget["spec"]["minAvailable"] == 4  # a head, and three machines at most that may run the command
    wanted = budget["spec"]["selector"]["matchLabels"].items()
    assert [wanted <= pod["metadata"]["labels"].items() for pod in pods(*sets)] == [False, True, True, False]


def test_a_job_has_no_deadline_unless_it_is_given_one() -> None:
    assert "activeDeadlineSeconds" not in job()["spec"]
    assert job("deploy.deadline_s=60")["spec"]["activeDeadlineSeconds"] == 60


def test_shared_memory_holds_rays_object_store() -> None:
    volumes = groups("deploy.cpu.memory_gib=100")[0]["template"]["spec"]["volumes"]
    assert next(each for each in volumes if each["name"] == "shm")["emptyDir"] == {
        "medium": "Memory",
        "sizeLimit": "30Gi",
    }
