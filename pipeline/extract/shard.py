"""One shard to Parquet files: read, prepare, embed, write. No Ray here.

Shapes: B images of a full batch, N of them real, C channels, H and W pixels, D dimensions.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from models.backbones import Backbone, BackboneConfig
from models.errors import ShoalError
from models.preprocessing import Preprocessing
from pipeline.extract.ledger import Attempt, Standing
from pipeline.extract.pool import Pool
from pipeline.extract.prepare import Announce, Batch, Decoder, LocalSource, Preparer, UnreadableError
from pipeline.extract.rows import ShardFiles, rejected
from pipeline.ingest.shards import Reject, Sample, ShardSummary
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SamplesTable, TableProperties
from pipeline.tables.schema import Reason

EXAMPLES = 5  # rejects that a result shows, of many
GPU_BATCHES = 2  # at a time on one device, so that it computes while the host sees to the other
STAGES = ("read", "decode", "queue", "forward", "write")


@dataclass(frozen=True)
class Job:
    """What every worker is told."""

    table: SamplesTable
    backbone: BackboneConfig  # which names an artifact of the table: workers need no other weights
    pixels: Preprocessing
    decoder: Decoder
    decoding: Mapping[str, object]  # settings of the decoder that the table records
    max_member_bytes: int
    batch_size: int
    rows_per_file: int
    ahead_bytes: int  # per shard that is open
    pool: Pool

    @property
    def batches_ahead(self) -> int:
        """What `ahead_bytes` come to in whole batches, two at least."""
        return max(2, self.ahead_bytes // (self.batch_size * self.pixels.channels * self.pixels.size**2))

    def require(self, backbone: Backbone) -> None:
        """Raise TableError unless the worker's backbone is the driver's."""
        self.table.require(table_properties(backbone, self.decoding))

    def local_source(self) -> LocalSource:
        """Decodes in this process."""
        preparer = Preparer(self.decoder, self.pixels, self.pool.decode_threads, self.ahead_bytes)
        return LocalSource(preparer, self.batch_size, self.max_member_bytes)


class Source(Protocol):
    """Where batches come from."""

    def open(self, shard: str, attempt: Attempt, announce: Announce) -> Iterator[Batch | ShardSummary]:
        """The batches of a shard, and last its summary. Raises UnreadableError where the storage fails."""
        ...


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
    # By stage. Decode adds up threads; on a GPU, forward includes what another batch computed meanwhile.
    seconds: Mapping[str, float] = field(default_factory=dict)
    ready_at: float | None = None  # when its worker had its backbone, by the worker's clock
    first_at: float | None = None  # when the first of its images was embedded

    @property
    def standing(self) -> Standing:
        """What it adds to the run's."""
        return Standing(1.0, self.images, sum(self.rejects.values()))


@dataclass(frozen=True)
class Hooks:
    """Who is told of a shard's course."""

    announce: Announce = lambda offset: None
    progress: Callable[[Batch, float], None] = lambda batch, forward_s: None  # each batch that is embedded


def table_properties(backbone: Backbone, decoding: Mapping[str, object] | None = None) -> TableProperties:
    """What a table says of embeddings by `backbone`, of images decoded with the settings `decoding`.

    Weights from a path are not named by it: the same file may lie elsewhere tomorrow, and the digest tells files apart.
    """
    about = backbone.about
    return TableProperties(
        dimension=about.dimension,
        backbone=about.name,
        backbone_digest=about.digest,
        l2_normalised=about.l2_normalise,
        preprocessing={**backbone.preprocessing, "weights": about.weights, **(decoding or {})},
    )


