"""The one error that a user is meant to read."""

from __future__ import annotations


class ShoalError(ValueError):
    """A sentence for the person who runs shoal: the value seen, the value expected, the next step."""
