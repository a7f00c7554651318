"""Where packets may go, by the NetworkPolicies among some manifests, and where they must and must not.

A part of `manifests.problems`. A policy is read as Kubernetes reads it: a pod that no policy selects is open; one
that is selected takes what any rule of any of its policies lets through; a connection needs the sender's egress and the
receiver's ingress.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tree = Mapping[str, Any]
GCS, DASHBOARD, CLIENT, WORKER = 6379, 8265, 10001, 10002


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, or an address outside."""

    what: str
    labels: Mapping[str, str]
    namespace: str | None = None  # None: unknown, so that every namespaceSelector may mean it
    address: str | None = None


@dataclass(frozen=True)
class Party:
    """The pods of one template, as manifests.py found them."""

    at: str
    role: str  # head, worker or submitter
    document: Tree
    labels: Mapping[str, str]

    @property
    def end(self) -> End:
        return End(self.at, {**_operator_labels(self), **self.labels}, _space(self.document))


OPERATOR = End("KubeRay's operator", {"app.kubernetes.io/component": "kuberay-operator"})
DNS = End("the cluster's DNS", {"k8s-app": "kube-dns"}, "kube-system")
CLOUD_DNS = End("Cloud DNS of GKE", {}, address="169.254.169.254")  # instead of pods
KUBERNETES = End("Kubernetes' API", {}, address="198.51.100.7")
STORE = End("the object store", {}, address="203.0.113.9")


def traffic_problems(documents: Sequence[Tree], parties: Sequence[Party]) -> Iterator[str]:
    """Connections that a run needs and has not, and ways in for strangers."""
    policies = [each for each in documents if each["kind"] == "NetworkPolicy"]
    for party in parties:
        mine = [each for each in parties if each.document is party.document]
        if not _selecting(policies, party.end, "Ingress"):
            yield f"{party.at}: no NetworkPolicy restricts the ingress of these pods."
            continue
        yield from _needs(policies, party, mine)
        yield from _strangers(policies, party, mine)


def _needs(policies: Sequence[Tree], party: Party, others: Sequence[Party]) -> Iterator[str]:
    end, heads = party.end, [each.end for each in others if each.role == "head"]
    wanted = [(end, names, 53, protocol) for names in (DNS, CLOUD_DNS) for protocol in ("UDP", "TCP")]
    if party.role == "submitter":
        wanted += [(end, head, DASHBOARD, "TCP") for head in heads]
    else:
        wanted += [(end, head, GCS, "TCP") for head in heads if head != end]
        wanted += [(end, each.end, WORKER, "TCP") for each in others if each.role == "worker"]
    if party.role == "head":
        wanted += [(OPERATOR, end, DASHBOARD, "TCP")]
        wanted += [(end, KUBERNETES, 443, "TCP"), (end, KUBERNETES, 6443, "TCP")] if _scales(party.document) else []
    if party.role == "worker" and "s3://" in str(party.document.get("spec", {}).get("entrypoint")):
        wanted += [(end, STORE, 443, "TCP")]
    for source, target, port, protocol in wanted:
        for side in _stopped(policies, source, target, (port, protocol)):
            yield f"{source.what} may not reach {target.what} on {protocol} {port}: {side} lets nothing such through."


def _strangers(policies: Sequence[Tree], party: Party, others: Sequence[Party]) -> Iterator[str]:
    end = party.end
    inside = End("any pod of the namespace", {"app": "stranger"}, end.namespace)
    name = "app.kubernetes.io/instance"
    runs = [
        End(f"a {each.role} of another run", {**each.end.labels, name: f"not-{each.labels.get(name)}"}, end.namespace)
        for each in others
    ]
    for stranger in (inside, End("a pod of another namespace", {"app": "stranger"}, "elsewhere"), *runs):
        for port in (GCS, DASHBOARD, CLIENT, WORKER):
            if not _stopped(policies, stranger, end, (port, "TCP")):
                yield f"{party.at}: {stranger.what} may reach port {port}, by a NetworkPolicy's spec.ingress."


def _stopped(policies: Sequence[Tree], source: End, target: End, port: tuple[int, str]) -> list[str]:
    """What stops a connection; empty if it is let through."""
    stopped = []
    for near, far, kind in ((source, target, "Egress"), (target, source, "Ingress")):
        chosen = _selecting(policies, near, kind) if near.address is None else []
        rules = [rule for policy in chosen for rule in policy["spec"].get(kind.lower()) or []]
        if chosen and not any(_lets(rule, far, port, near.namespace, kind) for rule in rules):
            names = ", ".join(policy["metadata"]["name"] for policy in chosen)
            stopped.append(f"spec.{kind.lower()} of NetworkPolicy {names}")
    return stopped


def _selecting(policies: Sequence[Tree], end: End, kind: str) -> list[Tree]:
    return [
        each
        for each in policies
        if _space(each) == end.namespace
        and kind in _types(each["spec"])
        and matches(each["spec"].get("podSelector", {}), end.labels)
    ]


def _types(spec: Tree) -> list[str]:
    """Kubernetes' default: ingress always, egress if there are rules."""
    return list(spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])])


def _lets(rule: Tree, far: End, port: tuple[int, str], space: str | None, kind: str) -> bool:
    peers = rule.get("to" if kind == "Egress" else "from")
    return (not peers or any(_is_peer(each, far, space) for each in peers)) and (
        not rule.get("ports") or any(_is_port(each, port) for each in rule["ports"])
    )


def _is_peer(peer: Tree, far: End, space: str | None) -> bool:
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        return (
            far.address is not None
            and _within(far.address, [block["cidr"]])
            and not _within(far.address, block.get("except", []))
        )
    if far.address is not None or not matches(peer.get("podSelector", {}), far.labels):
        return False
    if "namespaceSelector" not in peer:
        return far.namespace == space
    return far.namespace is None or matches(peer["namespaceSelector"], {"kubernetes.io/metadata.name": far.namespace})


def _within(address: str, blocks: Sequence[str]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(each) for each in blocks)


def _is_port(rule: Tree, port: tuple[int, str]) -> bool:
    if rule.get("protocol", "TCP") != port[1]:
        return False
    first = rule.get("port")
    return first is None or int(first) <= port[0] <= int(rule.get("endPort", first))


def matches(selector: Tree, labels: Mapping[str, str]) -> bool:
    """Whether a label selector means a pod of these labels."""
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items()) and all(
        _holds(each, labels) for each in selector.get("matchExpressions") or []
    )


def _holds(expression: Tree, labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values", [])
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[expression["operator"]]


def _space(document: Tree) -> str | None:
    space: str | None = document["metadata"].get("namespace")
    return space


def _scales(document: Tree) -> bool:
    spec = document["spec"]
    return bool(spec.get("rayClusterSpec", spec).get("enableInTreeAutoscaling"))


def _operator_labels(party: Party) -> dict[str, str]:
    """What KubeRay itself writes on the pods (controllers/ray/common/pod.go, rayjob_controller.go)."""
    if party.role == "submitter":
        return {
            "ray.io/originated-from-crd": "RayJob",
            "ray.io/originated-from-cr-name": str(party.document["metadata"]["name"]),
        }
    return {"ray.io/is-ray-node": "yes", "ray.io/node-type": party.role}
