"""Shards to embeddings: what is done is skipped, the rest is extracted by workers and committed in groups."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial
from uuid import uuid4

import pyarrow as pa

from models.backbones import Backbone, BackboneConfig, require_precision
from models.errors import ShoalError
from pipeline.extract.backbone import open_backbone, publish_backbone
from pipeline.extract.config import ExtractConfig
from pipeline.extract.meter import tell_commit, tell_standing
from pipeline.extract.pool import Pool, plan_pool
from pipeline.extract.prepare import Decoder
from pipeline.extract.resume import Todo, plan_shards
from pipeline.extract.shard import Job, ShardResult, table_properties
from pipeline.extract.standing import Watch
from pipeline.extract.summary import ExtractSummary, Tally
from pipeline.ingest.decode import DecodeConfig
from pipeline.ingest.decode import decode as decode_image
from pipeline.ingest.shards import ShardSummary
from pipeline.metrics import under_way
from pipeline.progress import Progress, silent
from pipeline.tables.collection import Collection
from pipeline.tables.delta import WrittenFile
from pipeline.tables.place import place
from pipeline.tables.samples import SamplesTable
from pipeline.tables.schema import SHARDS
from pipeline.tables.shards import ShardRecord
from pipeline.tables.storage import is_object_store

__all__ = ["STEP", "ExtractConfig", "ExtractSummary", "Extraction", "extract"]

STEP = "extract"
CPU_BATCH, GPU_BATCH = 16, 256  # on a CPU 64 images a pass are a third slower than 16: activations leave the cache
_QUICK_S = 0.1  # a commit that takes longer asks for larger groups
LIGHT_BYTES = 200_000_000  # of weights, up to which two workers fit a GPU and are better for it: ResNet-50 has 94 MB


class Extraction:
    """One call's work, planned: the backbone is loaded, the table is there, and what it has is known. No Ray yet."""

    def __init__(
        self,
        shards: Sequence[str],
        table: Collection,
        backbone: BackboneConfig,
        config: ExtractConfig | None = None,
        decode: DecodeConfig | Decoder | None = None,
        on_progress: Progress = silent,
    ) -> None:
        """Raises ShoalError for a backbone that cannot be had, TableError if the table has another one's embeddings."""
        self.table = table
        self.config = config or ExtractConfig()
        self._decode = decode if callable(decode) else decode or DecodeConfig()
        self._backbone = open_backbone(backbone)
        # One of each for the whole run: they remember what the log said.
        self._samples = table.create_samples(table_properties(self._backbone, _recorded(self._decode)))
        self._shards = table.shards
        self._on_progress = on_progress
        self.todo: Todo = plan_shards(shards, table, self.config.verify, on_progress)
        self._stored = self._published() if self.todo.shards else backbone

    def run(self) -> ExtractSummary:
        """Embed what is to do. Needs a Ray session, unless nothing is.

        Raises ShoalError if the cluster has no room for the workers, a CPU is to compute in fp16, more than
        `max_rejects` samples are rejected, or a worker cannot write; TableError if another run adds the same shards.
        """
        tally = Tally(self.todo)
        self._on_progress(STEP, tally.in_table, self.todo.total)
        if self.todo.shards:
            with under_way(STEP):
                self._run(tally)
        return tally.summary()

    def _run(self, tally: Tally) -> None:
        from pipeline.extract import workers  # noqa: PLC0415  Ray reads the environment when it is first imported

        light = sum(tensor.nbytes for tensor in self._backbone.net.state_dict().values()) <= LIGHT_BYTES
        pool = plan_pool(workers.cluster_nodes(), self.todo.total, self.config, light)
        require_precision(self._backbone.about.precision, "cuda" if pool.gpus else "cpu")
        job = self._job(pool)
        run = workers.Run(job)
        name = f"{STEP}-{uuid4().hex}"
        watch = Watch(run.standing, self._on_progress, STEP, self.todo)
        tell_standing(tally.in_table, self.todo.total)
        with watch, closing(run.results(self.todo.shards)) as results:
            tail = len(self.todo.shards) - job.pool.actors * job.pool.streams
            for number, group in enumerate(commit_groups(results, self.config, tail)):
                tally.add(group)
                tally.check(self.config.max_rejects)
                self._commit(group, (name, number))
                tally.committed()
                watch.committed(tally.in_table)
                tell_commit(group)
                tell_standing(tally.in_table, self.todo.total)

    def _commit(self, group: Sequence[ShardResult], transaction: tuple[str, int]) -> None:
        """Rows of a group in one commit.

        Its rows in the shards table come before: without samples nobody asks for them.
        """
        records = [_record(each, each.summary) for each in group if each.summary is not None]
        if not records:
            return
        files = [file for result in group for file in result.files]
        _check_visible(self._samples, files)
        # Before the records, which would otherwise say of the winner's rows what this run read.
        self._samples.refuse_done({record.shard for record in records})
        self._shards.upsert(pa.Table.from_pylist([asdict(record) for record in records], schema=SHARDS))
        self._samples.commit(files, transaction, {"step": STEP, "shards": str(len(records))})

    def _job(self, pool: Pool) -> Job:
        pixels, batch = self._backbone.pixels, self.config.batch_size or (GPU_BATCH if pool.gpus else CPU_BATCH)
        batch_bytes = batch * pixels.channels * pixels.size**2
        streams = min(pool.streams, max(1, self.config.ahead_bytes // (2 * batch_bytes)))
        limits = self._decode if isinstance(self._decode, DecodeConfig) else DecodeConfig()
        return Job(
            table=self._samples,
            backbone=self._stored,
            pixels=pixels,
            decoder=_decoder(self._decode, self._backbone),
            decoding=_recorded(self._decode),
            max_member_bytes=limits.max_image_bytes,
            batch_size=batch,
            rows_per_file=max(1, self.config.rows_per_file // streams),
            ahead_bytes=self.config.ahead_bytes // streams,
            pool=replace(pool, streams=streams),
        )

    def _published(self) -> BackboneConfig:
        """The backbone as workers on any machine can have it: from the table, whatever the driver loaded it from."""
        artifact = publish_backbone(self.table.artifacts, self._backbone)
        where = str(self.table.artifacts.path(artifact.kind, artifact.digest))
        return BackboneConfig(weights=where, compile=self._backbone.config.compile)


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
    the shards that are not in the table; `on_progress` counts those that are, and says after a comma how fast it goes.
    An image that kills its worker becomes a reject, at the price of three new workers (see Ledger).

    Memory: see ExtractConfig. Raises as Extraction and its `run`.
    """
    return Extraction(shards, table, backbone, config, decode, on_progress).run()


def _recorded(decode: DecodeConfig | Decoder) -> dict[str, object]:
    """Settings of decoding that embeddings depend on."""
    return {"reduce_jpeg": True} if isinstance(decode, DecodeConfig) and decode.reduce_jpeg else {}


def _decoder(decode: DecodeConfig | Decoder, backbone: Backbone) -> Decoder:
    if not isinstance(decode, DecodeConfig):
        return decode
    return partial(decode_image, config=decode, short_side=backbone.pixels.short_side)


def commit_groups(
    results: Iterable[ShardResult],
    config: ExtractConfig,
    tail: int,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[list[ShardResult]]:
    """What to commit together: `commit_shards` results, or with a result the fewer ones that waited for an interval.

    From the result number `tail` on, when all that is left is being read, nothing waits for a group to fill: a last
    shard may take an hour. A commit into a table of a hundred thousand files takes a third of a second, so that groups
    grow with the table: whoever takes them is busy with them for a tenth of the time at most.
    Raises ShoalError at a result that is fatal, after what came before it.
    """
    group: list[ShardResult] = []
    began, busy_s = clock(), 0.0
    for number, result in enumerate(results, 1):
        if result.fatal is not None:
            if group:
                yield group
            raise ShoalError(result.fatal)
        group.append(result)
        waited_s = clock() - began
        patient = busy_s > _QUICK_S and waited_s < 9 * busy_s
        full = len(group) >= config.commit_shards or number > tail
        if waited_s >= config.commit_interval_s or (full and not patient):
            given = clock()
            yield group
            group, began = [], clock()
            busy_s = began - given
    if group:
        yield group


def _record(result: ShardResult, summary: ShardSummary) -> ShardRecord:
    rejects = sum(result.rejects.values())
    return ShardRecord(result.shard, summary.size, summary.checksum, result.images, rejects, summary.modified)


def _check_visible(samples: SamplesTable, files: Sequence[WrittenFile]) -> None:
    """Raise ShoalError for files that only the machine that wrote them has."""
    if is_object_store(samples.path):  # which is the same for all
        return
    unseen = [file.path for file in files if not (place(samples.path) / file.path).exists()]
    if unseen:
        raise ShoalError(
            f"A worker wrote {unseen[0]} to {samples.path}, but it is not there for this process; "
            "put the table on storage that all machines share."
        )
