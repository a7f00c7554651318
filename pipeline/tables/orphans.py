"""Artifacts that only ended generations name: found, and removed.

An artifact needs those whose digests are in its manifest: the reduction under a model, the statistics that others
continue. What no generation ever named stays: a fit may be about to publish it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from pipeline.tables.artifacts import Artifact, ArtifactStore, read_artifact
from pipeline.tables.generations import Generation, GenerationsTable

_DIGEST = re.compile(r"[0-9a-f]{64}")
_SHARED = "backbone"  # of the samples, whatever becomes of their clusterings


def sweep_artifacts(store: ArtifactStore, tables: Sequence[GenerationsTable], samples_version: int) -> list[str]:
    """Remove them; their digests, in the order of removal.

    A reduction of the newest samples stays, since a fit that is under way may have found it. Broken off anywhere, the
    next call does the rest: what an artifact needs is removed before it, and the rows that name it are forgotten last.
    """
    held = _Held(store)
    needed = set(held.needed(_digests_of([each for table in tables for each in table.read()])))
    removed: list[str] = []
    for table in tables:
        done = []
        for path, rows in table.ended().items():
            named = held.needed(_digests_of(rows))
            over = [each for each in named if each not in needed]
            kept = [each for each in over if held.is_shared(each, samples_version)]
            for digest in over:
                if digest not in kept and digest not in removed:
                    store.remove(digest)
                    removed.append(digest)
            done += [] if kept else [path]
        table.forget(done)
    return removed


def _digests_of(rows: Sequence[Generation]) -> set[str]:
    return {digest for row in rows for digest in row.digests}


class _Held:
    """The artifacts of a store by digest, read when they are asked for, without tensors."""

    def __init__(self, store: ArtifactStore) -> None:
        self._folders = {path.name.rsplit("-", 1)[1]: path for path in store.list()}
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

    def is_shared(self, digest: str, samples_version: int) -> bool:
        """Whether others than its generations may use it."""
        artifact = self._artifact(digest)
        if artifact is None:
            return False
        newest = artifact.manifest.get("inputs", {}).get("samples_version") == samples_version
        return artifact.kind == _SHARED or (artifact.kind == "reduction" and newest)

    def _named(self, digest: str) -> list[str]:
        artifact = self._artifact(digest)
        found = set() if artifact is None else set(_digests(artifact.manifest)) - {digest}
        return sorted(each for each in found if self._artifact(each) is not None)

    def _artifact(self, digest: str) -> Artifact | None:
        if digest not in self._read:
            folder = self._folders.get(digest[:12])
            artifact = None if folder is None else read_artifact(folder, only=lambda name: False)
            self._read[digest] = artifact if artifact is not None and artifact.digest == digest else None
        return self._read[digest]


def _digests(manifest: Any) -> Iterator[str]:
    """All texts of a manifest that look like one."""
    if isinstance(manifest, str):
        yield from [manifest] if _DIGEST.fullmatch(manifest) else []
    elif isinstance(manifest, dict | list):
        for each in manifest.values() if isinstance(manifest, dict) else manifest:
            yield from _digests(each)
