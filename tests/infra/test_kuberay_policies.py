"""The reading of NetworkPolicies by which manifests are judged, on policies small enough to be read by hand."""

from __future__ import annotations

from typing import Any

import pytest
from manifests.traffic import End, Party, _stopped, traffic_problems

WEB, APP = End("web", {"app": "web"}, "a"), End("app", {"app": "app"}, "a")
FAR = End("far", {"app": "web"}, "b")
NOT_WEB = {"key": "app", "operator": "NotIn", "values": ["web"]}


def policy(spec: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "NetworkPolicy", "metadata": {"name": "p", "namespace": "a"}, "spec": spec}


def lets(spec: dict[str, Any], source: End, target: End, port: int = 80, protocol: str = "TCP") -> bool:
    return not _stopped([policy(spec)], source, target, (port, protocol))


def test_pods_that_no_policy_selects_are_open() -> None:
    assert lets({"podSelector": {"matchLabels": {"app": "other"}}}, WEB, APP)


def test_a_policy_without_rules_closes() -> None:
    assert not lets({"podSelector": {}}, WEB, APP)  # ingress is its type by default
    assert not lets({"podSelector": {}, "policyTypes": ["Egress"]}, WEB, APP)


@pytest.mark.parametrize(
    ("rule", "source", "open_"),
    [
        ({}, FAR, True),
        ({"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}, WEB, True),
        ({"from": [{"podSelector": {"matchLabels": {"app": "web"}}}]}, FAR, False),  # of this namespace only
        ({"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "web"}}}]}, FAR, True),
        ({"from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "a"}}}]}, FAR, False),
        ({"from": [{"podSelector": {"matchExpressions": [NOT_WEB]}}]}, WEB, False),
        ({"from": [{"podSelector": {"matchExpressions": [NOT_WEB]}}]}, APP, True),
        ({"from": [{"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}]}, WEB, True),
        ({"ports": [{"port": 80}]}, WEB, True),
        ({"ports": [{"port": 70, "endPort": 80}]}, WEB, True),
        ({"ports": [{"port": 81}]}, WEB, False),
        ({"ports": [{"port": 80, "protocol": "UDP"}]}, WEB, False),
    ],
)  # fmt: skip
def test_a_rule_lets_through(rule: dict[str, Any], source: End, open_: bool) -> None:
    assert lets({"podSelector": {"matchLabels": {"app": "app"}}, "ingress": [rule]}, source, APP) is open_


def test_blocks_of_addresses_and_their_exceptions() -> None:
    rule = {"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}
    spec = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]}
    assert lets(spec, WEB, End("store", {}, address="10.2.0.1"))
    assert not lets(spec, WEB, End("metadata", {}, address="10.1.0.1"))
    assert not lets(spec, WEB, FAR)  # a block is of addresses outside


def test_pods_without_any_policy_are_a_problem() -> None:
    job = {"kind": "RayJob", "metadata": {"name": "j", "namespace": "a"}, "spec": {}}
    (found,) = traffic_problems([job], [Party("RayJob j: head", "head", job, {})])
    assert "RayJob j: head" in found
    assert "no NetworkPolicy" in found
