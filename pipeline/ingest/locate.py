"""One image out of a shard by its byte range."""

from __future__ import annotations


def read_range(shard: str, offset: int, size: int) -> bytes:
    """Exactly `size` bytes at `offset`; ShoalError otherwise."""
    raise NotImplementedError
