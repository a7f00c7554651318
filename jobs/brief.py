"""Figures that are cut for people and whole for machines, and text that a terminal cannot take for orders."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.figures import Figures

LIMIT = 10_000  # rows of a table in JSON


@dataclass(frozen=True)
class Brief(Figures):
    """Figures whose tables are the first rows, for a screen, of `complete`, which goes into the JSON."""

    complete: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The first `rows_at_most` rows of each table."""
        tables = {name: list(rows[:LIMIT]) for name, rows in self.complete.items()}
        return {**super().document(), **tables, "rows_at_most": LIMIT}


def legible(text: str) -> str:
    """`text` with what would steer a terminal, or hide in it, as an escape: ESC becomes \\x1b."""
    return "".join(_escaped(each) if unicodedata.category(each) in _UNSEEN else each for each in text)


_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # control, format, surrogate, private, unassigned, line ends


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
