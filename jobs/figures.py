"""The figures that a command ends with: a short table for people, the same figures as JSON for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs.report.wording import DASH, count, number

if TYPE_CHECKING:
    from pipeline.tables.place import Place

Value = str | int | float | bool | None
Row = Mapping[str, Value]


@dataclass(frozen=True)
class Figures:
    """What a command found, by name; a name ends in its unit where it has one (`seconds`, `size_bytes`).

    `tables` hold what has several rows, such as the score of each clustering; all rows of one have the same names.
    """

    title: str
    values: Mapping[str, Value]
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    shortfall: str = ""  # a sentence if the work is done but less than was asked for; the command then exits with 1

    def document(self) -> dict[str, Any]:
        """The same figures as plain JSON values; what is not finite becomes null."""
        tables = {name: [plain(row) for row in rows] for name, rows in self.tables.items()}
        return {"command": self.title, **plain(self.values), **tables}


def shown(value: Value) -> str:
    """A figure as the table shows it."""
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    return number(value) if isinstance(value, float) else value


def words(name: str) -> str:
    """A figure's name as the table shows it."""
    return name.replace("_", " ")


def write_json(figures: Figures, path: Place) -> None:
    """Write the figures as JSON. Raises OSError where the folder is missing or closed."""
    from pipeline.tables.place import write_whole  # noqa: PLC0415  pyarrow; `shoal --help` need not wait for it

    data = f"{json.dumps(figures.document(), indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()
    if isinstance(path, Path) and path.exists() and not path.is_file():
        path.write_bytes(data)  # a pipe or a device: a file is not to take its place
    else:
        write_whole(path.resolve() if isinstance(path, Path) else path, data)


def plain(row: Row) -> dict[str, Value]:
    """As JSON can have it: what is not finite becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