class ShardWorker:
    """Holds a backbone, and extracts shards, from several threads if need be.

    Every batch is filled up to the batch size with black images: libraries choose kernels by shape, so the last batch
    of a shard would otherwise round differently from the others. An embedding then depends on its image, the batch
    size and the number of threads, and not on the shard's length or on which neighbours were rejected.
    Memory beyond the backbone: that of the source, a batch, and `rows_per_file` embeddings, per open shard.
    """

    def __init__(self, job: Job, backbone: Backbone, source: Source) -> None:
        self._job = job
        self._backbone = backbone
        self._source = source
        # On a CPU two forward passes at a time would only wait for each other.
        self._turn = threading.BoundedSemaphore(GPU_BATCHES if job.pool.gpus else 1)
        self.ready_at = time.time()

    def extract(self, shard: str, attempt: Attempt, hooks: Hooks) -> ShardResult:
        """Write the shard's files, and say what is in them.

        What is wrong with the shard is in the result. Raises what the backbone or the table's storage raises.
        """
        torch.set_num_threads(self._job.pool.torch_threads)  # torch keeps the number per thread
        course = _Course(ShardFiles(self._job.table, self._job.rows_per_file))
        try:
            for piece in course.queued(self._source.open(shard, attempt, hooks.announce)):
                if isinstance(piece, ShardSummary):
                    return self._finish(shard, piece, course)
                forward_s = self._take(piece, course)
                hooks.progress(piece, forward_s)
            raise UnreadableError("it ended before its end was told")
        except UnreadableError as error:
            course.discard()
            return ShardResult(shard, failure=str(error))
        except Exception:
            course.discard()
            raise

    def _take(self, batch: Batch, course: _Course) -> float:
        """Embed a batch and keep its rows; returns the seconds of the forward pass."""
        with course.timed("queue"):
            self._turn.acquire()
        try:
            started = time.perf_counter()
            x_ND = self._embed(batch.pixels_NCHW)
            forward_s = time.perf_counter() - started
        except torch.OutOfMemoryError as error:
            raise ShoalError(
                f"{GPU_BATCHES} batches of {self._job.batch_size} images do not fit the GPU, of which this worker has "
                f"{self._job.pool.gpus:g} ({str(error).splitlines()[0]}); set extract.batch_size lower, or "
                "extract.gpus_per_actor=1."
            ) from error
        finally:
            self._turn.release()
        finite_N = np.isfinite(x_ND).all(axis=1)
        samples, refused = _judge(batch, finite_N)
        with course.timed("write"):
            course.files.add(samples, x_ND[finite_N])
        course.add(batch, forward_s, len(samples), refused)
        return forward_s

    def _finish(self, shard: str, summary: ShardSummary, course: _Course) -> ShardResult:
        if not summary.checksum:  # not all bytes came, or not all of one file: the storage's fault, not the shard's
            details = [reject.detail for reject in course.rejects if reject.reason == Reason.unreadable_shard]
            raise UnreadableError((details or ["it was changed while it was read"])[0])
        with course.timed("write"):
            written = course.files.finish(course.rejects)
        counts = Counter(reject.reason.value for reject in course.rejects)
        return ShardResult(
            shard,
            written,
            course.images,
            counts,
            tuple(course.rejects[:EXAMPLES]),
            summary,
            seconds=course.seconds,
            ready_at=self.ready_at,
            first_at=course.first_at,
        )

    def _embed(self, pixels_NCHW: np.ndarray) -> np.ndarray:
        if not len(pixels_NCHW):
            return np.empty((0, self._backbone.dim), np.float32)
        x_BD = self._backbone.embed(self._full_batch(pixels_NCHW)).cpu().numpy()
        return np.asarray(x_BD[: len(pixels_NCHW)])

    def _full_batch(self, pixels_NCHW: np.ndarray) -> Tensor:
        on_gpu = self._backbone.device.type == "cuda"
        shape = (self._job.batch_size, *pixels_NCHW.shape[1:])
        pixels_BCHW = torch.zeros(shape, dtype=torch.uint8, pin_memory=on_gpu)  # pinned: the copy need not wait
        pixels_BCHW[: len(pixels_NCHW)] = torch.from_numpy(pixels_NCHW)
        return pixels_BCHW


class _Course:
    """What a shard came to so far."""

    def __init__(self, files: ShardFiles) -> None:
        self.files = files
        self.images = 0
        self.rejects: list[Reject] = []
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.first_at: float | None = None

    def queued(self, pieces: Iterator[Batch | ShardSummary]) -> Iterator[Batch | ShardSummary]:
        """The same pieces; the time that they are waited for is the queue's."""
        while True:
            with self.timed("queue"):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    def discard(self) -> None:
        """Remove what was written; what cannot be removed is never seen, and must not hide why it should be."""
        with suppress(OSError):
            self.files.discard()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - started

    def add(self, batch: Batch, forward_s: float, images: int, rejects: list[Reject]) -> None:
        self.images += images
        self.rejects += rejects
        for stage, seconds in {**batch.seconds, "forward": forward_s}.items():
            self.seconds[stage] += seconds
        if self.first_at is None and images:
            self.first_at = time.time()


def _judge(batch: Batch, finite_N: np.ndarray) -> tuple[list[Sample], list[Reject]]:
    """Samples whose embedding is finite, and rejects, each in the order of the batch."""
    finite = iter(finite_N)
    samples, rejects = list[Sample](), list[Reject]()
    for item in batch.items:
        if isinstance(item, Reject):
            rejects.append(item)
        elif next(finite):
            samples.append(item)
        else:
            rejects.append(rejected(item, Reason.non_finite_embedding, "the backbone gave NaN or infinity"))
    return samples, rejects
