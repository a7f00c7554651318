"""Images as the data of a fit: a Source that every worker opens by itself, and its Feed of views.

Shapes: N images over all workers, B rows of this worker's part of a batch, C channels, S pixels of a square.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import torch

from models.errors import ShoalError
from models.objective import Batch, ImageSummary
from models.preprocessing import Preprocessing
from models.views import Views
from models.views_config import ViewsConfig
from pipeline.extract.ahead import one_ahead
from pipeline.ingest.decode import DecodeConfig
from pipeline.tables.place import Place
from pipeline.train.checkpoints import CheckpointStore, fingerprint
from pipeline.train.config import TrainConfig
from pipeline.train.images.config import ImagesConfig
from pipeline.train.images.index import ImageIndex, load_index
from pipeline.train.images.order import Deal, Order, require_lanes
from pipeline.train.images.parts import Maker, Part
from pipeline.train.images.passes import ImagePasses
from pipeline.train.images.threads import threads_beside
from pipeline.train.world import World


@dataclass(frozen=True)
class ImageSource:
    """The usable images of an index, and how views of them are made. Implements Source."""

    folder: Place  # of the index, where every worker finds it
    digest: str  # of the index
    rows: int
    images: ImagesConfig
    views: ViewsConfig
    decoding: DecodeConfig
    pixels: Preprocessing  # of the backbone: channels of views, and images in passes between epochs
    seed: int

    @classmethod
    def of(
        cls,
        index: ImageIndex,
        images: ImagesConfig,
        views: ViewsConfig,
        pixels: Preprocessing,
        seed: int,
        decoding: DecodeConfig | None = None,
    ) -> ImageSource:
        """The images of `index`, which stays in its folder."""
        return cls(
            index.folder, index.digest, len(index), images, views.resolved, decoding or DecodeConfig(), pixels, seed
        )

    def fingerprint(self) -> str:
        """Of the shards' bytes and every setting that a view or its place depends on: not cache, threads or feed."""
        return fingerprint(
            index=self.digest,
            images=self.images.outcome,
            views=self.views.model_dump(mode="json"),
            decoding=self.decoding.model_dump(mode="json"),
            pixels=self.pixels.model_dump(mode="json"),
            seed=self.seed,
        )

    def summary(self, config: TrainConfig, store: CheckpointStore) -> ImageSummary:
        """As of Source; nothing is read."""
        return ImageSummary(self.rows, self.seed)

    def open(self, config: TrainConfig, batch_rows: int, world: World, store: CheckpointStore | None) -> ImageFeed:
        """As of Source. Raises ShoalError for another index than was given."""
        self.require_lanes(config)
        index = self.index()
        order = self.order(index, batch_rows)
        lanes = order.of_worker(world.rank, world.size)
        passes = ImagePasses(index, world, self.decoding, self.pixels, self.images.threads, self.seed)
        if self.images.feed == "remote":
            from pipeline.train.images.remote import Producers  # noqa: PLC0415  Ray takes seconds to import

            return ImageFeed(order, lanes, world, Producers(self, batch_rows, lanes, config, world), passes)
        return ImageFeed(order, lanes, world, self.maker(index, order, lanes), passes)

    def require_lanes(self, config: TrainConfig) -> None:
        """Raise ShoalError if there would be fewer lanes than workers, of whom each needs one."""
        require_lanes(self.rows, self.images.lanes, config)

    def index(self) -> ImageIndex:
        """Raises ShoalError where the folder holds another one by now."""
        index = load_index(self.folder)
        if index.digest != self.digest:
            raise ShoalError(
                f"{self.folder} holds the index {index.digest[:12]} but this run began with {self.digest[:12]}; "
                "shards were indexed anew meanwhile: run again."
            )
        return index

    def order(self, index: ImageIndex, batch_rows: int) -> Order:
        """The same in every process."""
        deal = Deal(batch_rows, self.images.lanes, self.images.shuffle_rows, self.seed)
        return Order.of([shard.rows for shard in index.shards], [shard.ranged for shard in index.shards], deal)

    def maker(self, index: ImageIndex, order: Order, lanes: range) -> Maker:
        """Makes the parts of `lanes` in this process."""
        views = Views(self.views, self.pixels.channels, self.seed)
        return Maker(index, order, lanes, views, self.decoding, self.images)


class Parts(Protocol):
    """What makes a worker's parts: a Maker here, or Producers elsewhere."""

    def parts(self, epoch: int, start: int) -> Generator[Part, None, None]:
        """The parts of batches `start` and later; closing it ends what it started."""
        ...

    def stop(self) -> None:
        """Have `parts`, in another thread, wait for nobody any more."""
        ...


class ImageFeed:
    """One worker's parts of batches of views. Implements Feed."""

    def __init__(self, order: Order, lanes: range, world: World, parts: Parts, passes: ImagePasses) -> None:
        self._order = order
        self._lanes = lanes
        self._device = world.device
        self._parts = parts
        self.passes = passes
        self.steps = order.batches

    @property
    def data(self) -> ImageSummary:
        """Of all images."""
        return self.passes.data

    def draw(self, epoch: int, start: int) -> Generator[Batch, None, None]:
        """As of Feed. Views are uint8 (B, C, S, S), by bank; a GPU copies them while it computes."""
        before = torch.get_num_threads()
        thread = threads_beside(1)
        parts = self._parts.parts(epoch, start)
        try:
            ahead = one_ahead((self._pinned(part) for part in parts), thread)
            for batch, part in enumerate(ahead, start=start):
                torch.set_num_threads(before)  # `thread` has made a pool, which changes what new threads get
                views = tuple(view.to(self._device, non_blocking=True) for view in part.views)
                row_B = torch.from_numpy(part.row_B).to(self._device)
                yield Batch(views, row_B, self._order.begin(batch, self._lanes.start), self._order.total(batch))
        finally:
            self._parts.stop()
            thread.shutdown(cancel_futures=True)
            parts.close()

    def _pinned(self, part: Part) -> Part:
        """In memory that a GPU can copy from by itself, if there is one."""
        if self._device.type != "cuda":
            return part
        return Part(tuple(view.pin_memory() for view in part.views), part.row_B)
