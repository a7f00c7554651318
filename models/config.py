"""The base of every setting class: frozen, and strict about names."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Settings beside what they configure; immutable, so that a digest of them stays true.

    Raises pydantic.ValidationError for an unknown key or a value outside its bounds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
