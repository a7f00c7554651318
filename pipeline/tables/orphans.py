"""Artifacts that only ended generations name: found, and removed.

An artifact needs those whose digests are in its manifest: the reduction under a model, the statistics that others
continue. What no generation ever named stays: a fit may be about to publish it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from pipeline.tables.artifacts import MANIFEST, Artifact, ArtifactStore, read_artifact
from pipeline.tables.generations import Generation, GenerationsTable
from pipeline.tables.place import children

_DIGEST = re.compile(r"[0-9a-f]{64}")


def sweep_artifacts(store: ArtifactStore, tables: Sequence[GenerationsTable], samples_version: int) -> list[str]:
    """Remove them; their digests, in the order of removal.

    A reduction of the newest samples stays, and models on it: a fit that is under way may have found it. Broken off
    anywhere, the next call does the rest: what an artifact needs goes before it, and the rows that name it go last.
    """
    held = Held(store)
    needed = set(held.needed(_digests_of([each for table in tables for each in table.read()])))
    removed: dict[str, None] = {}
    for table in tables:
        for path, rows in table.ended().items():
            over = [
                each for each in held.needed(_digests_of(rows)) if each not in needed and not held.is_backbone(each)
            ]
            kept = [each for each in over if any(held.is_reduction_of(n, samples_version) for n in held.needed([each]))]
            for digest in over:
                if digest not in kept and held.has(digest):
                    store.remove(digest)
                    removed[digest] = None
            if not kept:
                table.forget([path])
    return list(removed)


def _digests_of(rows: Sequence[Generation]) -> set[str]:
    return {digest for row in rows for digest in row.digests}


class Held:
    """The artifacts of a store by digest, read when they are asked for, without tensors."""

    def __init__(self, store: ArtifactStore) -> None:
        self._folders = {path.name.rpartition("-")[2]: path for path in children(store.root)}
        self._read: dict[str, Artifact | None] = {}

    def needed(self, digests: Collection[str]) -> list[str]:
        """These and all that they need, each after what it needs itself."""
        order: dict[str, None] = {}
        stack = [(digest, False) for digest in sorted(digests)]
        seen: set[str] = set()
        while stack:
            digest, is_open = stack.pop()
            if is_open:
                order[digest] = None
            elif digest not in seen:
                seen.add(digest)
                stack.append((digest, True))
                stack.extend((each, False) for each in self._named(digest))
        return list(order)

    def has(self, digest: str) -> bool:
        """Whether any of it is there; a removal may have broken off."""
        return digest[:12] in self._folders

    def is_backbone(self, digest: str) -> bool:
        """Whether it is part of the samples, whatever becomes of their clusterings."""
        artifact = self._artifact(digest)
        return artifact is not None and artifact.kind == "backbone"

    def is_reduction_of(self, digest: str, samples_version: int) -> bool:
        """Whether it is what a fit to this version of the samples would look for."""
        artifact = self._artifact(digest)
        if artifact is None or artifact.kind != "reduction":
            return False
        return bool(artifact.manifest.get("inputs", {}).get("samples_version") == samples_version)

    def _named(self, digest: str) -> list[str]:
        artifact = self._artifact(digest)
        found = set() if artifact is None else set(_digests(artifact.manifest)) - {digest}
        return sorted(filter(self.has, found))

    def _artifact(self, digest: str) -> Artifact | None:
        if digest not in self._read:
            folder = self._folders.get(digest[:12])
            is_whole = folder is not None and (folder / MANIFEST).is_file()  # else its removal broke off
            self._read[digest] = read_artifact(folder, only=lambda name: False) if folder and is_whole else None
        return self._read[digest]


def _digests(manifest: Any) -> Iterator[str]:
    """All texts of a manifest that look like one."""
    if isinstance(manifest, str):
        yield from [manifest] if _DIGEST.fullmatch(manifest) else []
    elif isinstance(manifest, dict | list):
        for each in manifest.values() if isinstance(manifest, dict) else manifest:
            yield from _digests(each)
