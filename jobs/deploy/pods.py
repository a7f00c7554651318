"""Pods of a Ray cluster: no root, nothing written but to memory and to folders that end with the pod.

The root file system is read-only; Ray's sessions and logs, caches and the home folder are in /tmp, an emptyDir.
"""

from __future__ import annotations

import math
from typing import Any

from jobs.deploy.config import DeployConfig, MachinesConfig
from jobs.deploy.order import Order
from jobs.deploy.text import Node

CONFIG_FOLDER = "/etc/shoal"
_IDLE_S = 300  # a machine stays from one step of a run to the next
_TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105  where Kubernetes' clients look for it
_WRITTEN_GIB = 10  # of a container, beside its scratch: what it prints
_OBJECT_STORE = 0.3  # of a machine's memory, which is Ray's default; with a smaller /dev/shm it falls back to a disk
HEAD_OBJECT_STORE_BYTES = 1_000_000_000  # no task puts anything there
_TMP, _SHM = "/tmp", "/dev/shm"  # noqa: S108  both are emptyDirs
_CONTAINER_SECURITY: Node = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
_POD_SECURITY: Node = {  # the image says which user: a site may have a range of its own
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
# An eviction of the head or of the driver's machine is the end of the cluster.
STAYS = {"shoal.dev/stays": "true"}
_STAY = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}


def scales(deploy: DeployConfig) -> bool:
    """Whether Ray is to ask for machines and let go of them."""
    return any(group.limit > group.count for group in (deploy.cpu, deploy.gpu))


def config_name(order: Order) -> str:
    """Of the config map."""
    return f"{order.deploy.name}-config"


def config_path(order: Order) -> str:
    """Of the config file on a worker."""
    return f"{CONFIG_FOLDER}/{order.file_name}"


def labels(deploy: DeployConfig, component: str | None = None) -> dict[str, str]:
    """Ours. KubeRay's head service goes by app.kubernetes.io/name, which therefore stays KubeRay's."""
    own = {"app.kubernetes.io/part-of": "shoal", "app.kubernetes.io/instance": deploy.name}
    return own if component is None else {**own, "app.kubernetes.io/component": component}


def account(deploy: DeployConfig, component: str) -> str:
    """Of workers, which has a role for the storage; or of the rest, by which the autoscaler asks for machines."""
    return deploy.service_account if component == "worker" else f"{deploy.service_account}-head"


def head(order: Order) -> Node:
    """The head: Ray's own services and dashboard. No CPU for tasks, no credentials of the storage."""
    deploy = order.deploy
    container = {
        **_container("ray-head", order, _amounts(deploy.head)),
        "ports": [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "metrics", "containerPort": 8080},
        ],
        "env": _environment(),
        "volumeMounts": [_mount("tmp", _TMP), _mount("shm", _SHM)],
    }
    volumes = [_scratch(deploy.head), _memory(1), *([_api_token()] if scales(deploy) else [])]
    return _pod(order, "head", container, volumes, selector=deploy.head.selector, stays=True)


def autoscaler() -> Node:
    """Ray's autoscaler beside the head: the one container that may talk to Kubernetes."""
    amounts = {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "1Gi"}
    return {
        "version": "v2",
        "idleTimeoutSeconds": _IDLE_S,
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [_mount("kube-api", _TOKEN_FOLDER, readOnly=True), _mount("tmp", _TMP)],
    }


def worker(order: Order, machines: MachinesConfig, drives: bool) -> Node:
    """A machine that works; the command itself runs on one that `drives`."""
    storage = order.deploy.storage
    mounts = [_mount("tmp", _TMP), _mount("shm", _SHM)]
    volumes = [_scratch(machines), _memory(math.ceil(machines.memory_gib * _OBJECT_STORE))]
    if storage.claim:
        mounts.append(_mount("data", storage.mount))
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": storage.claim}})
    if order.file_text is not None:
        mounts.append(_mount("config", CONFIG_FOLDER, readOnly=True))
        volumes.append({"name": "config", "configMap": {"name": config_name(order)}})
    container = {
        **_container("ray-worker", order, _amounts(machines)),
        "ports": [{"name": "metrics", "containerPort": 8080}],
        "env": [*_environment(), {"name": "SHOAL_LOG", "value": "json"}],
        **({"envFrom": [{"secretRef": {"name": storage.secret}}]} if storage.secret else {}),
        "volumeMounts": mounts,
    }
    more = order.deploy.role_labels
    pod = _pod(order, "worker", container, volumes, selector=machines.selector, more=more, stays=drives)
    pod["spec"]["terminationGracePeriodSeconds"] = 120  # for what is being written
    if storage.claim:  # a volume is root's at first
        pod["spec"]["securityContext"] = {**_POD_SECURITY, "fsGroup": 1000, "fsGroupChangePolicy": "OnRootMismatch"}
    if machines.gpus:
        pod["spec"]["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return pod


def submitter(order: Order) -> Node:
    """The pod that hands the command to the head and follows its log."""
    container = {
        **_container("ray-job-submitter", order, {"cpu": "500m", "memory": "1Gi", "ephemeral-storage": "2Gi"}),
        "env": _environment(),
        "volumeMounts": [_mount("tmp", _TMP)],
    }
    pod = _pod(order, "submitter", container, [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}])
    pod["spec"]["restartPolicy"] = "Never"
    return pod


def _pod(
    order: Order,
    component: str,
    container: Node,
    volumes: list[Node],
    *,
    selector: dict[str, str] | None = None,
    more: dict[str, str] | None = None,
    stays: bool = False,
) -> Node:
    return {
        "metadata": {
            "labels": {**(more or {}), **labels(order.deploy, component), **(STAYS if stays else {})},
            **({"annotations": dict(_STAY)} if stays else {}),
        },
        "spec": {
            "serviceAccountName": account(order.deploy, component),
            "automountServiceAccountToken": False,
            "securityContext": _POD_SECURITY,
            **({"imagePullSecrets": [{"name": pull}]} if (pull := order.deploy.pull_secret) else {}),
            **({"nodeSelector": dict(selector)} if selector else {}),
            "containers": [container],
            "volumes": volumes,
        },
    }


def _container(name: str, order: Order, amounts: dict[str, str]) -> Node:
    return {
        "name": name,
        "image": order.image,
        "imagePullPolicy": "IfNotPresent",
        "securityContext": _CONTAINER_SECURITY,
        "resources": {"requests": amounts, "limits": amounts},
    }


def _amounts(machines: MachinesConfig) -> dict[str, str]:
    gpus = {"nvidia.com/gpu": str(machines.gpus)} if machines.gpus else {}
    return {
        "cpu": str(machines.cpus),
        "memory": f"{machines.memory_gib}Gi",
        "ephemeral-storage": f"{machines.disk_gib + _WRITTEN_GIB}Gi",
        **gpus,
    }


def _environment() -> list[Node]:
    values = {
        "HOME": _TMP,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DASHBOARD_ENABLE_K8S_DISK_USAGE": "1",  # else Ray says of every pod's disk that it is empty
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _mount(name: str, path: str, **more: Any) -> Node:
    return {"name": name, "mountPath": path, **more}


def _scratch(machines: MachinesConfig) -> Node:
    return {"name": "tmp", "emptyDir": {"sizeLimit": f"{machines.disk_gib}Gi"}}


def _memory(gib: int) -> Node:
    return {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{gib}Gi"}}


def _api_token() -> Node:
    """What automounting would give to every container of the pod."""
    return {
        "name": "kube-api",
        "projected": {
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
                {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
            ]
        },
    }
