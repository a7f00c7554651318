"""The folder of a training run: whose it is, where things are in it, and whether it is done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from models.config import Config
from models.errors import ShoalError
from pipeline.tables.artifacts import ArtifactStore
from pipeline.tables.place import Place, children, place, write_whole
from pipeline.train.checkpoints import CheckpointStore
from pipeline.train.metrics import LINES

MARKER = "training.json"
SUMMARY = "trained.json"
_SHOWN = 3


class _Marker(Config):
    """What the folder says of its run; null is what is not known yet. Until there is a checkpoint it may change."""

    format: str = "shoal-training"
    version: int = 1
    packed: str | None = None  # names the images that were packed into its own shards
    settings: dict[str, Any] | None = None
    images: str | None = None  # names the images that were indexed


class LearnFolder:
    """Where a training run keeps what. Nothing is written before `mark`."""

    def __init__(self, path: str | Place) -> None:
        """Raises ShoalError, and touches nothing, if the folder belongs to something else."""
        self.path = place(path).absolute()
        self.shards = self.path / "shards"  # of a folder of images, packed
        self.index = self.path / "images"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / LINES
        self.artifacts = ArtifactStore(self.path / "artifacts")
        self._marker = _read_marker(self.path)

    @property
    def settings(self) -> Mapping[str, Any]:
        """Those of the run here; none before."""
        return (self._marker.settings if self._marker else None) or {}

    @property
    def is_bound(self) -> bool:
        """Whether something was trained here that other settings or images would not continue."""
        return self.summary() is not None or CheckpointStore(self.checkpoints, "").newest >= 0

    def require(self, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        """Raise ShoalError, naming what differs, if a run with other settings was trained here.

        A key that an older shoal did not have, when it began the run, had its default.
        """
        if not self.settings or not self.is_bound:
            return
        now, then = dict(_flat(settings)), dict(_flat(defaults)) | dict(_flat(self.settings))
        odd = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
        if odd:
            shown = [f"{key} is {_text(now.get(key))} and was {_text(then.get(key))}" for key in odd[:_SHOWN]]
            more = f"; {len(odd) - _SHOWN} more differ" if len(odd) > _SHOWN else ""
            raise ShoalError(
                f"{self.path} was begun with other settings: {'; '.join(shown)}{more}. Give what it was begun with, "
                "or another --output."
            )

    def require_packed(self, images: str) -> None:
        """Raise ShoalError if other images than those named `images` were packed and trained on here."""
        self._require_same("packed", images)

    def mark(self, packed: str | None = None) -> None:
        """Make the folder this run's, before anything else goes in."""
        if packed is not None:
            self.require_packed(packed)
        marker = self._marker or _Marker()
        if self._marker is None or packed not in (None, marker.packed):
            self._write(marker.model_copy(update={"packed": packed}))

    def claim(self, settings: Mapping[str, Any], images: str) -> None:
        """Say what run this is, of settings that were required; or raise ShoalError if it is one of other images."""
        self._require_same("images", images)
        if not self.settings or not self.is_bound:
            marker = self._marker or _Marker()
            self._write(marker.model_copy(update={"settings": dict(settings), "images": images}))

    def summary(self) -> dict[str, Any] | None:
        """What `finish` kept; None while the run is not over."""
        try:
            found: dict[str, Any] = json.loads((self.path / SUMMARY).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Say that it is over, and how it ended."""
        write_whole(self.path / SUMMARY, f"{json.dumps(dict(summary), indent=2, allow_nan=False)}\n".encode())

    def other_images(self, which: str) -> ShoalError:
        """What to raise where images are not those that were trained on; `which` tells how that shows."""
        return ShoalError(
            f"The images changed since {self.path} was begun ({which}); give those it was begun with, or another "
            "--output."
        )

    def _require_same(self, field: str, images: str) -> None:
        found = getattr(self._marker, field, None)
        if found not in (None, images) and self.is_bound:
            raise self.other_images(f"{images[:12]} now, {found[:12]} then")

    def _write(self, marker: _Marker) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / MARKER, f"{marker.model_dump_json(indent=2)}\n".encode())
        self._marker = _read_marker(self.path)


def is_training(folder: Place) -> bool:
    """Whether a training run made the folder."""
    return (folder / MARKER).is_file()


def _read_marker(folder: Place) -> _Marker | None:
    """The mark of the run that began in a folder; None where there is nothing."""
    if not folder.exists() and not folder.is_symlink():
        return None
    if not folder.is_dir():
        raise ShoalError(f"{folder} is not a folder; give --output a new or an empty one.")
    unfinished = f"{MARKER}."  # left by a run that was killed at its first breath
    names = [each.name for each in children(folder) if not each.name.startswith(unfinished)]
    if MARKER not in names and isinstance(folder, Path) and folder.is_symlink():
        raise ShoalError(f"{folder} is a symbolic link to {folder.readlink()}; give the folder itself.")
    if not names:
        return None
    if MARKER not in names:
        some = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        raise ShoalError(f"{folder} belongs to something else: it holds {some}; give a new or an empty folder.")
    return _checked(folder / MARKER)


def _checked(path: Place) -> _Marker:
    try:
        found = _Marker.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ShoalError(f"{path} is not what a training run writes; give --output another folder.") from error
    if (found.format, found.version) != (_Marker().format, _Marker().version):
        raise ShoalError(
            f"{path} says {found.format} {found.version} but this shoal writes {_Marker().format} "
            f"{_Marker().version}; give --output another folder."
        )
    return found


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted key, as JSON has them."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", json.loads(json.dumps(value))


def _text(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
