"""Orders that tests render."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from jobs.deploy.order import Order, order

PLACES = ("deploy.input=s3://pictures/shards", "deploy.output=s3://pictures/run")


def ordered(*sets: str, words: tuple[str, ...] = (), file: Path | None = None) -> Order:
    """`shoal render` with these settings."""
    return order(words, file, [*PLACES, *sets]) if file is not None else _cached(words, sets)


@lru_cache
def _cached(words: tuple[str, ...], sets: tuple[str, ...]) -> Order:
    return order(words, None, [*PLACES, *sets])
