"""Settings of reading images for training; none of them names an algorithm."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.config import Config


class ImagesConfig(Config):
    """How images are shuffled, kept and brought to the workers.

    Memory of a worker: `cache_bytes`; its part of `shuffle_rows` encoded images (of ImageNet's 110 kB each, 1.8 GB over
    all workers); 8 MiB for each of its lanes; views of `ahead` + 2 batches; 24 bytes per image of the whole index, and
    25 per image of its lanes.
    """

    lanes: int = Field(
        16,
        ge=1,
        description="places that every batch takes rows from, 2 from each or more: where batches are smaller, there "
        "are half as many as the smallest batch has rows. At least one per worker; a multiple of the workers keeps "
        "their parts equal",
    )
    shuffle_rows: int = Field(
        16_384,
        ge=0,
        description="encoded images that wait for their turn, over all lanes and workers; 0 reads shards in order",
    )
    cache_bytes: int = Field(2 << 30, ge=0, description="of small images (views.base), per worker or remote producer")
    threads: int = Field(1, ge=1, description="that make views, per worker or remote producer")
    ahead: int = Field(2, ge=1, description="batches that are made before they are asked for")
    feed: Literal["local", "remote"] = Field(
        "local", description="remote: tasks on any CPU of the cluster read images and make views for the workers"
    )
    producers: int = Field(2, ge=1, description="per worker, when remote; each takes `threads` CPUs")

    @property
    def outcome(self) -> dict[str, object]:
        """The settings that a result depends on."""
        return self.model_dump(mode="json", include={"lanes", "shuffle_rows"})
