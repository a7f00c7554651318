"""One shard to Parquet files: read, prepare, embed, write. No Ray here.

Shapes: B images of a full batch, N of them real, D dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from models.backbones import Backbone, BackboneConfig, load_backbone
from pipeline.extract.ledger import Attempt
from pipeline.extract.pool import Pool
from pipeline.extract.prepare import Announce, Batch, Decoder, Prepared, Preparer
from pipeline.extract.rows import ShardFiles, rejected
from pipeline.ingest.shards import Reject, Sample, ShardSummary, read_samples
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SamplesTable, TableProperties
from pipeline.tables.schema import Reason

EXAMPLES = 5  # rejects that a result shows, of many


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    table: SamplesTable
    backbone: BackboneConfig
    decoder: Decoder
    max_member_bytes: int
    batch_size: int
    rows_per_file: int
    pool: Pool


@dataclass(frozen=True)
class ShardResult:
    """What became of a shard. With a `failure` or `fatal` it has no files, and the next run tries it again."""

    shard: str
    files: tuple[WrittenFile, ...] = ()
    images: int = 0
    rejects: Mapping[str, int] = field(default_factory=dict)  # by reason
    examples: tuple[Reject, ...] = ()
    summary: ShardSummary | None = None
    failure: str | None = None  # of this shard alone
    fatal: str | None = None  # no shard can be extracted before this is put right


class _UnreadableError(Exception):
    """The shard cannot be read now, which says nothing about what it holds."""


def table_properties(backbone: Backbone) -> TableProperties:
    """What a table says of embeddings by `backbone`.

    Weights from a path are not named by it: the same file may lie elsewhere tomorrow, and the digest tells files apart.
    """
    published = backbone.config.weights in ("default", "hub", "random")
    return TableProperties(
        dimension=backbone.dim,
        backbone=backbone.name,
        backbone_digest=backbone.digest,
        l2_normalised=backbone.config.l2_normalise,
        preprocessing={**backbone.preprocessing, "weights": backbone.weights if published else "a local file"},
    )


class ShardWorker:
    """Holds a backbone, and extracts shards one at a time.

    Every batch is filled up to the batch size with black images: libraries choose kernels by shape, so the last batch
    of a shard would otherwise round differently from the others. An embedding then depends on its image, the batch
    size and the number of threads, and not on the shard's length or on which neighbours were rejected.
    Memory beyond the backbone: the images of two batches, and `rows_per_file` embeddings.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._backbone = load_backbone(job.backbone, "cuda" if job.pool.gpus else "cpu")
        job.table.require(table_properties(self._backbone))
        self._preparer = Preparer(job.decoder, self._backbone.prepare, job.pool.decode_threads)
        torch.set_num_threads(job.pool.torch_threads)

    def extract(self, shard: str, attempt: Attempt, announce: Announce) -> ShardResult:
        """Write the shard's files, and say what is in them; `announce` is for careful attempts.

        What is wrong with the shard is in the result. Raises what the backbone or the table's storage raises.
        """
        reader = read_samples(shard, self._job.max_member_bytes)
        items, size = _guarded(reader), self._job.batch_size
        batches = (
            self._preparer.careful_batches(items, size, attempt, announce)
            if attempt.careful
            else self._preparer.batches(items, size)
        )
        files = ShardFiles(self._job.table, self._job.rows_per_file)
        try:
            images, rejects = self._embed_all(batches, files)
            if not reader.summary.checksum:  # not one byte came: the storage's fault more likely than the shard's
                raise _UnreadableError(rejects[0].detail)
            written = files.finish(rejects)
        except _UnreadableError as error:
            files.discard()
            return ShardResult(shard, failure=str(error))
        counts = Counter(reject.reason.value for reject in rejects)
        return ShardResult(shard, written, images, counts, tuple(rejects[:EXAMPLES]), reader.summary)

    def _embed_all(self, batches: Iterable[Batch], files: ShardFiles) -> tuple[int, list[Reject]]:
        """Number of samples embedded, and all rejects of the shard in its order."""
        images, rejects = 0, list[Reject]()
        for batch in batches:
            x_ND = self._embed([item for item in batch if isinstance(item, Prepared)])
            finite_N = np.isfinite(x_ND).all(axis=1)
            samples, refused = _judge(batch, finite_N)
            files.add(samples, x_ND[finite_N])
            images += len(samples)
            rejects += refused
        return images, rejects

    def _embed(self, images: Sequence[Prepared]) -> np.ndarray:
        if not images:
            return np.empty((0, self._backbone.dim), np.float32)
        pixels_BCHW = torch.zeros(self._job.batch_size, *images[0].pixels_CHW.shape, dtype=torch.uint8)
        torch.stack([image.pixels_CHW for image in images], out=pixels_BCHW[: len(images)])
        x_BD = self._backbone.embed(pixels_BCHW).cpu().numpy()
        return np.asarray(x_BD[: len(images)])


def _judge(batch: Batch, finite_N: np.ndarray) -> tuple[list[Sample], list[Reject]]:
    """Samples whose embedding is finite, and rejects, each in the order of the batch."""
    finite = iter(finite_N)
    samples, rejects = list[Sample](), list[Reject]()
    for item in batch:
        if isinstance(item, Reject):
            rejects.append(item)
        elif next(finite):
            samples.append(item.sample)
        else:
            rejects.append(rejected(item.sample, Reason.non_finite_embedding, "the backbone gave NaN or infinity"))
    return samples, rejects


def _guarded(items: Iterable[Sample | Reject]) -> Iterator[Sample | Reject]:
    try:
        yield from items
    except Exception as error:  # a shard may be anything, and the others must not wait for it
        raise _UnreadableError(f"{type(error).__name__}: {error}") from error
