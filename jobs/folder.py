"""The folder that a run writes: marked as ours before anything else goes in, and nobody else's is touched."""

from __future__ import annotations

import json
from pathlib import Path

from models.errors import ShoalError
from pipeline.tables.collection import RUN_FOLDER, Collection
from pipeline.tables.place import Place, children, place, write_whole

MARKER = "run.json"
REPORT = "report.html"
FORMAT = {"format": "shoal-run", "version": 1}


def on_disk(output: str | Place) -> Path:
    """The folder for shards that are packed. Raises ShoalError for an object store."""
    folder = place(output)
    if isinstance(folder, Path):
        return folder
    raise ShoalError(
        f"Images are packed into shards on a disk, but --output {output} is an object store; give a local "
        "one, or run `shoal shards` into a local folder, copy that to the store, and run on the copy."
    )


class RunFolder:
    """Where a run keeps what."""

    def __init__(self, path: str) -> None:
        """Raises ShoalError, and touches nothing, if the folder belongs to something else."""
        self.path = place(path).absolute()
        self._check()
        self.table = self.path / RUN_FOLDER
        self.packed = self.path / "packed.json"
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.json"
        self.report = self.path / REPORT

    @property
    def shards(self) -> Path:
        """Where images are packed. Raises ShoalError in an object store."""
        return on_disk(self.path) / "shards"

    def make(self) -> None:
        """Create and mark the folder, if that is not done."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / MARKER).exists():
            write_whole(self.path / MARKER, f"{json.dumps(FORMAT)}\n".encode())

    def has_embeddings(self) -> bool:
        """Whether there is a table with samples."""
        found = Collection.find(self.table)
        return found is not None and found.has_samples()

    def require_same_images(self, fingerprint: str, learned: bool = False) -> None:
        """Raise ShoalError if the table, or the training where `learned`, is of other images than the ones to pack now.

        Packing them would put other images under the shards and offsets that the table or the index names.
        """
        if not learned and not self.has_embeddings():
            return
        if not self.packed.exists():
            raise ShoalError(f"{self.path} was made of shards that were not packed there; give a new --output.")
        if _fingerprint_in(self.packed) != fingerprint:
            raise ShoalError(
                f"The images, or how they are packed, changed since {self.path} was made of them; give a new --output."
            )

    def record_images(self, fingerprint: str) -> None:
        """Remember what is about to be packed."""
        write_whole(self.packed, f"{json.dumps({'images': fingerprint})}\n".encode())

    def _check(self) -> None:
        if not self.path.exists() and not self.path.is_symlink():
            return
        if not self.path.is_dir():  # nor is a link that leads nowhere
            raise ShoalError(f"{self.path} is not a folder; give --output a new or an empty one.")
        unfinished = f"{MARKER}."  # left by a run that was killed at its first breath
        names = [each.name for each in children(self.path) if not each.name.startswith(unfinished)]
        if MARKER not in names and isinstance(self.path, Path) and self.path.is_symlink():
            raise ShoalError(f"{self.path} is a symbolic link to {self.path.readlink()}; give the folder itself.")
        if names and MARKER not in names:
            some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            raise ShoalError(f"{self.path} belongs to something else: it holds {some}; give a new or an empty folder.")
        if MARKER in names:
            _check_marker(self.path / MARKER)


def _check_marker(marker: Place) -> None:
    try:
        found = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ShoalError(f"{marker} is not what a run writes ({error}); give --output another folder.") from error
    if found != FORMAT:
        raise ShoalError(f"{marker} says {found} but this shoal writes {FORMAT}; give --output another folder.")


def _fingerprint_in(packed: Place) -> object:
    try:
        return json.loads(packed.read_text(encoding="utf-8"))["images"]
    except (ValueError, KeyError, TypeError):
        return None  # not what we wrote, so not the same images either
