"""The objects among some manifests that Ray makes pods of."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

Tree = Mapping[str, Any]
ROOT = Path(__file__).parents[3]
EXTERNAL = "shoal.dev/external"
GIB = 2**30
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": GIB, "Ti": 2**40}


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster, by itself or of a RayJob."""

    document: Tree
    prefix: str  # of the fields of the cluster in the document: "spec" or "spec.rayClusterSpec"
    spec: Tree

    @property
    def name(self) -> str:
        return title(self.document)

    def field(self, field: str) -> str:
        return f"{self.name}: {self.prefix}.{field}"


@dataclass(frozen=True)
class Pods:
    """The pods of one template."""

    document: Tree
    at: str  # of the template, as a sentence begins with it
    role: str  # head, worker or submitter
    template: Tree
    group: Tree  # of Ray; empty for a submitter

    @property
    def spec(self) -> Tree:
        return get(self.template, "spec", {})

    @property
    def labels(self) -> Tree:
        return get(self.template, "metadata.labels", {})

    @property
    def main(self) -> Tree:
        """Ray's own container is the first."""
        return next(iter(self.spec.get("containers", [])), {})


def get(tree: Any, path: str, default: Any = None) -> Any:
    """What is at a dotted path; the default where there is nothing."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return default if tree is None else tree


def title(document: Tree) -> str:
    return f"{document.get('kind')} {get(document, 'metadata.name')}"


def amount(quantity: Any) -> float:
    """A quantity of Kubernetes ("500m", "32Gi") as a number."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(quantity))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{quantity!r} is no quantity that manifests of shoal use; give a number with one of {_UNITS}")
    return float(match[1]) * _UNITS[match[2]]


def clusters(documents: Sequence[Tree]) -> Iterator[Cluster]:
    for document in documents:
        prefix = {"RayCluster": "spec", "RayJob": "spec.rayClusterSpec"}.get(document["kind"])
        if prefix and get(document, prefix):
            yield Cluster(document, prefix, get(document, prefix))


def pods_of(documents: Sequence[Tree]) -> Iterator[Pods]:
    """All pods that Ray's objects make."""
    for cluster in clusters(documents):
        head = cluster.spec.get("headGroupSpec", {})
        yield Pods(cluster.document, cluster.field("headGroupSpec.template"), "head", head.get("template", {}), head)
        for group in cluster.spec.get("workerGroupSpecs", []):
            where = cluster.field(f"workerGroupSpecs[{group.get('groupName')}].template")
            yield Pods(cluster.document, where, "worker", group.get("template", {}), group)
    for document in documents:
        if document["kind"] == "RayJob" and get(document, "spec.submitterPodTemplate"):
            template = get(document, "spec.submitterPodTemplate")
            yield Pods(document, f"{title(document)}: spec.submitterPodTemplate", "submitter", template, {})


def trees(tree: Any, path: str = "") -> Iterator[tuple[str, Tree]]:
    if isinstance(tree, Mapping):
        yield path.removeprefix("."), tree
    children = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, child in children:
        yield from trees(child, f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}")


def leaves(document: Tree) -> Iterator[tuple[str, Any]]:
    for path, tree in trees(document):
        for key, value in tree.items():
            values = value if isinstance(value, list) else [value]
            yield from ((f"{path}.{key}", each) for each in values if not isinstance(each, Mapping | list))


@cache
def project() -> tuple[str, SpecifierSet, set[str]]:
    """Version of shoal, the versions of Ray that it takes, and those that the images have."""
    tree = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = next(each for each in tree["dependencies"] if each.startswith("ray["))
    locks = (ROOT / "infra" / "docker").glob("requirements-*.lock")
    pinned = {
        found[1] for lock in locks for found in re.finditer(r"^ray(?:\[.*?\])?==([\w.]+)", lock.read_text(), re.M)
    }
    return tree["version"], SpecifierSet(wanted.partition("]")[2]), pinned
