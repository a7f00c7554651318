"""A folder of images to shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pydantic import Field

from models.config import Config
from pipeline.progress import Progress, silent


class ShardConfig(Config):
    """How large a shard becomes."""

    images_per_shard: int = Field(default=10_000, ge=1)
    max_shard_bytes: int = Field(default=2**30, ge=1)


class NewSample(NamedTuple):
    """A sample to be written."""

    key: str
    extension: str
    image: bytes
    label: str | None = None
    meta: Mapping[str, object] = MappingProxyType({})


def write_shards(
    source: Path, output: Path, config: ShardConfig | None = None, on_progress: Progress = silent
) -> list[Path]:
    """Pack a folder of images."""
    raise NotImplementedError


def write_samples(
    samples: Iterable[NewSample], output: Path, config: ShardConfig | None = None, on_progress: Progress = silent
) -> list[Path]:
    """Pack generated samples."""
    raise NotImplementedError
