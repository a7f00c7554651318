"""Mistakes that keep a run from starting or ending: each is caught, by the object and the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from manifests import NO_SCHEMAS, SCHEMAS, problems
from mistakes import (
    CPU,
    CPU_MAIN,
    CPU_POD,
    GONE,
    GPU_MAIN,
    GPU_POD,
    HEAD,
    HEAD_MAIN,
    HEAD_POD,
    SPEC,
    Mistake,
    caught,
    changed,
    one,
)

Build = Callable[[str], list[dict[str, Any]]]
MINE = (
    ("spec/entrypoint", "shoal run in --output out -c /etc/shoal/my.yaml"),
    (f"{CPU_POD}/volumes/1", {"name": "config", "configMap": {"name": "extra"}}),
    (f"{CPU_MAIN}/volumeMounts/1", {"name": "config", "mountPath": "/etc/shoal"}),
    (f"{CPU_MAIN}/env/0/value", "/dev/shm"),  # a home, in place of the folder that the config takes the place of
)
MAP: dict[str, Any] = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "extra", "namespace": "shoal"}}
MISTAKES = {
    # Schemas
    "a kind that Kubernetes does not know": Mistake(
        ("Deployment extra", "apiVersion apps/v2"),
        also={"apiVersion": "apps/v2", "kind": "Deployment", "metadata": {"name": "extra"}},
    ),
    "a field that KubeRay does not know": one(f"{HEAD}/replicas", 1, "RayJob shoal", "headGroupSpec", "'replicas'"),
    "a value of the wrong type": one("spec/backoffLimit", "3", "RayJob shoal", "spec.backoffLimit", "integer"),
    "a number that must be text": one(f"{HEAD}/rayStartParams/port", 6379, "rayStartParams.port", "6379"),
    "a misspelt field of Kubernetes": one(
        "automountToken", True, "shoal-head", "automountToken", target="ServiceAccount/shoal-head"
    ),
    # References
    "a secret that nobody has": one(
        f"{CPU_MAIN}/envFrom/0/secretRef/name", "other", "workerGroupSpecs[cpu]", "envFrom", "secret/other"
    ),
    "a secret key of such": one(
        f"{GPU_MAIN}/env/0",
        {"name": "A", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k"}}},
        "[gpu]",
        "secretKeyRef",
        "secret/x",
    ),
    "a claim that nobody has": one(
        f"{GPU_POD}/volumes/2/persistentVolumeClaim/claimName",
        "mine",
        "[gpu]",
        "persistentVolumeClaim",
        "claim/mine",
        overlay="gpu-shared/job",
    ),
    "a config map that nobody has": one(
        f"{CPU_POD}/volumes/0",
        {"name": "shm", "configMap": {"name": "config"}},
        "[cpu]",
        "configMap",
        "configmap/config",
    ),
    "an account that nobody has": one(
        f"{HEAD_POD}/serviceAccountName", "boss", "headGroupSpec", "serviceAccountName", "serviceaccount/boss"
    ),
    "a mount of no volume": one(f"{CPU_MAIN}/volumeMounts/1/name", "scrach", "[cpu]", "volumeMounts", "scrach"),
    "a secret for the image that nobody has": one(
        f"{GPU_POD}/imagePullSecrets", [{"name": "registry"}], "[gpu]", "imagePullSecrets", "secret/registry"
    ),
    "a secret of the token that nobody has": one(
        f"{SPEC}/authOptions/secretName", "mine", "headGroupSpec", "authOptions.secretName", "secret/mine"
    ),
    # Entrypoint
    "a setting that is none, in a config map": Mistake(
        ("spec.entrypoint", "wrokers"), MINE, also={**MAP, "data": {"my.yaml": "extract: {wrokers: 2}"}}
    ),
    "a config that no config map has": Mistake(
        ("spec.entrypoint", "/etc/shoal/my.yaml"), MINE, also={**MAP, "data": {"mine.yaml": "{}"}}
    ),
    "a config that is not mounted": Mistake(
        ("spec.entrypoint", "/etc/shoal/my.yaml"), MINE[:1], also={**MAP, "data": {"my.yaml": "{}"}}
    ),
    "a command that is none": one(
        "spec/entrypoint", "shoal runn in --output out", "RayJob shoal: spec.entrypoint", "runn"
    ),
    "an option that is none": one("spec/entrypoint", "shoal run in --outputt out", "spec.entrypoint", "--outputt"),
    "an argument left out": one("spec/entrypoint", "shoal run --output out", "spec.entrypoint", "INPUT"),
    "a setting that is none": one(
        "spec/entrypoint", "shoal run in --output out --set extract.wrokers=2", "spec.entrypoint", "wrokers"
    ),
    "a config that is not there": one(
        "spec/entrypoint", "shoal run in --output out -c imagenett", "spec.entrypoint", "imagenett"
    ),
    "another program": one("spec/entrypoint", "python train.py", "spec.entrypoint", "python"),
    "two commands": one("spec/entrypoint", "shoal demo --output a; shoal demo --output b", "spec.entrypoint", "quote"),
    "a variable of the shell": one("spec/entrypoint", "shoal demo --output $HOME/demo", "spec.entrypoint", "quote"),
    "a variable of Kubernetes": one(
        "spec/entrypoint", "shoal demo --output '$(RAY_AUTH_TOKEN)'", "spec.entrypoint", "Kubernetes"
    ),
    # Versions
    "another version of Ray": one(f"{SPEC}/rayVersion", "2.9.0", "spec.rayClusterSpec.rayVersion", "2.9.0"),
    "an image of another version": one(
        f"{HEAD_MAIN}/image", "shoal:0.0.9-cuda", "headGroupSpec", "image", "0.0.9-cuda"
    ),
    "an image of no version": one(f"{HEAD_MAIN}/image", "registry:5000/shoal", "headGroupSpec", "image", "tag"),
    "the latest image": one(f"{CPU_MAIN}/image", "shoal:latest", "[cpu]", "image", "latest"),
    "an image without CUDA for a GPU": one(f"{GPU_MAIN}/image", "shoal:0.1.0-cpu", "[gpu]", "CUDA"),
    # Machines
    "requests that are not limits": one(f"{CPU_MAIN}/resources/requests/memory", "1Gi", "[cpu]", "resources", "1Gi"),
    "no limits": one(f"{GPU_MAIN}/resources", {}, "[gpu]", "resources.limits"),
    "a folder on a disk that nobody asked for": Mistake(
        ("[cpu]", "resources.limits lacks ephemeral-storage"),
        (
            (f"{CPU_MAIN}/resources/limits/ephemeral-storage", GONE),
            (f"{CPU_MAIN}/resources/requests/ephemeral-storage", GONE),
        ),
    ),
    "a folder larger than what was asked for": one(
        f"{HEAD_POD}/volumes/1/emptyDir/sizeLimit", "40Gi", "headGroupSpec", "ephemeral-storage 30Gi", "40 GiB"
    ),
    "a folder without a limit": one(
        f"{GPU_POD}/volumes/1/emptyDir/sizeLimit", GONE, "[gpu]", "emptyDir scratch", "sizeLimit"
    ),
    "an autoscaler on a disk that nobody asked for": one(
        f"{SPEC}/autoscalerOptions/resources/limits/ephemeral-storage",
        GONE,
        "autoscalerOptions.resources.limits",
        "ephemeral-storage",
    ),
    "a home that cannot be written": one(f"{CPU_MAIN}/env/0/value", "/home/shoal", "[cpu]", "HOME", "/home/shoal"),
    "a disk that Ray does not look at": one(
        f"{HEAD_MAIN}/env/1", GONE, "headGroupSpec", "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE"
    ),
    "a head that a drain takes": one(
        "spec/minAvailable", 0, "headGroupSpec", "spec.minAvailable is 0", target="PodDisruptionBudget/shoal-head"
    ),
    "a driver that a drain takes, of more than were thought of": one(
        f"{CPU}/maxReplicas", 5, "PodDisruptionBudget shoal-driver", "[cpu]", "spec.minAvailable is 4", "5 of these"
    ),
    "a pod of two budgets": one(
        "spec/selector/matchLabels",
        {"app.kubernetes.io/part-of": "shoal"},
        "[cpu]",
        "2 PodDisruptionBudgets",
        target="PodDisruptionBudget/shoal-head",
    ),
    "a driver that a drain takes": one(
        f"{CPU}/template/metadata/labels/shoal.dev~drives", GONE, "[cpu]", "PodDisruptionBudget"
    ),
    "a head with work": one(f"{HEAD}/resources/CPU", "4", "headGroupSpec", "num-cpus"),
    "a head by default": Mistake(("headGroupSpec", "num-cpus"), ((f"{HEAD}/resources", GONE),)),
    "a group that may not shrink": one(f"{CPU}/minReplicas", GONE, "workerGroupSpecs[cpu]", "minReplicas"),
    "growth without an autoscaler": one(
        f"{SPEC}/enableInTreeAutoscaling", False, "enableInTreeAutoscaling", "maxReplicas"
    ),
    "a queue and an autoscaler": one(
        "metadata/labels/kueue.x-k8s.io~queue-name", "shoal", "enableInTreeAutoscaling", "Kueue"
    ),
    "an autoscaler without a token": one(
        f"{SPEC}/autoscalerOptions/volumeMounts/0", GONE, "autoscalerOptions.volumeMounts", "serviceAccountToken"
    ),
    "GPUs that are tainted": one(f"{GPU_POD}/tolerations", GONE, "[gpu]", "tolerations", "nvidia.com/gpu"),
    "no shared memory": one(f"{CPU_MAIN}/volumeMounts/0", GONE, "[cpu]", "/dev/shm"),
    "too little shared memory": one(f"{CPU_POD}/volumes/0/emptyDir/sizeLimit", "64Mi", "[cpu]", "/dev/shm", "64Mi"),
    "shared memory on a disk": one(f"{GPU_POD}/volumes/0/emptyDir/medium", GONE, "[gpu]", "/dev/shm", "Memory"),
    "two sizes of one group": one(f"{CPU}/rayStartParams/num-cpus", "8", "[cpu]", "rayStartParams"),
    # What becomes of the job
    "a driver on the head": one("spec/entrypointResources", GONE, "spec.entrypointResources", "head"),
    "a driver on no machine": one(f"{CPU}/resources", GONE, "spec.entrypointResources", "shoal_driver"),
    "resources in quotes that Ray does not read": Mistake(
        ("[cpu]", "rayStartParams.resources"),
        ((f"{CPU}/resources", GONE), (f"{CPU}/rayStartParams/resources", '{"shoal_driver": 1}')),
    ),
    "a driver on another resource": one(
        "spec/entrypointResources", '{"driver": 1}', "spec.entrypointResources", "does not name shoal_driver"
    ),
    "a submitter that is started again for ever": one(
        "spec/submitterPodTemplate/spec/restartPolicy", "Always", "submitterPodTemplate.spec.restartPolicy"
    ),
    "no second try": one("spec/backoffLimit", 0, "spec.backoffLimit"),
    "a cluster for ever": one("spec/shutdownAfterJobFinishes", False, "spec.shutdownAfterJobFinishes"),
    "no time to live": one("spec/ttlSecondsAfterFinished", GONE, "spec.ttlSecondsAfterFinished"),
    "a submitter as KubeRay makes it": one("spec/submitterPodTemplate", GONE, "spec.submitterPodTemplate"),
    "a submitter that the head takes along": one(
        "spec/submissionMode", "SidecarMode", "spec.submissionMode", "SidecarMode"
    ),
    "a name with a dot": one("metadata/name", "shoal.v2", "RayJob shoal.v2", "metadata.name"),
    "a name that is too long": one("metadata/name", "s" * 48, "metadata.name", "47"),
}


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason=NO_SCHEMAS)
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_caught(build: Build, mistake: Mistake) -> None:
    found = problems(changed(build(mistake.overlay), mistake))  # test_kuberay.py proves that there were none
    assert caught(found, mistake), found


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason=NO_SCHEMAS)
def test_settings_in_a_config_map_are_taken(build: Build) -> None:
    good = Mistake((), MINE, also={**MAP, "data": {"my.yaml": "extract: {actors: 2}"}})
    assert problems(changed(build("gpu-s3/job"), good)) == []
