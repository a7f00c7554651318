"""Some lanes' part of every batch, as views: read, decoded and cut ahead of their use, in threads.

The same code serves a worker that makes its views itself and the tasks that make them for others (remote.py).
Shapes: B rows of a part, C channels, S pixels of a square.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from models.views import Views
from pipeline.extract.ahead import map_ahead, one_ahead, single_threads
from pipeline.ingest.decode import DecodeConfig, Undecodable, decode
from pipeline.train.images.config import ImagesConfig
from pipeline.train.images.index import ImageIndex
from pipeline.train.images.order import Order
from pipeline.train.images.read import Encoded, changed, in_turn, shard_of

ROWS_AT_ONCE = 16  # of images of any size, so that all threads work on one batch
SMALL_AT_ONCE = 512  # of small ones: calls cost more than pixels


@dataclass(frozen=True)
class Part:
    """Consecutive rows of one batch."""

    views: tuple[Tensor, ...]  # uint8 (B, C, S, S) each
    row_B: np.ndarray  # int64, stable hashes


@dataclass(frozen=True)
class _Chunk:
    """Rows that one thread makes views of; images that are not in the cache are here, in the order of rows."""

    row_b: np.ndarray  # of the index
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

    def parts(self, epoch: int, start: int) -> Iterator[Part]:
        """The parts of batches `start` and later, in order; `ahead` of them are made before they are asked for.

        Its threads end when the iterator does, or is closed. Raises ShoalError for a shard that has changed since it
        was indexed, OSError for storage that fails.
        """
        before = torch.get_num_threads()
        makers, joiner = single_threads(self._config.threads), single_threads(1)
        torch.set_num_threads(before)  # which the pools have changed
        readers = ThreadPoolExecutor(len(self._lanes))
        rows = self._size(start)
        window = max(self._config.ahead * rows, self._config.threads * self._at_once)
        try:
            chunks = self._chunks(epoch, start, readers)
            made = map_ahead(partial(self._make, epoch), chunks, makers, window, lambda chunk: len(chunk.row_b))
            yield from one_ahead(self._joined(made, start), joiner)
        finally:
            for pool in (readers, makers, joiner):
                pool.shutdown(wait=False, cancel_futures=True)
            for pool in (joiner, makers, readers):
                pool.shutdown()

    def _size(self, batch: int) -> int:
        """B."""
        return self._order.begin(batch, self._lanes.stop) - self._order.begin(batch, self._lanes.start)

    def _chunks(self, epoch: int, start: int, readers: Executor) -> Iterator[_Chunk]:
        """What is to be made, read in one place: a lane is one stream."""
        lanes = {lane: self._order.epoch(lane, epoch) for lane in self._lanes}
        streams = {
            lane: in_turn(self._index, rows, self._order.span(start, lane)[0], self._is_missing, readers)
            for lane, rows in lanes.items()
        }
        for batch in range(start, self._order.batches):
            spans = {lane: slice(*self._order.span(batch, lane)) for lane in self._lanes}
            row_B = np.concatenate([rows.read_n[rows.turn_n[spans[lane]]] for lane, rows in lanes.items()])
            missing_B = self._is_missing(row_B)
            encoded = []
            if missing_B.any():
                for lane, rows in lanes.items():
                    row_l = rows.read_n[rows.turn_n[spans[lane]]]
                    encoded += [next(streams[lane]) for _ in range(int(self._is_missing(row_l).sum()))]
            yield from self._cut(row_B, missing_B, encoded)
