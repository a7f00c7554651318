"""Who may talk to the pods of a run, and to whom they may talk: one policy for each kind of pod, and nothing else.

A network plugin has to enforce them; without one Kubernetes takes them and does nothing.
"""

from __future__ import annotations

from jobs.deploy.config import DeployConfig
from jobs.deploy.order import Order
from jobs.deploy.pods import labels, scales
from jobs.deploy.text import Node

_BEYOND: Node = {  # anything but a machine's own metadata service, whose role is the machine's
    "to": [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
        {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10", "fd00:ec2::/32"]}},
    ]
}
_ROLES: dict[str, Node] = {  # where a pod gets the role of its service account, if it is not a web address
    "s3": {
        "to": [{"ipBlock": {"cidr": "169.254.170.23/32"}}, {"ipBlock": {"cidr": "fd00:ec2::23/128"}}],
        "ports": [{"protocol": "TCP", "port": 80}],
    },
    "gs": {
        "to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}, {"ipBlock": {"cidr": "169.254.169.252/32"}}],
        "ports": [{"protocol": "TCP", "port": 80}, {"protocol": "TCP", "port": 988}],
    },
}


def policies(order: Order) -> list[Node]:
    """Of the head, of workers, of the pod that submits."""
    deploy = order.deploy
    ray, metrics = _from([_pods(deploy, "head", "worker")]), _from([_monitoring(deploy)], 8080)
    dashboard = _from([_pods(deploy, "submitter"), _operator(deploy)], 8265)
    kubernetes = [{**_BEYOND, "ports": _tcp(443, 6443)}] if scales(deploy) else []  # its address is each cluster's own
    return [
        _policy(deploy, "head", [ray, dashboard, metrics], [*_within(deploy), *kubernetes]),
        _policy(deploy, "worker", [ray, metrics], [*_within(deploy), *_storage(order)]),
        _policy(deploy, "submitter", [], [_to([_pods(deploy, "head")], 8265), *_names()]),
    ]


def _policy(deploy: DeployConfig, component: str, ingress: list[Node], egress: list[Node]) -> Node:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": f"{deploy.name}-{component}", "namespace": deploy.namespace, "labels": labels(deploy)},
        "spec": {
            "podSelector": {"matchLabels": labels(deploy, component)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _within(deploy: DeployConfig) -> list[Node]:
    return [_to([_pods(deploy, "head", "worker")]), *_names()]


def _storage(order: Order) -> list[Node]:
    """To object stores and hubs of weights, and to what gives out a role where no secret has the credentials."""
    deploy = order.deploy
    rules: list[Node] = [{**_BEYOND, "ports": _tcp(*deploy.egress_ports)}] if deploy.egress_ports else []
    schemes = {value.partition("://")[0].lower().replace("gcs", "gs") for _, value in order.places()}
    if deploy.storage.secret is None:
        rules += [rule for scheme, rule in _ROLES.items() if scheme in schemes]
    return rules


def _names() -> list[Node]:
    """To DNS: the servers of Kubernetes or, at port 5353, of OpenShift; what each machine has, which no pod is."""
    servers = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": ["kube-system", "openshift-dns"]}
    cache, cloud_dns = "169.254.20.10/32", "169.254.169.254/32"  # the latter of GKE: roles are at another port of it
    return [
        {"to": [{"namespaceSelector": {"matchExpressions": [servers]}}], "ports": _dns(53, 5353)},
        {"to": [{"ipBlock": {"cidr": cache}}, {"ipBlock": {"cidr": cloud_dns}}], "ports": _dns(53)},
    ]


def _dns(*ports: int) -> list[Node]:
    return [{"protocol": protocol, "port": port} for protocol in ("UDP", "TCP") for port in ports]


def _pods(deploy: DeployConfig, *components: str) -> Node:
    which = {"key": "app.kubernetes.io/component", "operator": "In", "values": list(components)}
    return {"podSelector": {"matchLabels": labels(deploy), "matchExpressions": [which]}}


def _operator(deploy: DeployConfig) -> Node:
    """Asks the dashboard how the job is doing."""
    return {
        "namespaceSelector": _namespace(deploy.operator_namespace),
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
    }


def _monitoring(deploy: DeployConfig) -> Node:
    return {"namespaceSelector": _namespace(deploy.monitoring_namespace)}


def _namespace(name: str | None) -> Node:
    return {} if name is None else {"matchLabels": {"kubernetes.io/metadata.name": name}}


def _from(peers: list[Node], *ports: int) -> Node:
    return {"from": peers, **({"ports": _tcp(*ports)} if ports else {})}


def _to(peers: list[Node], *ports: int) -> Node:
    return {"to": peers, **({"ports": _tcp(*ports)} if ports else {})}


def _tcp(*ports: int) -> list[Node]:
    return [{"protocol": "TCP", "port": port} for port in ports]
