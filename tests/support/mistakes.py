"""Mistakes in manifests: how one is put into a valid rendering, and what must be said about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

GONE = object()  # as a value: the field is taken out
SPEC = "spec/rayClusterSpec"
HEAD, CPU, GPU = f"{SPEC}/headGroupSpec", f"{SPEC}/workerGroupSpecs/0", f"{SPEC}/workerGroupSpecs/1"
HEAD_POD, CPU_POD, GPU_POD = (f"{each}/template/spec" for each in (HEAD, CPU, GPU))
HEAD_MAIN, CPU_MAIN, GPU_MAIN = (f"{each}/containers/0" for each in (HEAD_POD, CPU_POD, GPU_POD))


@dataclass(frozen=True)
class Mistake:
    """What is changed in the objects of an overlay, and what the sentence about it must hold."""

    said: tuple[str, ...]
    edits: tuple[tuple[str, Any], ...] = ()  # a path (~ stands for / in a key) and its new value
    target: str = "RayJob/shoal"
    overlay: str = "gpu-s3/job"
    also: dict[str, Any] | None = None  # an object that is added


def one(path: str, value: Any, *said: str, **more: Any) -> Mistake:
    """One field of the RayJob."""
    return Mistake(said, ((path, value),), **more)


def policy(name: str, path: str, value: Any, *said: str) -> Mistake:
    """One field of a NetworkPolicy."""
    return one(path, value, *said, target=f"NetworkPolicy/{name}")


def added(document: dict[str, Any], *said: str) -> Mistake:
    """An object too many."""
    return Mistake(said, also={**document, "metadata": {"name": "extra", "namespace": "shoal"}})


def changed(documents: Sequence[dict[str, Any]], mistake: Mistake) -> list[dict[str, Any]]:
    """The documents with the mistake; they are changed in place."""
    kind, name = mistake.target.split("/")
    (document,) = [each for each in documents if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    for path, value in mistake.edits:
        *way, last = [int(key) if key.isdigit() else key.replace("~", "/") for key in path.split("/")]
        tree: Any = document
        for key in way:
            tree = tree[key]
        if value is GONE:
            del tree[last]
        else:
            tree[last] = value
    return [*documents, *([] if mistake.also is None else [mistake.also])]


def caught(found: Sequence[str], mistake: Mistake) -> bool:
    """One sentence names both the object and the field."""
    return any(all(words in each for words in mistake.said) for each in found)
