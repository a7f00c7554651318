"""The second seam: numbered checkpoints in a folder, each of which is there whole or not at all.

Number 0 is what a run began with, and stays; of the others the newest are kept, and those that were asked for.

A checkpoint is a safetensors file and a JSON manifest that names it, with its size and SHA-256. The manifest appears
last and whole, so that a checkpoint exists when its manifest does; what is damaged later is found by the digest.
Under Ray Train the store is the same folder, or place in an object store, that all machines see, and worker 0 alone
writes to it.
`ray.train.report` would do it too, but from its second call on it blocks for a health-check interval (2 s by default),
and a checkpoint reported just before a crash is lost with it. Ray Train is left what it does well: to start workers,
and to start them again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from uuid import uuid4

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from models.errors import ShoalError
from pipeline.tables.place import Place, children, place, write_whole
from pipeline.train.world import World

_KEEP = 2  # at least: the newest, and the one before for the day that the newest is damaged
_DIGITS = 9
_MANIFEST = re.compile(r"\d+\.json")
_DAMAGE = (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError, SafetensorError)  # no other OSError:
# what cannot be read at the moment may be whole, and a run must neither go on without it nor delete its tensors


@dataclass(frozen=True)
class Checkpoint:
    """What a run continues from. `record` is JSON; NaN and infinity are allowed in it."""

    number: int
    record: dict[str, Any]
    tensors: dict[str, Tensor]


def fingerprint(**parts: Any) -> str:
    """SHA-256 of canonical JSON: names what a run's result depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class CheckpointStore:
    """The checkpoints of one run, in a folder that holds nothing else. Picklable; the first one makes the folder."""

    def __init__(self, folder: str | Place, fingerprint: str, keep: int = _KEEP, every: int | None = None) -> None:
        """The newest `keep` stay (two at least), and those whose number is a multiple of `every`."""
        self.folder = place(folder)
        self._fingerprint = fingerprint
        self._keep = max(keep, _KEEP)
        self._every = every

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, on disk when this returns, and remove what is not needed any more.

        Memory: the tensors once more. Raises ShoalError when the folder cannot be written.
        """
        final = self._path(checkpoint.number)
        packed = safetensors.torch.save(_storable(checkpoint.tensors))
        tensors = self.folder / f"{final.stem}-{uuid4().hex}.safetensors"
        manifest = {
            "fingerprint": self._fingerprint,
            "number": checkpoint.number,
            "tensors": tensors.name,
            "bytes": len(packed),
            "sha256": hashlib.sha256(packed).hexdigest(),
            "record": checkpoint.record,
        }
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(tensors, packed)
            write_whole(final, json.dumps(manifest).encode())
            self._clean(final)
        except OSError as error:
            raise ShoalError(
                f"A checkpoint cannot be written to {self.folder} ({error}); make room or mend the folder, then run "
                "again: what is there already is kept."
            ) from error

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; one that is damaged is passed over. None when there is none.

        Raises ShoalError when the folder holds checkpoints of another run, or cannot be read.
        """
        with self._reading():
            return next((found for path in reversed(self._manifests()) if (found := self._read(path))), None)

    def first(self) -> Checkpoint | None:
        """Number 0, if it is there and whole. Raises ShoalError as `latest`."""
        with self._reading():
            return self._read(self._path(0))

    def record(self, number: int) -> dict[str, Any] | None:
        """That of a checkpoint, without its tensors; None where it is not there any more, or damaged."""
        try:
            found: dict[str, Any] = json.loads(self._path(number).read_text())["record"]
        except (OSError, *_DAMAGE):
            return None
        return found

    @property
    def newest(self) -> int:
        """The number of the newest checkpoint, whole or not; -1 when there is none. As dear as one listing."""
        manifests = self._manifests()
        return int(manifests[-1].stem) if manifests else -1

    def _path(self, number: int) -> Place:
        return self.folder / f"{number:0{_DIGITS}d}.json"

    def _manifests(self) -> list[Place]:
        return [path for path in children(self.folder) if _MANIFEST.fullmatch(path.name)]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ShoalError(
                f"The checkpoints in {self.folder} cannot be read ({error}); mend the folder, then run again: what is "
                "there is kept."
            ) from error

    def _read(self, path: Place) -> Checkpoint | None:
        try:
            manifest = json.loads(path.read_text())
            packed = (self.folder / PurePath(manifest["tensors"]).name).read_bytes()
            if hashlib.sha256(packed).hexdigest() != manifest["sha256"]:
                return None
            owner = str(manifest["fingerprint"])
            found = Checkpoint(int(manifest["number"]), manifest["record"], safetensors.torch.load(packed))
        except _DAMAGE:
            return None
        self._require_own(owner)
        return found

    def _require_own(self, found: str) -> None:
        if found != self._fingerprint:
            raise ShoalError(
                f"The checkpoints in {self.folder} are of another run (fingerprint {found[:12]}, this one has "
                f"{self._fingerprint[:12]}): its settings or rows differ; give another folder, or delete this one."
            )

    def _clean(self, saved: Place) -> None:
        """Remove what is older than those to be kept, and what killed processes left behind up to there.

        Not what was just saved: it is older than the newest where those are damaged.
        """
        manifests = self._manifests()
        kept = [
            path
            for path in manifests
            if path in (self._path(0), saved, *manifests[-self._keep :])
            or (self._every is not None and int(path.stem) % self._every == 0)
        ]
        needed = {path.name for path in kept} | {_tensors_of(path) for path in kept}
        for path in children(self.folder):
            number = path.name[:_DIGITS]  # newer ones are being written by somebody at this moment
            if path.name not in needed and number.isdigit() and int(number) <= int(kept[-1].stem):
                path.unlink(missing_ok=True)


def shared(found: Checkpoint | None, world: World) -> Checkpoint | None:
    """Worker 0's checkpoint for all workers: another machine may see the folder as it was a moment ago."""
    if world.size == 1:
        return found
    message = world.share(b"" if found is None else _pack(found))
    return found if world.rank == 0 or not message else _unpack(message)


def _pack(checkpoint: Checkpoint) -> bytes:
    """A checkpoint as one message between workers."""
    header = {"record": json.dumps([checkpoint.number, checkpoint.record])}
    return safetensors.torch.save(_storable(checkpoint.tensors), header)


def _unpack(message: bytes) -> Checkpoint:
    """The inverse of `_pack`."""
    size = int.from_bytes(message[:8], "little")
    number, record = json.loads(json.loads(message[8 : 8 + size])["__metadata__"]["record"])
    return Checkpoint(number, record, safetensors.torch.load(message))


def _storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, each in memory of its own: safetensors refuses others."""
    storable: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        here = tensor.detach().cpu()
        memory = here.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != here.nbytes or not here.is_contiguous():
            here = here.clone(memory_format=torch.contiguous_format)
        seen.add(memory.data_ptr())
        storable[name] = here
    return storable


def _tensors_of(manifest: Place) -> str:
    try:
        return str(json.loads(manifest.read_text())["tensors"])
    except _DAMAGE:
        return ""
