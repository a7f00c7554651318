"""Mistakes that let somebody in, or a secret out: each is caught, by the object and the field."""

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
    added,
    caught,
    changed,
    one,
    policy,
)

Build = Callable[[str], list[dict[str, Any]]]
MISTAKES = {  # Secrets
    "a key in a variable": one(
        f"{CPU_MAIN}/env/0", {"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}, "RayJob shoal", "AWS_SECRET_ACCESS_KEY"
    ),
    "a key in a URL": one(
        "spec/entrypoint", "shoal run https://me:word@host/shards --output out", "spec.entrypoint", "credential"
    ),
    "a key among annotations": one(
        "metadata/annotations/by", "AKIA" + "A" * 16, "metadata.annotations.by", "credential"
    ),
    "a secret itself": added({"apiVersion": "v1", "kind": "Secret", "stringData": {}}, "Secret extra", "data"),
    # Who the processes are
    "root, perhaps": one(f"{CPU_POD}/securityContext/runAsNonRoot", GONE, "[cpu]", "securityContext.runAsNonRoot"),
    "root": one(f"{HEAD_POD}/securityContext/runAsUser", 0, "headGroupSpec", "securityContext.runAsUser"),
    "any system call": one(f"{GPU_POD}/securityContext/seccompProfile", GONE, "[gpu]", "seccompProfile"),
    "escalation": one(
        f"{CPU_MAIN}/securityContext/allowPrivilegeEscalation", True, "[cpu]", "allowPrivilegeEscalation"
    ),
    "privileges": one(f"{CPU_MAIN}/securityContext/privileged", True, "[cpu]", "securityContext", "privileged"),
    "a capability": one(f"{GPU_MAIN}/securityContext/capabilities/add", ["SYS_PTRACE"], "[gpu]", "capabilities"),
    "a root that can be written": one(
        f"{HEAD_MAIN}/securityContext/readOnlyRootFilesystem", False, "headGroupSpec", "readOnlyRootFilesystem"
    ),
    "an autoscaler with all rights": one(
        f"{SPEC}/autoscalerOptions/securityContext", GONE, "autoscalerOptions", "allowPrivilegeEscalation"
    ),
    "a submitter with all rights": one(
        "spec/submitterPodTemplate/spec/securityContext", GONE, "submitterPodTemplate", "runAsNonRoot"
    ),
    "the machine's network": one(f"{CPU_POD}/hostNetwork", True, "[cpu]", "hostNetwork"),
    "the machine's disk": one(
        f"{CPU_POD}/volumes/1", {"name": "scratch", "hostPath": {"path": "/"}}, "[cpu]", "hostPath"
    ),
    "Kubernetes' token for workers": one(
        f"{GPU_POD}/automountServiceAccountToken", True, "[gpu]", "automountServiceAccountToken"
    ),
    # Who may come in
    "no token": one(f"{SPEC}/authOptions/mode", "disabled", "authOptions.mode", "disabled"),
    "authentication left out": one(f"{SPEC}/authOptions", GONE, "authOptions.mode", "token"),
    "the dashboard on the internet": one(
        f"{HEAD}/serviceType", "LoadBalancer", "headGroupSpec.serviceType", "ClusterIP"
    ),
    "the dashboard's ingress": one(f"{HEAD}/enableIngress", True, "headGroupSpec.enableIngress", "exposed"),
    "an ingress by hand": added(
        {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "spec": {}}, "Ingress extra", "way in"
    ),
    "a port of every machine": added(
        {"apiVersion": "v1", "kind": "Service", "spec": {"type": "NodePort"}}, "Service extra", "spec.type", "NodePort"
    ),
    "a gate that is closed": one(
        f"{SPEC}/networkPolicy", {"mode": "DenyAll"}, "spec.rayClusterSpec.networkPolicy", "gate"
    ),
    # Where packets go
    "policies of another namespace": Mistake(
        ("headGroupSpec.template", "no NetworkPolicy", "ingress"), (("metadata/namespace", "elsewhere"),)
    ),
    "pods that no policy selects": one(f"{CPU}/template/metadata/labels", GONE, "[cpu]", "no NetworkPolicy", "ingress"),
    "a policy open to all": policy(
        "shoal-within", "spec/ingress", [{}], "RayJob shoal", "another namespace", "spec.ingress"
    ),
    "a policy open to the namespace": policy(
        "shoal-dashboard", "spec/ingress/0/from", [{"podSelector": {}}], "any pod of the namespace", "8265"
    ),
    "a dashboard that the operator cannot ask": policy(
        "shoal-dashboard", "spec/ingress/0/from/1", GONE, "KubeRay's operator", "8265"
    ),
    "a submitter that cannot submit": one(
        "spec/submitterPodTemplate/metadata/labels/app.kubernetes.io~component",
        "cli",
        "submitterPodTemplate",
        "8265",
        "spec.egress",
    ),
    "workers without a head": policy(
        "shoal-within",
        "spec/podSelector/matchExpressions/0/values",
        ["worker"],
        "workerGroupSpecs[cpu]",
        "6379",
        "spec.ingress",
    ),
    "a policy open to other runs": policy(
        "shoal-within",
        "spec/ingress/0/from/0/podSelector/matchLabels/app.kubernetes.io~instance",
        GONE,
        "headGroupSpec",
        "a worker of another run",
        "6379",
    ),
    "a dashboard for other runs": policy(
        "shoal-dashboard",
        "spec/ingress/0/from/0/podSelector/matchLabels/app.kubernetes.io~instance",
        GONE,
        "a submitter of another run",
        "8265",
    ),
    "no names on GKE": policy("shoal-default-deny", "spec/egress/0/to/2", GONE, "Cloud DNS", "UDP 53", "spec.egress"),
    "no names": policy("shoal-default-deny", "spec/egress", GONE, "DNS", "UDP 53", "spec.egress"),
    "no object store": policy("shoal-object-store", "spec/egress/0/ports/0/port", 80, "[cpu]", "object store", "443"),
    "no way to Kubernetes": policy("shoal-autoscaler", "spec/egress", GONE, "headGroupSpec", "Kubernetes' API", "443"),
}


@pytest.mark.skipif(not SCHEMAS.is_dir(), reason=NO_SCHEMAS)
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_caught(build: Build, mistake: Mistake) -> None:
    found = problems(changed(build(mistake.overlay), mistake))  # test_kuberay.py proves that there were none
    assert caught(found, mistake), found
