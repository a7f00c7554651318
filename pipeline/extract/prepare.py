"""Samples of a shard to batches of prepared images: ahead of the backbone in threads, or carefully one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from torch import Tensor

from pipeline.extract.ahead import map_ahead, one_ahead, single_threads
from pipeline.extract.ledger import Attempt
from pipeline.extract.rows import rejected
from pipeline.ingest.decode import Undecodable
from pipeline.ingest.shards import Reject, Sample
from pipeline.tables.schema import Reason

Decoder = Callable[[bytes], Tensor]
"""Image bytes to a uint8 tensor (3, H, W); raises Undecodable."""

Announce = Callable[[int | None], None]
"""Told the offset of an image before it is decoded, and None after."""


@dataclass(frozen=True)
class Prepared:
    """A sample whose bytes have become what the backbone takes."""

    sample: Sample  # its bytes dropped
    pixels_CHW: Tensor  # uint8


Batch = list[Prepared | Reject]


class Preparer:
    """Decodes and resizes; whatever an image does to the decoder short of killing the process becomes a reject."""

    def __init__(self, decoder: Decoder, resize: Callable[[Tensor], Tensor], threads: int) -> None:
        self._decoder = decoder
        self._resize = resize
        self._threads = threads
        self._decoders = single_threads(threads)
        self._background = ThreadPoolExecutor(1)

    def batches(self, items: Iterable[Sample | Reject], size: int) -> Iterator[Batch]:
        """Runs of items with `size` images each, in order, and any number of rejects between them.

        While a batch is in use the next one is read and decoded. Memory: the images of two batches.
        """
        return one_ahead(
            _fill(map_ahead(self._prepare, items, self._decoders, size + self._threads), size), self._background
        )

    def careful_batches(
        self, items: Iterable[Sample | Reject], size: int, attempt: Attempt, announce: Announce
    ) -> Iterator[Batch]:
        """The same batches, but nothing overlaps, every image is announced, and convicted ones are not decoded."""
        return _fill((self._prepare_announced(item, attempt, announce) for item in items), size)

    def _prepare_announced(self, item: Sample | Reject, attempt: Attempt, announce: Announce) -> Prepared | Reject:
        if isinstance(item, Reject):
            return item
        if item.offset in attempt.convicted:
            return rejected(item, Reason.kills_decoder, "every worker that decoded it died")
        announce(item.offset)
        prepared = self._prepare(item)
        announce(None)
        return prepared

    def _prepare(self, item: Sample | Reject) -> Prepared | Reject:
        if isinstance(item, Reject):
            return item
        try:
            image_3HW = self._decoder(item.image)
        except Undecodable as error:
            return rejected(item, error.reason, error.detail)
        except Exception as error:  # no image may stop a run, whatever a decoder raises for it
            return rejected(item, Reason.corrupt_image, f"{type(error).__name__}: {error}")
        return Prepared(replace(item, image=b""), self._resize(image_3HW))


def _fill(items: Iterator[Prepared | Reject], size: int) -> Iterator[Batch]:
    batch: Batch = []
    images = 0
    for item in items:
        batch.append(item)
        images += isinstance(item, Prepared)
        if images == size:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch
