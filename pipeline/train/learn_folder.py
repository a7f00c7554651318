"""The folder of a training run: whose it is, where things are in it, and whether it is done."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from models.errors import ShoalError
from pipeline.tables.artifacts import ArtifactStore
from pipeline.tables.place import Place, children, place, write_whole
from pipeline.train.metrics import LINES

MARKER = "training.json"
SUMMARY = "trained.json"
_FORMAT = {"format": "shoal-training", "version": 1}
_SHOWN = 3


class LearnFolder:
    """Where a training run keeps what. `claim` makes it; nothing is written before."""

    def __init__(self, path: str | Place) -> None:
        """Raises ShoalError if the folder belongs to something else."""
        self.path = place(path).absolute()
        self.index = self.path / "images"
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / LINES
        self.artifacts = ArtifactStore(self.path / "artifacts")
        self._settings = _settings_in(self.path)

    def require(self, settings: Mapping[str, Any]) -> None:
        """Raise ShoalError, naming what differs, if a run with other settings or images began here."""
        if self._settings is None:
            return
        now, then = dict(_flat(settings)), dict(_flat(self._settings))
        odd = [key for key in sorted(now.keys() | then.keys()) if now.get(key) != then.get(key)]
        if odd:
            shown = [f"{key} is {_text(now.get(key))} and was {_text(then.get(key))}" for key in odd[:_SHOWN]]
            more = f", and {len(odd) - _SHOWN} more differ" if len(odd) > _SHOWN else ""
            raise ShoalError(
                f"{self.path} was begun with other settings or images: {'; '.join(shown)}{more}. Give what it was "
                "begun with to go on, or another --output."
            )

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Create and mark the folder, or check that the mark is this run's. Raises ShoalError as `require`."""
        self.require(settings)
        if self._settings is None:
            self.path.mkdir(parents=True, exist_ok=True)
            marker = {**_FORMAT, "settings": dict(settings)}
            write_whole(self.path / MARKER, f"{json.dumps(marker, indent=2)}\n".encode())
            self._settings = json.loads(json.dumps(dict(settings)))

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


def _settings_in(folder: Place) -> dict[str, Any] | None:
    """The settings of the run that began in a folder; None where there is nothing."""
    if not folder.exists():
        return None
    if not folder.is_dir():
        raise ShoalError(f"{folder} is not a folder; give --output a new or an empty one.")
    unfinished = f"{MARKER}."  # left by a run that was killed at its first breath
    names = [each.name for each in children(folder) if not each.name.startswith(unfinished)]
    if names and MARKER not in names:
        some = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        raise ShoalError(f"{folder} belongs to something else: it holds {some}; give a new or an empty folder.")
    return _checked(folder / MARKER) if names else None


def _checked(marker: Place) -> dict[str, Any]:
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
        settings: dict[str, Any] = found.pop("settings")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ShoalError(f"{marker} is not what a training run writes; give --output another folder.") from error
    if found != _FORMAT:
        raise ShoalError(f"{marker} says {found} but this shoal writes {_FORMAT}; give --output another folder.")
    return settings


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted key; tuples as the lists that JSON makes of them."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
