"""Artifacts: a manifest and tensors in a folder named by their digest; what was fitted, kept and verified."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from safetensors.numpy import load

from pipeline.tables.place import Place, children, opened, place, remove_tree, sizes, write_whole
from pipeline.tables.schema import TableError
from pipeline.tables.tensors import Slot, pack, read_header, read_slots, slots

Wanted: TypeAlias = Callable[[str], bool]  # by the name of a tensor

MANIFEST, TENSORS = "artifact.json", "tensors.safetensors"
_KIND = re.compile(r"[a-z0-9][a-z0-9_.]*(-[a-z0-9_.]+)*")
_ATTEMPTS = 3  # of a write whose files somebody deletes
_FOLDER_DIGITS = 12
_FOLDER = re.compile(rf"{_KIND.pattern}-[0-9a-f]{{{_FOLDER_DIGITS}}}")


@dataclass(frozen=True)
class Artifact:
    """A fitted thing as data: `manifest` is JSON, `tensors` are numpy."""

    kind: str
    digest: str  # SHA-256 of kind, manifest and all tensors, 64 hex digits
    manifest: dict[str, Any]
    tensors: dict[str, np.ndarray]  # those that were asked for


@dataclass(frozen=True)
class Seal:
    """SHA-256 of the parts of the tensors' file, so that each part can be verified without the others."""

    header: str
    tensors: dict[str, str]  # by name

    @classmethod
    def of(cls, packed: bytes) -> Seal:
        """Of a whole file."""
        source = pa.BufferReader(packed)
        header = read_header(source)
        read = read_slots(source, slots(header, len(packed)))
        return cls(_sha256(header), {slot.name: _sha256(content) for slot, content in read})

    def digest(self, described: str) -> str:
        """Of the whole artifact."""
        return _sha256(_compact({**json.loads(described), "header": self.header, "tensors": self.tensors}).encode())


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
        packed = pack(tensors)
        described = _canonical(kind, manifest)
        seal = Seal.of(packed)
        parts = {"digest": seal.digest(described), "header": seal.header, "tensors": seal.tensors}
        return self._put(kind, {**json.loads(described), **parts}, packed)

    def keep(self, artifact: Artifact) -> Artifact:
        """Store an artifact that another store has, under the digest that it has there.

        Raises TableError if not all of its tensors were read.
        """
        packed = pack(artifact.tensors)
        described = _canonical(artifact.kind, artifact.manifest)
        if Seal.of(packed).digest(described) == artifact.digest:
            return self.write(artifact.kind, artifact.manifest, artifact.tensors)
        if _early_digest(described, packed) == artifact.digest:
            return self._put(artifact.kind, {**json.loads(described), "digest": artifact.digest}, packed)
        raise TableError(
            f"Artifact {artifact.kind}-{artifact.digest[:_FOLDER_DIGITS]} has other content than its digest says; "
            "read all of its tensors before storing it elsewhere."
        )

    def read(self, which: str | Place, only: Wanted | None = None) -> Artifact:
        """An artifact by path, by folder name, or by at least 8 leading digits of its digest; verified.

        `only` as of `read_artifact`.
        """
        text = str(which)
        if re.fullmatch(r"[0-9a-f]{8,64}", text) is None:
            inside = self.root / text
            return read_artifact(inside if _FOLDER.fullmatch(text) and inside.exists() else which, only)
        folders = [path for path in self.list() if path.name.rsplit("-", 1)[1].startswith(text[:_FOLDER_DIGITS])]
        found = [each for each in (read_artifact(path, only) for path in folders) if each.digest.startswith(text)]
        if len(found) != 1:
            names = [path.name for path in self.list()]
            raise TableError(
                f"{len(found)} artifacts in {self.root} have a digest that starts with {text}; there are {names}."
            )
        return found[0]

    def remove(self, digest: str) -> None:
        """Delete the artifact with this digest, of 64 digits, its manifest first; what is not there is done already."""
        for folder in children(self.root):
            if not (_FOLDER.fullmatch(folder.name) and folder.name.endswith(f"-{digest[:_FOLDER_DIGITS]}")):
                continue
            try:
                if _stated_digest(folder) in (digest, None):  # None: a removal that broke off
                    (folder / MANIFEST).unlink(missing_ok=True)
                    remove_tree(folder, strict=True)
            except OSError as error:
                raise TableError(f"Artifact {folder} cannot be removed ({error}); check the folder.") from error

    def list(self) -> list[Place]:
        """Folders of all artifacts, sorted by name; nothing is verified."""
        return [path for path in children(self.root) if _FOLDER.fullmatch(path.name) and (path / MANIFEST).is_file()]

    def _put(self, kind: str, stored: Mapping[str, Any], packed: bytes) -> Artifact:
        """Write it; again where `shoal remove` swept up tensors that were without a manifest yet."""
        final = self.path(kind, stored["digest"])
        described = f"{json.dumps(stored, indent=2)}\n".encode()
        try:
            if {MANIFEST, TENSORS} <= _sizes(final).keys():
                return read_artifact(final)
            for _ in range(_ATTEMPTS):
                with suppress(FileNotFoundError):  # the folder was swept up, or a file before it had its name
                    final.mkdir(parents=True, exist_ok=True)
                    write_whole(final / TENSORS, packed)
                    write_whole(final / MANIFEST, described)
                if _sizes(final).items() >= {(MANIFEST, len(described)), (TENSORS, len(packed))}:
                    return Artifact(kind, stored["digest"], stored["manifest"], load(packed))
        except OSError as error:
            raise TableError(f"Artifact {final} cannot be written ({error}); check the folder.") from error
        raise TableError(f"Artifact {final} was deleted while it was written; let `shoal remove` finish, run again.")


