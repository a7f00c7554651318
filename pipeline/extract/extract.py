"""Shards to embeddings: what is done is skipped, the rest is extracted by workers and committed in groups."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
from pydantic import Field

from models.backbones import BackboneConfig, load_backbone
from models.config import Config
from models.errors import ShoalError
from pipeline.extract.pool import Pool, plan_pool
from pipeline.extract.prepare import Decoder
from pipeline.extract.resume import plan_shards
from pipeline.extract.shard import Job, ShardResult, table_properties
from pipeline.extract.summary import ExtractSummary, Tally
from pipeline.ingest.decode import DecodeConfig
from pipeline.ingest.decode import decode as decode_image
from pipeline.progress import Progress, silent
from pipeline.tables.collection import Collection
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SamplesTable
from pipeline.tables.schema import SHARDS
from pipeline.tables.shards import ShardRecord

STEP = "extract"


class ExtractConfig(Config):
    """How extraction is spread over a cluster, and cut into files and commits."""

    actors: int | None = Field(None, ge=1, description="workers; null for one per CPU, or as many as the GPUs take")
    gpus_per_actor: float = Field(0, ge=0, description="0 for CPU workers; a fraction lets workers share a GPU")
    batch_size: int = Field(64, ge=1, description="images per forward pass")
    decode_threads: int | None = Field(None, ge=1, description="per worker; null for a share of its CPUs")
    commit_shards: int = Field(8, ge=1, description="shards that are committed together")
    commit_interval_s: float = Field(60, ge=0, description="a finished shard may be committed with fewer after this")
    rows_per_file: int = Field(50_000, ge=1, description="embeddings that a worker holds before it writes a file")
    max_rejects: int | None = Field(None, ge=0, description="stop before committing more; null for no limit")


def extract(
    shards: Sequence[str],
    table: Collection,
    backbone: BackboneConfig,
    config: ExtractConfig | None = None,
    decode: DecodeConfig | Decoder | None = None,
    on_progress: Progress = silent,
) -> ExtractSummary:
    """Embed every image of `shards` into the samples table. Needs a Ray session.

    A shard becomes visible all at once and only once, rejects included. Whatever ends a run, the next one goes on with
    the shards that are not in the table; `on_progress` counts those that are. An image that kills its worker becomes
    a reject, at the price of three new workers (see Ledger).

    Raises ShoalError if the cluster has no room for the workers, more than `max_rejects` samples are rejected, or a
    worker cannot write; TableError if the table has another backbone's embeddings or another run adds the same shards.
    """
    config, started = config or ExtractConfig(), time.monotonic()
    samples = table.create_samples(table_properties(load_backbone(backbone)))
    todo = plan_shards(shards, table)
    tally, run = Tally(todo, started), f"{STEP}-{uuid4().hex}"
    on_progress(STEP, tally.in_table, todo.total)
    if not todo.shards:
        return tally.summary()
    from pipeline.extract import workers  # noqa: PLC0415  Ray reads the environment when it is first imported

    pool = plan_pool(workers.cluster_nodes(), todo.total, config.actors, config.gpus_per_actor, config.decode_threads)
    with closing(workers.run(todo.shards, _job(samples, backbone, config, decode, pool))) as results:
        for number, group in enumerate(commit_groups(results, config)):
            tally.add(group)
            tally.check(config.max_rejects)
            _commit(table, samples, group, (run, number))
            on_progress(STEP, tally.in_table, todo.total)
    return tally.summary()


def _job(
    table: SamplesTable,
    backbone: BackboneConfig,
    config: ExtractConfig,
    decode: DecodeConfig | Decoder | None,
    pool: Pool,
) -> Job:
    limits = decode if isinstance(decode, DecodeConfig) else DecodeConfig()
    return Job(
        table=table,
        backbone=backbone,
        decoder=decode if callable(decode) else partial(decode_image, config=limits),
        max_member_bytes=limits.max_image_bytes,
        batch_size=config.batch_size,
        rows_per_file=config.rows_per_file,
        pool=pool,
    )


def commit_groups(results: Iterable[ShardResult], config: ExtractConfig) -> Iterator[list[ShardResult]]:
    """What to commit together: `commit_shards` results, or those of one interval if that is fewer.

    Raises ShoalError at a result that is fatal.
    """
    group: list[ShardResult] = []
    started = time.monotonic()
    for result in results:
        if result.fatal is not None:
            raise ShoalError(result.fatal)
        group.append(result)
        if len(group) >= config.commit_shards or time.monotonic() - started >= config.commit_interval_s:
            yield group
            group, started = [], time.monotonic()
    if group:
        yield group


def _commit(
    table: Collection, samples: SamplesTable, group: Sequence[ShardResult], transaction: tuple[str, int]
) -> None:
    """Rows of a group in one commit. Its rows in the shards table come before: without samples nobody asks for them."""
    records = [
        ShardRecord(each.shard, each.summary.size, each.summary.checksum, each.images, sum(each.rejects.values()))
        for each in group
        if each.summary is not None
    ]
    if not records:
        return
    files = [file for result in group for file in result.files]
    _check_visible(samples, files)
    table.shards.upsert(pa.Table.from_pylist([asdict(record) for record in records], schema=SHARDS))
    samples.commit(files, transaction, {"step": STEP, "shards": str(len(records))})


def _check_visible(samples: SamplesTable, files: Sequence[WrittenFile]) -> None:
    """Raise ShoalError for files that only the machine that wrote them has."""
    unseen = [file.path for file in files if not Path(samples.path, file.path).exists()]
    if unseen:
        raise ShoalError(
            f"A worker wrote {unseen[0]} to {samples.path}, but it is not there for this process; "
            "put the table on storage that all machines share."
        )
