"""Samples of a shard to batches of prepared images: ahead of the backbone in threads, or carefully one by one.

Shapes: N images of a batch, C channels, H and W pixels.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from threading import Lock

import numpy as np
from torch import Tensor

from models.preprocessing import Preprocessing
from pipeline.extract.ahead import map_ahead, one_ahead, single_threads
from pipeline.extract.ledger import Attempt
from pipeline.extract.rows import rejected
from pipeline.ingest.decode import Undecodable
from pipeline.ingest.shards import Reject, Sample, ShardReader, ShardSummary, read_samples
from pipeline.tables.schema import Reason

Decoder = Callable[[bytes], Tensor]
"""Image bytes to a uint8 tensor (3, H, W); raises Undecodable."""

Announce = Callable[[int | None], None]
"""Told the offset of an image before it is decoded, and None after."""

_REJECT_BYTES = 1024  # what a reject that waits is taken to weigh


class UnreadableError(Exception):
    """The shard cannot be read now, which says nothing about what it holds."""


@dataclass(frozen=True)
class Batch:
    """A run of a shard: samples with their pixels, and the rejects between them, in its order."""

    items: tuple[Sample | Reject, ...]  # samples without their bytes
    pixels_NCHW: np.ndarray  # uint8, one image per sample
    waiting: int  # items that were begun behind this batch
    fraction: float  # of the shard's bytes, read so far
    seconds: dict[str, float] = field(default_factory=dict)  # spent on it, by stage: read, and decode in all threads


@dataclass(frozen=True)
class Prepared:
    """A sample whose bytes have become what the backbone takes."""

    sample: Sample
    pixels_CHW: Tensor  # uint8


_Timed = tuple[Prepared | Reject, float]  # and the seconds it took


class Preparer:
    """Decodes and resizes; whatever an image does to the decoder short of killing the process becomes a reject.

    Its threads may serve several shards at a time. Memory: `ahead_bytes` per shard that is open, and two batches.
    """

    def __init__(self, decoder: Decoder, pixels: Preprocessing, threads: int, ahead_bytes: int) -> None:
        self._decoder = decoder
        self._resize = pixels.prepare
        self._image_bytes = pixels.channels * pixels.size**2
        self._ahead_bytes = ahead_bytes
        self._decoders = single_threads(threads)
        self._alone = Lock()

    def batches(self, items: Iterable[Sample | Reject], size: int) -> Iterator[Batch]:
        """Runs of items with `size` images each, in order, and any number of rejects between them.

        While a batch is in use the next ones are read and decoded.
        """
        clock = _Clock(items)
        prepared = map_ahead(self._prepare, clock, self._decoders, self._ahead_bytes, self._weight)
        with ThreadPoolExecutor(1) as background:
            yield from one_ahead(_fill(prepared, size, clock), background)

    def careful_batches(
        self, items: Iterable[Sample | Reject], size: int, attempt: Attempt, announce: Announce
    ) -> Iterator[Batch]:
        """The same batches, but nothing overlaps, every image is announced, and convicted ones are not decoded."""
        clock = _Clock(items)
        return _fill((self._prepare_announced(item, attempt, announce) for item in clock), size, clock)

    def _prepare_announced(self, item: Sample | Reject, attempt: Attempt, announce: Announce) -> _Timed:
        if isinstance(item, Reject):
            return item, 0.0
        if item.offset in attempt.convicted:
            return rejected(item, Reason.kills_decoder, "every worker that decoded it died"), 0.0
        with self._alone:  # or an image of another shard would be suspected of what this one does
            announce(item.offset)
            prepared = self._prepare(item)
            announce(None)
        return prepared

    def _prepare(self, item: Sample | Reject) -> _Timed:
        started = time.perf_counter()
        made = item if isinstance(item, Reject) else self._decode(item)
        return made, time.perf_counter() - started

    def _weight(self, item: Sample | Reject) -> int:
        """Bytes that it may hold while it waits, before and after decoding."""
        return _REJECT_BYTES if isinstance(item, Reject) else len(item.image) + self._image_bytes

    def _decode(self, item: Sample) -> Prepared | Reject:
        try:
            pixels_CHW = self._resize(self._decoder(item.image))
        except Undecodable as error:
            return rejected(item, error.reason, error.detail)
        except Exception as error:  # no image may stop a run, whatever a decoder raises for it
            return rejected(item, Reason.corrupt_image, f"{type(error).__name__}: {error}")
        return Prepared(replace(item, image=b""), pixels_CHW)


@dataclass(frozen=True)
class LocalSource:
    """Shards read, decoded and resized in this process."""

    preparer: Preparer
    batch_size: int
    max_member_bytes: int

    def open(self, shard: str, attempt: Attempt, announce: Announce) -> Iterator[Batch | ShardSummary]:
        """The shard's batches, and last its summary. Raises UnreadableError where the storage fails."""
        reader = read_samples(shard, self.max_member_bytes)
        if attempt.careful:
            yield from self.preparer.careful_batches(reader, self.batch_size, attempt, announce)
        else:
            yield from self.preparer.batches(reader, self.batch_size)
        yield reader.summary


class _Clock:
    """Items as they are read, how many so far, and the seconds that it took."""

    def __init__(self, items: Iterable[Sample | Reject]) -> None:
        self._items = iter(items)
        self._shard = items if isinstance(items, ShardReader) else None
        self.seconds = 0.0
        self.items = 0

    @property
    def fraction(self) -> float:
        return self._shard.fraction if self._shard else 0.0

    def __iter__(self) -> Iterator[Sample | Reject]:
        while True:
            started = time.perf_counter()
            try:
                item = next(self._items, None)
            except Exception as error:  # a shard may be anything, and the others must not wait for it
                raise UnreadableError(f"{type(error).__name__}: {error}") from error
            self.seconds += time.perf_counter() - started
            if item is None:
                return
            self.items += 1
            yield item


def _fill(items: Iterable[_Timed], size: int, clock: _Clock) -> Iterator[Batch]:
    run, done = _Run(clock), 0
    for made, seconds in items:
        run.add(made, seconds)
        if len(run.pixels) == size:
            done += len(run.items)
            yield run.close(clock.items - done)
            run = _Run(clock)
    if run.items:
        yield run.close(0)


class _Run:
    """A batch in the making."""

    def __init__(self, clock: _Clock) -> None:
        self.items: list[Sample | Reject] = []
        self.pixels: list[np.ndarray] = []
        self._clock = clock
        self._read_before = clock.seconds
        self._decode = 0.0

    def add(self, made: Prepared | Reject, seconds: float) -> None:
        self._decode += seconds
        if isinstance(made, Prepared):
            self.items.append(made.sample)
            self.pixels.append(made.pixels_CHW.numpy())
        else:
            self.items.append(made)

    def close(self, waiting: int) -> Batch:
        pixels_NCHW = np.stack(self.pixels) if self.pixels else np.empty((0, 0, 0, 0), np.uint8)
        seconds = {"read": self._clock.seconds - self._read_before, "decode": self._decode}
        return Batch(tuple(self.items), pixels_NCHW, waiting, self._clock.fraction, seconds)
