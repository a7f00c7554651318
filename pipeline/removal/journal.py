"""What a removal set out to do, kept in the table until nothing is left to do."""

from __future__ import annotations

import json
from dataclasses import dataclass

from models.errors import ShoalError
from pipeline.removal.targets import Targets
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place, children, remove_tree, write_whole

FOLDER, NAME = "unfinished", "removal.json"
_FORMAT = {"format": "shoal-removal", "version": 1}


@dataclass(frozen=True)
class Entry:
    """What was asked for, and which samples the table had of it. It names the keys: it is the last thing to go."""

    asked: Targets
    found: Targets  # by shard

    def __or__(self, other: Entry) -> Entry:
        return Entry(self.asked | other.asked, self.found | other.found)


class Journal:
    """The one entry of a table. A removal that is asked for while another is unfinished is added to it."""

    def __init__(self, table: Collection) -> None:
        self._folder = table.path / FOLDER
        self._path = self._folder / NAME

    def read(self) -> Entry | None:
        """None where nothing is unfinished. Raises ShoalError for a journal that cannot be read."""
        if not self._path.is_file():
            return None
        try:
            stored = json.loads(self._path.read_text(encoding="utf-8"))
            if {name: stored[name] for name in _FORMAT} != _FORMAT:
                raise ValueError(f"its format is {stored['format']} {stored['version']}")
            return Entry(Targets.from_json(stored["asked"]), Targets.from_json(stored["found"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ShoalError(
                f"{self._path} is no journal of a removal ({error}); delete it, and give all keys again."
            ) from error

    def write(self, entry: Entry) -> None:
        """Whole or not at all, and on disk when this returns."""
        stored = {**_FORMAT, "asked": entry.asked.as_json(), "found": entry.found.as_json()}
        self._folder.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, json.dumps(stored).encode())

    def clear_folder(self) -> None:
        """Delete what else is unfinished in the table: checkpoints of fits hold rows, and killed writes hold keys."""
        for each in children(self._folder):
            if each.name != NAME:
                _delete(each)

    def close(self, entry: Entry) -> None:
        """Nothing is left to do, and nothing is left here, unless another removal has begun."""
        if self.read() == entry:
            self._path.unlink()
        if self._folder.is_dir() and not children(self._folder):
            self._folder.rmdir()


def _delete(what: Place) -> None:
    if what.is_dir():
        remove_tree(what, strict=True)
    else:
        what.unlink(missing_ok=True)
