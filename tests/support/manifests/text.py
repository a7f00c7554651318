"""Rules for what is written in any manifest: it is of its schema, holds no secret, and opens no way in."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema
import kubernetes_validate

from manifests.model import ROOT, Tree, get, leaves, title, trees

SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay"
NO_SCHEMAS = f"KubeRay's schemas are not at {SCHEMAS}: objects of ray.io/v1 are not checked against them"
KUBERNETES = "1.33"  # whose schemas the rest is held against
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSW|ACCESS_KEY|API_?KEY|CREDENTIAL|PRIVATE", re.IGNORECASE)
_SECRET_TEXT = re.compile(r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE|://[^/\s:@]+:[^/\s@]+@|\bhf_[A-Za-z0-9]{20}")
_EXPOSED = {"Ingress", "IngressRoute", "Route", "Gateway", "HTTPRoute", "TCPRoute", "VirtualService"}


@cache
def _ray_schema(kind: str) -> jsonschema.Draft202012Validator | None:
    file = SCHEMAS / f"{kind}.v1.json"
    return jsonschema.Draft202012Validator(json.loads(file.read_text())) if file.exists() else None


def schema_problems(document: Tree) -> Iterator[str]:
    """Fields that are unknown, missing or of the wrong type."""
    if document.get("apiVersion") == "ray.io/v1":
        validator = _ray_schema(document["kind"])
        if validator is None:
            warnings.warn(NO_SCHEMAS, stacklevel=2)
            return
        for error in validator.iter_errors(document):
            yield f"{title(document)}: {_path(error)}: {error.message[:200]}."
        return
    yield from _core_problems(json.dumps(document))


@cache  # a schema is 1.5 MB, and most objects are of many renderings
def _core_problems(text: str) -> tuple[str, ...]:
    document = json.loads(text)
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{title(document)}: {_path(error)}: {error.message[:200]}.",)
    except kubernetes_validate.SchemaNotFoundError:
        version = document.get("apiVersion")
        return (f"{title(document)}: apiVersion {version} has no such kind in Kubernetes {KUBERNETES}.",)
    return ()


def _path(error: Any) -> str:
    return ".".join(str(each) for each in error.absolute_path) or "the object"


def exposure_problems(document: Tree) -> Iterator[str]:
    """Ways in from outside the cluster: whoever reaches Ray's dashboard runs code."""
    if document["kind"] in _EXPOSED:
        yield f"{title(document)}: opens a way in; reach the dashboard by `kubectl port-forward`, and leave this out."
    for field in ("spec.type", "spec.serviceType"):
        if document["kind"] == "Service" and get(document, field, "ClusterIP") != "ClusterIP":
            yield f"{title(document)}: {field} is {get(document, field)}; a Service of Ray is a ClusterIP."


def secret_problems(document: Tree) -> Iterator[str]:
    """Credentials in the text. A manifest refers to a Secret, and never is one."""
    if document["kind"] == "Secret":
        yield f"{title(document)}: data is in the manifest; make it in the cluster, and name it as external."
    for path, value in leaves(document):
        if isinstance(value, str) and _SECRET_TEXT.search(value):
            yield f"{title(document)}: {path} holds a credential; refer to a Secret by secretKeyRef or envFrom."
    for path, tree in trees(document):
        name = str(tree.get("name", ""))
        if "value" in tree and _SECRET_NAME.search(name) and not name.endswith(("_PATH", "_FILE", "_DIR", "_MODE")):
            yield f"{title(document)}: {path} gives {name} as a value; refer to a Secret by secretKeyRef or envFrom."
