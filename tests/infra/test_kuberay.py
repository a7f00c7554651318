"""infra/kuberay: what kustomize makes of it is what KubeRay, Kubernetes and shoal itself take."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import NO_SCHEMAS, SCHEMAS, problems
from manifests.model import pods_of
from manifests.traffic import End, Party, _stopped

KUBERAY = Path(__file__).parents[2] / "infra" / "kuberay"
OVERLAYS = sorted(
    str(file.parent.relative_to(KUBERAY / "overlays")) for file in KUBERAY.glob("overlays/**/kustomization.yaml")
)
JOBS = [each for each in OVERLAYS if not each.endswith("/cluster")]
Build = Callable[[str], list[dict[str, Any]]]


ROLES = [("169.254.170.23", 80), ("fd00:ec2::23", 80), ("169.254.169.254", 80), ("169.254.169.252", 988)]


def only(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [each for each in documents if each["kind"] == kind]
    return found


def test_the_overlays_are_those_of_the_readme() -> None:
    assert {"kind/job", "gpu-s3/job", "gpu-shared/job", "kueue", "kind/cluster", "gpu-s3/cluster"} <= set(OVERLAYS)
    text = (KUBERAY / "README.md").read_text()
    assert [each for each in OVERLAYS if f"`overlays/{each}`" not in text] == []


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason=NO_SCHEMAS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_no_problems(build: Build, overlay: str) -> None:
    assert problems(build(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_is_one_ray_object_and_what_it_needs(build: Build, overlay: str) -> None:
    kinds = [each["kind"] for each in build(overlay)]
    assert [each for each in kinds if each.startswith("Ray")] == ["RayJob" if overlay in JOBS else "RayCluster"]
    assert {"Namespace", "ServiceAccount", "NetworkPolicy"} <= set(kinds)
    assert "Secret" not in kinds


@pytest.mark.parametrize("name", ["kind", "gpu-s3", "gpu-shared"])
def test_batch_and_interactive_clusters_are_the_same(build: Build, name: str) -> None:
    job = only(build(f"{name}/job"), "RayJob")
    assert job["spec"]["rayClusterSpec"] == only(build(f"{name}/cluster"), "RayCluster")["spec"]


def images(documents: list[dict[str, Any]]) -> set[str]:
    return {each["image"] for pods in pods_of(documents) for each in pods.spec["containers"]}


def reached(documents: list[dict[str, Any]], role: str) -> list[tuple[str, int]]:
    """Which givers of roles the pods of a role may speak to."""
    policies = [each for each in documents if each["kind"] == "NetworkPolicy"]
    ends = [Party(each.at, role, each.document, each.labels).end for each in pods_of(documents) if each.role == role]
    assert ends
    return [
        (address, port)
        for address, port in ROLES
        if any(not _stopped(policies, end, End("", {}, address=address), (port, "TCP")) for end in ends)
    ]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_needs_one_image(build: Build, overlay: str) -> None:
    (image,) = images(build(overlay))
    assert image.endswith("-cpu" if overlay.startswith("kind") else "-cuda")


@pytest.mark.parametrize("name", ["kind", "gpu-s3", "gpu-shared"])
def test_an_image_is_named_in_one_place_for_cluster_and_job(build: Build, tmp_path: Path, name: str) -> None:
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    overlay = tmp_path / "kuberay" / "overlays" / name
    text = (overlay / "cluster/kustomization.yaml").read_text()
    assert text.count("newTag: 0.1.0-") == 1
    (overlay / "cluster/kustomization.yaml").write_text(
        text.replace("newTag: 0.1.0-", "newName: registry.example.com/shoal\n    newTag: 9.9-")
    )
    for kind in ("cluster", "job"):
        (image,) = images(build(os.path.relpath(overlay / kind, KUBERAY / "overlays")))
        assert image.startswith("registry.example.com/shoal:9.9-c")


def test_a_role_of_the_cloud_is_reached_by_workers_alone_and_only_where_it_is_asked_for(
    build: Build, tmp_path: Path
) -> None:
    shutil.copytree(KUBERAY, tmp_path / "kuberay")
    cluster = tmp_path / "kuberay/overlays/gpu-s3/cluster/kustomization.yaml"
    s3 = "  - ../../../components/s3\n"
    cluster.write_text(cluster.read_text().replace(s3, s3 + "  - ../../../components/cloud-role\n"))
    with_role = build(os.path.relpath(cluster.parents[1] / "job", KUBERAY / "overlays"))
    assert reached(build("gpu-s3/job"), "worker") == []
    assert reached(with_role, "worker") == ROLES
    assert reached(with_role, "head") == reached(with_role, "submitter") == []
    assert "envFrom" not in str(with_role)
    if SCHEMAS.is_dir():
        assert problems(with_role) == []


def test_kueue_gets_the_job_of_gpu_s3_at_a_fixed_size(build: Build) -> None:
    job, queued = only(build("gpu-s3/job"), "RayJob"), only(build("kueue"), "RayJob")
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "shoal"
    assert "suspend" not in queued["spec"]  # Kueue's to set
    assert queued["spec"]["entrypoint"] == job["spec"]["entrypoint"]
    groups = queued["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    sizes = [(each["minReplicas"], each["replicas"], each["maxReplicas"]) for each in groups]
    assert sizes == [(1, 1, 1), (8, 8, 8)]
    assert queued["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False


@pytest.mark.parametrize("overlay", ["kind/cluster", "gpu-s3/cluster"])
def test_rays_own_autoscaler_reads_the_machines_as_they_are_meant(build: Build, overlay: str) -> None:
    from ray.autoscaler._private.kuberay import autoscaling_config  # noqa: PLC0415  half a second

    config = autoscaling_config._derive_autoscaling_config_from_ray_cr(only(build(overlay), "RayCluster"))
    nodes = config["available_node_types"]
    assert nodes["headgroup"]["resources"]["CPU"] == 0
    assert nodes["cpu"]["resources"]["shoal_driver"] == 1
    assert nodes["cpu"]["resources"]["CPU"] == (2 if overlay.startswith("kind") else 8)
    assert config["idle_timeout_minutes"] == 5
    if overlay.startswith("gpu"):
        assert nodes["gpu"]["resources"]["GPU"] == 1
        assert (nodes["gpu"]["min_workers"], nodes["gpu"]["max_workers"]) == (0, 8)


@pytest.mark.parametrize("overlay", ["gpu-s3/job", "gpu-shared/job", "kueue"])
def test_a_run_asks_for_the_gpus_that_its_group_may_grow_to(build: Build, overlay: str) -> None:
    from jobs.config import resolve  # noqa: PLC0415  imports torch
    from jobs.extract import room_of  # noqa: PLC0415
    from jobs.submit.parse import parse_command  # noqa: PLC0415

    spec = only(build(overlay), "RayJob")["spec"]
    settings = resolve(None, parse_command(shlex.split(spec["entrypoint"])[1:]).sets)
    (gpus,) = [each for each in spec["rayClusterSpec"]["workerGroupSpecs"] if each["groupName"] == "gpu"]
    assert room_of(settings, shards=1000) == [{"CPU": 1, "GPU": 1}] * gpus["maxReplicas"]
    assert settings.ray.wait_s >= 600  # a machine with a GPU takes minutes to come


def test_without_schemas_a_warning_says_so_and_other_rules_hold(monkeypatch: pytest.MonkeyPatch, build: Build) -> None:
    monkeypatch.setattr("manifests.text._ray_schema", lambda kind: None)
    documents = build("kind/job")
    only(documents, "RayJob")["spec"]["backoffLimit"] = 0
    with pytest.warns(UserWarning, match="KubeRay's schemas are not at"):
        found = problems(documents)
    assert [each for each in found if "spec.backoffLimit" in each]
