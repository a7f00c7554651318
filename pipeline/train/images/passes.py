"""Passes over all images between epochs: each prepared as the backbone takes it, and no view of it.

Shapes: N images, n images of a block, C channels, S pixels of a square.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from models.clusterer import Stats
from models.objective import ImageSummary
from models.preprocessing import Preprocessing
from pipeline.extract.ahead import map_ahead, one_ahead
from pipeline.ingest.decode import DecodeConfig
from pipeline.train.images.index import ImageIndex
from pipeline.train.images.read import Encoded, decoded, read_blocks
from pipeline.train.images.threads import threads_beside
from pipeline.train.rows import span
from pipeline.train.world import World, sum_stats

S = TypeVar("S", bound=Stats)

BLOCK_ROWS = 256  # sums are over the same blocks on any number of workers


@dataclass(frozen=True)
class ImagePasses:
    """`Passes` over the images of this worker, and the others': consecutive blocks in the order of the index.

    Every pass reads and decodes each image. Memory: two blocks of images, and what is read ahead.
    """

    index: ImageIndex
    world: World
    decoding: DecodeConfig
    pixels: Preprocessing
    threads: int
    seed: int

    @property
    def data(self) -> ImageSummary:
        """Of all images."""
        return ImageSummary(len(self.index), self.seed)

    def total(self, expect: Callable[[Tensor, Tensor], S]) -> S:
        """`expect(image_nCSS uint8, row_n)` summed over blocks and workers; a worker without images adds no rows."""
        device = self.world.device
        with torch.no_grad():
            stats: S | None = None
            for image_nCSS, row_n in self._blocks():
                part = expect(image_nCSS.to(device), row_n.to(device))
                stats = part if stats is None else stats + part
            if stats is None:
                shape = (0, self.pixels.channels, self.pixels.size, self.pixels.size)
                rows = torch.zeros(0, dtype=torch.int64, device=device)
                stats = expect(torch.zeros(shape, dtype=torch.uint8, device=device), rows)
            return sum_stats(stats, self.world)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        begin, end = span(len(self.index), BLOCK_ROWS, self.world.rank, self.world.size)
        with threads_beside(self.threads) as threads, ThreadPoolExecutor(1) as reader:
            read = one_ahead(read_blocks(self.index, np.arange(begin, end)), reader)
            encoded = (each for block in read for each in block)
            prepared = map_ahead(self._prepare, encoded, threads, BLOCK_ROWS)
            for first in range(begin, end, BLOCK_ROWS):
                last = min(first + BLOCK_ROWS, end)
                row_n = torch.from_numpy(self.index.row_N[first:last].copy())
                yield torch.stack([next(prepared) for _ in range(first, last)]), row_n

    def _prepare(self, encoded: Encoded) -> Tensor:
        return self.pixels.prepare(decoded(self.index, encoded, self.decoding, self.pixels.short_side))
