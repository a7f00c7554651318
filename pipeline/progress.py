"""How long steps say how far they are, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int | None], None]
"""Called with the step's name, units done, and units in all (None while unknown)."""


def silent(step: str, done: int, total: int | None) -> None:
    """Listen to nothing."""
