"""Some lanes' part of every batch, as views: read, decoded and cut ahead of their use, in threads.

The same code serves a worker that makes its views itself and the tasks that make them for others (remote.py).
Shapes: B rows of a part, C channels, S pixels of a square.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.views import Views
from pipeline.extract.ahead import map_ahead
from pipeline.ingest.decode import DecodeConfig
from pipeline.train.images.config import ImagesConfig
from pipeline.train.images.index import ImageIndex
from pipeline.train.images.order import Order
from pipeline.train.images.read import Encoded, decoded, in_turn
from pipeline.train.images.threads import threads_beside

ROWS_AT_ONCE = 16  # of images of any size, so that all threads work on one batch
SMALL_AT_ONCE = 512  # of small ones: calls cost more than pixels


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one batch."""

    views: tuple[Tensor, ...]  # uint8 (B, C, S, S) each
    row_B: np.ndarray  # int64, stable hashes


@dataclass(frozen=True)
class _Chunk:
    """Rows that one thread makes views of. What is not in the cache comes encoded, in the order of rows."""

    row_b: np.ndarray  # of the index
    missing_b: np.ndarray  # bool
    encoded: Sequence[Encoded]


class Maker:
    """Makes the parts of some lanes.

    Memory: that of ImagesConfig. Small images (`views.base`) are kept as they are first made, as far as `cache_bytes`
    reach, and then neither read nor decoded again.
    """

    def __init__(
        self, index: ImageIndex, order: Order, lanes: range, views: Views, decoding: DecodeConfig, config: ImagesConfig
    ) -> None:
        self._index = index
        self._order = order
        self._lanes = lanes
        self._views = views
        self._decoding = decoding
        self._config = config
        base = views.config.base
        self._short_side = base or max(views.config.sizes)
        self._at_once = SMALL_AT_ONCE if base else ROWS_AT_ONCE
        row_N = np.sort(np.concatenate([order.lane_rows(lane) for lane in lanes]))
        self._cache = _Cache(row_N, (views.channels, base, base), config.cache_bytes) if base else None

    def parts(self, epoch: int, start: int) -> Generator[Part, None, None]:
        """The parts of batches `start` and later, in order; `ahead` of them are begun before they are asked for.

        Its threads end when the generator does, or is closed. Raises ShoalError for a shard that has changed since it
        was indexed, OSError for storage that fails.
        """
        makers = threads_beside(self._config.threads)
        readers = ThreadPoolExecutor(len(self._lanes))
        rows = self._size(start)
        window = max(self._config.ahead * rows, self._config.threads * min(rows, self._at_once))
        try:
            chunks = self._chunks(epoch, start, readers)
            made = map_ahead(partial(self._make, epoch), chunks, makers, window, lambda chunk: len(chunk.row_b))
            for batch in range(start, self._order.batches):
                yield join([next(made) for _ in range(-(-self._size(batch) // self._at_once))])
        finally:
            for pool in (makers, readers):
                pool.shutdown(cancel_futures=True)

    def stop(self) -> None:
        """Nothing to do: what is begun here waits for nobody."""

    def _size(self, batch: int) -> int:
        """B."""
        return self._order.begin(batch, self._lanes.stop) - self._order.begin(batch, self._lanes.start)

    def _chunks(self, epoch: int, start: int, readers: Executor) -> Iterator[_Chunk]:
        """What is to be made. Read in one thread, for a lane is one stream."""
        lanes = [self._lane(lane, epoch, start, readers) for lane in self._lanes]
        for batch in range(start, self._order.batches):
            runs = [each.take(*self._order.span(batch, lane)) for lane, each in zip(self._lanes, lanes, strict=True)]
            row_B, missing_B = (np.concatenate(each) for each in list(zip(*runs, strict=True))[:2])
            encoded = [image for run in runs for image in run[2]]
            before_B = np.concatenate([[0], np.cumsum(missing_B)])
            for first in range(0, len(row_B), self._at_once):
                part = slice(first, min(first + self._at_once, len(row_B)))
                yield _Chunk(row_B[part], missing_B[part], encoded[before_B[part.start] : before_B[part.stop]])

    def _lane(self, lane: int, epoch: int, start: int, readers: Executor) -> _Lane:
        order = self._order.epoch(lane, epoch)
        row_n = order.row_n
        missing_n = np.ones(len(row_n), bool) if self._cache is None else self._cache.is_missing(row_n)
        missing_n[: self._order.span(start, lane)[0]] = False
        return _Lane(row_n, missing_n, in_turn(self._index, order, missing_n, readers))

    def _make(self, epoch: int, chunk: _Chunk) -> Part:
        hash_b = self._index.row_N[chunk.row_b]
        if self._cache is not None:
            square_bCHW = torch.from_numpy(self._squares(self._cache, chunk))
            return Part(self._views.of_batch(square_bCHW, hash_b, epoch), hash_b)
        images = zip(chunk.encoded, hash_b.tolist(), strict=True)
        made = [self._views.of_image(self._decoded(encoded), row, epoch) for encoded, row in images]
        return Part(tuple(torch.stack(view) for view in zip(*made, strict=True)), hash_b)

    def _squares(self, cache: _Cache, chunk: _Chunk) -> np.ndarray:
        image_bCHW = cache.take(chunk.row_b)
        for place, encoded in zip(np.flatnonzero(chunk.missing_b), chunk.encoded, strict=True):
            image_bCHW[place] = self._views.base_image(self._decoded(encoded)).numpy()
        cache.put(chunk.row_b[chunk.missing_b], image_bCHW[chunk.missing_b])
        return image_bCHW

    def _decoded(self, encoded: Encoded) -> Tensor:
        return decoded(self._index, encoded, self._decoding, self._short_side)


def join(parts: Sequence[Part]) -> Part:
    """Consecutive parts as one."""
    if len(parts) == 1:
        return parts[0]
    views = tuple(torch.cat(view) for view in zip(*(part.views for part in parts), strict=True))
    return Part(views, np.concatenate([part.row_B for part in parts]))


class _Lane:
    """A lane's rows of one epoch as they take part."""

    def __init__(self, row_n: np.ndarray, missing_n: np.ndarray, images: Iterator[Encoded]) -> None:
        self._row_n = row_n
        self._missing_n = missing_n  # at the start of the epoch, in which each row takes part once
        self._images = images

    def take(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray, list[Encoded]]:
        """Rows, which of them are missing from the cache, and the images of those."""
        missing_m = self._missing_n[first:last]
        return self._row_n[first:last], missing_m, [next(self._images) for _ in range(int(missing_m.sum()))]


class _Cache:
    """Squares of rows, kept as they come: of the first of the sorted `row_N` as many as there is room for."""

    def __init__(self, row_N: np.ndarray, shape: tuple[int, int, int], room_bytes: int) -> None:
        room = min(len(row_N), room_bytes // int(np.prod(shape)))
        self._row_M = row_N[:room]
        self._square_MCHW = np.empty((room, *shape), np.uint8)  # pages that nothing was put into take no memory
        self._there_M = np.zeros(room, bool)

    def is_missing(self, row_n: np.ndarray) -> np.ndarray:
        """Whether each has to be read."""
        place_n, has_place_n = self._places(row_n)
        missing_n = np.ones(len(row_n), bool)
        missing_n[has_place_n] = ~self._there_M[place_n[has_place_n]]
        return missing_n

    def take(self, row_b: np.ndarray) -> np.ndarray:
        """A copy of the squares; of those that are missing, anything."""
        place_b, has_place_b = self._places(row_b)
        if has_place_b.all():
            return np.asarray(self._square_MCHW[place_b])
        square_bCHW = np.empty((len(row_b), *self._square_MCHW.shape[1:]), np.uint8)
        square_bCHW[has_place_b] = self._square_MCHW[place_b[has_place_b]]
        return square_bCHW

    def put(self, row_b: np.ndarray, square_bCHW: np.ndarray) -> None:
        """Keep those that have a place."""
        place_b, has_place_b = self._places(row_b)
        self._square_MCHW[place_b[has_place_b]] = square_bCHW[has_place_b]
        self._there_M[place_b[has_place_b]] = True

    def _places(self, row_n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where each row is kept, and whether it is."""
        place_n = np.searchsorted(self._row_M, row_n)
        has_place_n = np.zeros(len(row_n), bool)
        inside_n = place_n < len(self._row_M)
        has_place_n[inside_n] = self._row_M[place_n[inside_n]] == row_n[inside_n]
        return place_n, has_place_n