def read_artifact(path: str | Place, only: Wanted | None = None) -> Artifact:
    """The artifact in a folder (or whose `artifact.json` is given), after comparing its content with its digest.

    With `only`, just the tensors whose names it accepts are read, compared and returned; of an artifact that an earlier
    shoal wrote, all are read. Raises TableError if it is missing, is no artifact, or was changed.
    """
    folder = place(path)
    folder = folder.parent if folder.name == MANIFEST else folder
    try:
        stored = json.loads((folder / MANIFEST).read_text())
        kind, manifest, expected = stored["kind"], stored["manifest"], stored["digest"]
        described = _canonical(kind, manifest)
        if "tensors" in stored:
            seal = Seal(stored["header"], dict(stored["tensors"]))
            found, tensors = _read_sealed(folder, described, seal, only)
        else:
            found, tensors = _read_early(folder, described, expected, only)
    except TableError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise TableError(
            f"{path} is no artifact, a folder with {MANIFEST} and {TENSORS} ({type(error).__name__}: {error}); "
            "give a folder that shoal wrote."
        ) from error
    if found != expected:
        raise TableError(
            f"Artifact {folder} has digest {found[:12]}… but its {MANIFEST} says {str(expected)[:12]}…: its content "
            "changed; restore it, or delete the folder and fit again."
        )
    return Artifact(kind, expected, manifest, tensors)


Found: TypeAlias = tuple[str, dict[str, np.ndarray]]  # digest and tensors of what is there


def _read_sealed(folder: Place, described: str, seal: Seal, only: Wanted | None) -> Found:
    with _content(folder / TENSORS, whole=only is None) as source:
        header = read_header(source)
        if _sha256(header) != seal.header:
            return Seal(_sha256(header), seal.tensors).digest(described), {}
        every = _slots(folder, header, source)
        read = list(read_slots(source, [slot for slot in every if only is None or only(slot.name)]))
    digests = {slot.name: seal.tensors.get(slot.name, "") for slot in every}
    digests |= {slot.name: _sha256(content) for slot, content in read}
    return Seal(seal.header, digests).digest(described), {slot.name: slot.tensor(content) for slot, content in read}


def _read_early(folder: Place, described: str, expected: str, only: Wanted | None) -> Found:
    """As `_read_sealed`, of an artifact from before its tensors had digests of their own."""
    with _content(folder / TENSORS, whole=True) as source:
        found = _early_digest(described, source.read_buffer())
        if found != expected:
            return found, {}
        every = _slots(folder, read_header(source), source)
        read = list(read_slots(source, [slot for slot in every if only is None or only(slot.name)]))
    return found, {slot.name: slot.tensor(content) for slot, content in read}


@contextmanager
def _content(file: Place, *, whole: bool) -> Iterator[pa.NativeFile]:
    """A file, for one request if all of it is wanted."""
    if whole:
        yield pa.BufferReader(file.read_bytes())
    else:
        with opened(file) as source:
            yield source


def _slots(folder: Place, header: bytes, source: pa.NativeFile) -> list[Slot]:
    try:
        return slots(header, source.size())
    except ValueError as error:
        raise TableError(
            f"{folder / TENSORS} is not in safetensors format ({error}); restore it, or fit again."
        ) from error


def _sizes(folder: Place) -> dict[str, int]:
    """Bytes of the files, by name; none where there is no folder, or a file goes during the look."""
    try:
        return sizes(folder)
    except FileNotFoundError:
        return {}


def _stated_digest(folder: Place) -> str | None:
    """What the manifest says; None if there is none, or it says nothing."""
    try:
        return str(json.loads((folder / MANIFEST).read_text())["digest"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _canonical(kind: str, manifest: Mapping[str, Any]) -> str:
    if _KIND.fullmatch(str(kind)) is None:
        raise TableError(f"{kind!r} is no kind of artifact; expected lower-case letters, digits, '.', '_' and '-'.")
    try:
        return _compact({"kind": kind, "manifest": manifest})
    except (TypeError, ValueError) as error:
        raise TableError(
            f"The manifest of a {kind} artifact is not JSON ({error}); keep numbers and text in it."
        ) from error


def _compact(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _sha256(content: bytes | pa.Buffer) -> str:
    return hashlib.sha256(content).hexdigest()


def _early_digest(described: str, packed: bytes | pa.Buffer) -> str:
    """Of artifacts before tensors had digests of their own."""
    content = hashlib.sha256(described.encode())
    content.update(b"\n")
    content.update(packed)
    return content.hexdigest()
