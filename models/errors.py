"""The one error that a user is meant to read, and what it quotes of others."""

from __future__ import annotations


class ShoalError(ValueError):
    """A sentence for the person who runs shoal: the value seen, the value expected, the next step."""


def first_line(error: Exception) -> str:
    """What another library's error says, short enough to be quoted; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
