"""A run as Kubernetes objects: a RayJob of KubeRay 1.7, and what it needs in its namespace.

A RayJob makes a cluster, runs the command on it and takes it down. When the head is lost, nothing of the cluster is
left to save: KubeRay makes another one, up to `retries` times, and the same command continues from its tables.
"""

from __future__ import annotations

import json
from importlib.metadata import version

from jobs.deploy.config import DeployConfig, MachinesConfig
from jobs.deploy.network import policies
from jobs.deploy.order import Order
from jobs.deploy.pods import (
    HEAD_OBJECT_STORE_BYTES,
    STAYS,
    account,
    autoscaler,
    config_name,
    config_path,
    head,
    labels,
    scales,
    submitter,
    worker,
)
from jobs.deploy.text import Node, quoted_for_kubernetes
from jobs.submit.submission import DRIVER
from models.errors import ShoalError

__all__ = ["documents"]


def documents(order: Order) -> list[Node]:
    """The objects, in the order in which they are to be made. Raises ShoalError for what Kueue would refuse."""
    order = order.at(config_path(order))
    deploy = order.deploy
    _check_queue(deploy)
    objects = [_service_account(deploy, "worker", deploy.role_annotations), _service_account(deploy, "head", {})]
    if order.file_text is not None:
        objects.append(_config_map(order, order.file_text))
    return [*objects, *policies(order), _disruption_budget(order), _ray_job(order)]


def _check_queue(deploy: DeployConfig) -> None:
    if deploy.queue and scales(deploy):
        raise ShoalError(
            f"deploy.queue is {deploy.queue} and autoscaling is on (most is more than count), but without elastic jobs "
            "Kueue admits a fixed number of machines only; set count to what the run needs and leave most out, or "
            "leave the queue out."
        )


def _metadata(deploy: DeployConfig, name: str) -> Node:
    return {"name": name, "namespace": deploy.namespace, "labels": labels(deploy)}


def _service_account(deploy: DeployConfig, component: str, annotations: dict[str, str]) -> Node:
    """Of all jobs of the namespace: a cloud's role is bound to its name."""
    more = {"annotations": dict(annotations)} if annotations else {}
    shared = {"labels": {"app.kubernetes.io/part-of": "shoal"}, **more}
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": _metadata(deploy, account(deploy, component)) | shared,
        "automountServiceAccountToken": False,
    }


def _config_map(order: Order, text: str) -> Node:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(order.deploy, config_name(order)),
        "data": {order.file_name: text},
    }


def _disruption_budget(order: Order) -> Node:
    """Nobody drains the machine of the head or of the command: at least as many of their pods stay as there can be.

    Not maxUnavailable 0, for which Kubernetes asks the owner of a pod how many there are, and Ray's cluster cannot say.
    """
    deploy, drivers = order.deploy, next(iter(order.groups.values()))
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(deploy, f"{deploy.name}-stays"),
        "spec": {"minAvailable": 1 + drivers.limit, "selector": {"matchLabels": {**labels(deploy), **STAYS}}},
    }


def _ray_job(order: Order) -> Node:
    deploy = order.deploy
    external = [f"secret/{name}" for name in (deploy.storage.secret, deploy.pull_secret) if name]
    external += [f"claim/{deploy.storage.claim}"] if deploy.storage.claim else []
    metadata = _metadata(deploy, deploy.name)
    if external:
        metadata["annotations"] = {"shoal.dev/external": ", ".join(external)}
    if deploy.queue:
        metadata["labels"] = {**metadata["labels"], "kueue.x-k8s.io/queue-name": deploy.queue}
    deadline = {} if deploy.deadline_s is None else {"activeDeadlineSeconds": deploy.deadline_s}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": f"shoal {quoted_for_kubernetes(order.parsed.words)}",
            "entrypointResources": json.dumps({DRIVER: 1}),
            "submissionMode": "K8sJobMode",
            "submitterPodTemplate": submitter(order),
            # KubeRay puts it between double quotes of bash: no values but of letters, digits and dots.
            "metadata": {"shoal_config": order.digest or "", "shoal_version": version("shoal")},
            "backoffLimit": deploy.retries,
            **deadline,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": deploy.ttl_s,
            "rayClusterSpec": _cluster(order),
        },
    }


def _cluster(order: Order) -> Node:
    return {
        "rayVersion": version("ray").partition("+")[0],
        "authOptions": {"mode": "token"},
        **({"enableInTreeAutoscaling": True, "autoscalerOptions": autoscaler()} if scales(order.deploy) else {}),
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "resources": {"CPU": "0"},
            "rayStartParams": {"object-store-memory": str(HEAD_OBJECT_STORE_BYTES)},
            "template": head(order),
        },
        "workerGroupSpecs": [_group(order, name, machines) for name, machines in order.groups.items()],
    }


def _group(order: Order, name: str, machines: MachinesConfig) -> Node:
    drives = name == next(iter(order.groups))
    return {
        "groupName": name,
        "replicas": machines.count,
        "minReplicas": machines.count,
        "maxReplicas": machines.limit,
        **({"resources": {DRIVER: "1"}} if drives else {}),
        "rayStartParams": {},
        "template": worker(order, machines, drives),
    }
