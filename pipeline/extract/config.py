"""Settings of extraction: how it is spread over a cluster, what it may hold, and how it is cut into commits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.config import Config


class ExtractConfig(Config):
    """How extraction is spread over a cluster, and cut into files and commits.

    Memory of a worker beyond its libraries (about 0.7 GB) and the backbone: `ahead_bytes` of images before the forward
    pass, four batches per open shard, `rows_per_file` embeddings twice, and one image at full size per decode thread
    (18 bytes a pixel at most). In the split layout the decoding tasks hold as much, and the object store `ahead_bytes`
    per worker; in the fused one it holds nothing but names. None of it grows with the number of shards; the driver
    holds the name and a few numbers of each shard.
    """

    layout: Literal["auto", "fused", "split"] = Field(
        "auto",
        description="fused: a worker decodes for itself; split: tasks on any CPU decode for it; "
        "auto: split where machines without GPUs have a quarter of the CPUs or more, beside some with",
    )
    actors: int | None = Field(None, ge=1, description="workers; null for one per CPU, or as many as the GPUs take")
    gpus_per_actor: float | None = Field(
        None,
        ge=0,
        description="0 for CPU workers; a fraction lets workers share a GPU; "
        "null: 0 without GPUs, half a GPU for a small backbone, else one",
    )
    autoscale: bool = Field(False, description="ask for `actors` that the cluster has no room for yet, and start early")
    batch_size: int | None = Field(
        None, ge=1, description="images per forward pass; null: 16 on a CPU, whose cache they then fit, 256 on a GPU"
    )
    decode_threads: int | None = Field(
        None, ge=1, description="per worker, or per task when split; null: a share of its CPUs"
    )
    streams: int | None = Field(
        None,
        ge=1,
        description="shards that a worker has open at a time, memory allowing; "
        "null: 1 on a CPU, 2 on a GPU, more when split",
    )
    ahead_bytes: int = Field(2**28, ge=2**20, description="encoded and decoded images that wait, per worker")
    commit_shards: int = Field(8, ge=1, description="shards that are committed together")
    commit_interval_s: float = Field(60, ge=0, description="after this, the next finished shard is not waited with")
    rows_per_file: int = Field(
        50_000, ge=1, description="embeddings that a worker holds, of all its open shards, before it writes a file"
    )
    max_rejects: int | None = Field(None, ge=0, description="stop before committing more; null for no limit")
    verify: Literal["auto", "always", "never"] = Field(
        "auto",
        description="shards that are in the table: `auto` reads again those whose time changed and size did not, "
        "`always` all, `never` compares sizes only",
    )
