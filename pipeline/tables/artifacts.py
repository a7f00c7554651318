"""Artifacts: a manifest and tensors in a folder named by their digest; what was fitted, kept and verified."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pipeline.tables.place import Place, children, place, write_whole
from pipeline.tables.schema import TableError

MANIFEST, TENSORS = "artifact.json", "tensors.safetensors"
_KIND = re.compile(r"[a-z0-9][a-z0-9_.]*(-[a-z0-9_.]+)*")
_FOLDER_DIGITS = 12
_FOLDER = re.compile(rf"{_KIND.pattern}-[0-9a-f]{{{_FOLDER_DIGITS}}}")


@dataclass(frozen=True)
class Artifact:
    """A fitted thing as data: `manifest` is JSON, `tensors` are numpy."""

    kind: str
    digest: str  # SHA-256 of kind, manifest and tensors, 64 hex digits
    manifest: dict[str, Any]
    tensors: dict[str, np.ndarray]


class ArtifactStore:
    """A folder of artifacts, each in `<kind>-<first 12 digits of the digest>`.

    The manifest is written last: an artifact is there when its manifest is. Two writers of one write the same bytes.
    """

    def __init__(self, root: str | Place) -> None:
        self.root = place(root)

    def path(self, kind: str, digest: str) -> Place:
        """Where an artifact is, or would be."""
        return self.root / f"{kind}-{digest[:_FOLDER_DIGITS]}"

    def write(self, kind: str, manifest: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Artifact:
        """Store an artifact, unless the same one is there already. It appears whole or not at all.

        Raises TableError if the manifest is not JSON or a tensor has a type that safetensors lacks.
        """
        packed = _pack(tensors)
        described = _canonical(kind, manifest)
        digest = _digest(described, packed)
        final = self.path(kind, digest)
        if not (final / MANIFEST).is_file():
            self._publish(final, described, digest, packed)
        return read_artifact(final)

    def read(self, which: str | Place) -> Artifact:
        """An artifact by path, by folder name, or by at least 8 leading digits of its digest; verified."""
        text = str(which)
        if re.fullmatch(r"[0-9a-f]{8,64}", text) is None:
            inside = self.root / text
            return read_artifact(inside if _FOLDER.fullmatch(text) and inside.exists() else which)
        folders = [path for path in self.list() if path.name.rsplit("-", 1)[1].startswith(text[:_FOLDER_DIGITS])]
        found = [each for each in map(read_artifact, folders) if each.digest.startswith(text)]
        if len(found) != 1:
            names = [path.name for path in self.list()]
            raise TableError(
                f"{len(found)} artifacts in {self.root} have a digest that starts with {text}; there are {names}."
            )
        return found[0]

    def list(self) -> list[Place]:
        """Folders of all artifacts, sorted by name; nothing is verified."""
        return [path for path in children(self.root) if _FOLDER.fullmatch(path.name) and (path / MANIFEST).is_file()]

    def _publish(self, final: Place, described: str, digest: str, packed: bytes) -> None:
        manifest = json.dumps({**json.loads(described), "digest": digest}, indent=2) + "\n"
        try:
            final.mkdir(parents=True, exist_ok=True)
            write_whole(final / TENSORS, packed)
            write_whole(final / MANIFEST, manifest.encode())
        except OSError as error:
            raise TableError(f"Artifact {final} cannot be written ({error}); check the folder.") from error


def read_artifact(path: str | Place) -> Artifact:
    """The artifact in a folder (or whose `artifact.json` is given), after comparing its content with its digest.

    Raises TableError if it is missing, is no artifact, or was changed.
    """
    folder = place(path)
    folder = folder.parent if folder.name == MANIFEST else folder
    try:
        stored = json.loads((folder / MANIFEST).read_text())
        packed = (folder / TENSORS).read_bytes()
        kind, manifest, expected = stored["kind"], stored["manifest"], stored["digest"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TableError(
            f"{path} is no artifact, a folder with {MANIFEST} and {TENSORS} ({type(error).__name__}: {error}); "
            "give a folder that shoal wrote."
        ) from error
    found = _digest(_canonical(kind, manifest), packed)
    if found != expected:
        raise TableError(
            f"Artifact {folder} has digest {found[:12]}… but its {MANIFEST} says {str(expected)[:12]}…: its content "
            "changed; restore it, or delete the folder and fit again."
        )
    return Artifact(kind, expected, manifest, _unpack(folder, packed))


def _canonical(kind: str, manifest: Mapping[str, Any]) -> str:
    if _KIND.fullmatch(str(kind)) is None:
        raise TableError(f"{kind!r} is no kind of artifact; expected lower-case letters, digits, '.', '_' and '-'.")
    try:
        return json.dumps({"kind": kind, "manifest": manifest}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TableError(
            f"The manifest of a {kind} artifact is not JSON ({error}); keep numbers and text in it."
        ) from error


def _digest(described: str, packed: bytes) -> str:
    content = hashlib.sha256(described.encode())
    content.update(b"\n")
    content.update(packed)
    return content.hexdigest()


def _pack(tensors: Mapping[str, np.ndarray]) -> bytes:
    ordered = {name: np.asarray(tensors[name], order="C") for name in sorted(tensors)}  # safetensors ignores strides
    try:
        return bytes(save(ordered))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        types = {name: str(tensor.dtype) for name, tensor in ordered.items()}
        raise TableError(
            f"Tensors of types {types} cannot be stored ({error}); use floats, integers or bools."
        ) from error


def _unpack(folder: Place, packed: bytes) -> dict[str, np.ndarray]:
    try:
        return dict(load(packed))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise TableError(
            f"{folder / TENSORS} is not in safetensors format ({error}); restore it, or fit again."
        ) from error
