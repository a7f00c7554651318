"""Training by shoal, timed by epochs, in a process of its own: `python -m jobs.bench.swav_one fed|cached WORK`.

`fed` is `shoal train` as it is. In `cached` the same loop has its batches of views in memory. WORK is JSON; prints one
JSON line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import typer

from models.backbone_config import BackboneConfig
from models.config import Config
from models.objective import Batch, ImageSummary, Passes
from models.swav.objective import SwAVObjective
from pipeline.cluster.threads import threads
from pipeline.tables.place import place
from pipeline.train.config import TrainConfig
from pipeline.train.images.feed import ImageFeed, ImageSource
from pipeline.train.images.index import index_shards
from pipeline.train.learn_config import LearnConfig
from pipeline.train.trainer import Setting, run_worker
from pipeline.train.world import Alone


class Work(Config):
    """What is trained, on which shards, with an index of them in the folder `index`."""

    shards: tuple[str, ...]
    index: str
    train: LearnConfig
    backbone: BackboneConfig

    def read(self, **settings: object) -> Work:
        """The same with other settings of how images are read."""
        images = self.train.images.model_copy(update=settings)
        return self.model_copy(update={"train": self.train.model_copy(update={"images": images})})

    def trained(self, **settings: object) -> Work:
        """The same with other settings of the loop."""
        loop = self.train.loop.model_copy(update=settings)
        return self.model_copy(update={"train": self.train.model_copy(update={"loop": loop})})


class Timed(Config):
    """What a side came to: images per second of each epoch but the first, in which libraries warm up."""

    images: int  # of an epoch
    first: float  # the rate of the first epoch
    rates: tuple[float, ...]
    ready: float  # seconds since 1970 at which the first epoch began


@dataclass
class Clock:
    """When each epoch ended."""

    images: int
    marks: list[float] = field(default_factory=lambda: [time.time()])

    def mark(self) -> None:
        """An epoch is over."""
        self.marks.append(time.time())

    @property
    def timed(self) -> Timed:
        """All epochs."""
        first, *rates = (self.images / (end - begin) for begin, end in pairwise(self.marks))
        return Timed(images=self.images, first=first, rates=tuple(rates), ready=self.marks[0])


@dataclass(frozen=True)
class Cached:
    """Batches in memory, the same in each epoch. Implements Source and Feed."""

    feed: ImageFeed
    batches: tuple[Batch, ...]

    @classmethod
    def of(cls, source: ImageSource, config: TrainConfig) -> Cached:
        """The batches of the first epoch."""
        feed = source.open(config, config.batch_rows, Alone(), None)
        return cls(feed, tuple(feed.draw(epoch=0, start=0)))

    @property
    def rows(self) -> int:
        """As of Source."""
        return sum(batch.total for batch in self.batches)

    @property
    def steps(self) -> int:
        """As of Feed."""
        return len(self.batches)

    @property
    def data(self) -> ImageSummary:
        """As of Feed."""
        return self.feed.data

    @property
    def passes(self) -> Passes:
        """As of Feed."""
        return self.feed.passes

    def fingerprint(self) -> str:
        """As of Source: nothing is kept that could be another's."""
        return ""

    def summary(self, *_: Any) -> ImageSummary:
        """As of Source."""
        return self.data

    def open(self, *_: Any) -> Cached:
        """As of Source."""
        return self

    def draw(self, epoch: int, start: int) -> Generator[Batch]:
        """As of Feed."""
        yield from self.batches[start:]


def sourced(work: Work) -> tuple[SwAVObjective, ImageSource]:
    """What `shoal train` would train, and on what."""
    objective = SwAVObjective(work.train.objective, work.backbone, work.train.views)
    index = index_shards(work.shards, place(work.index))
    pixels, seed = objective.pixels, work.train.loop.seed
    return objective, ImageSource.of(index, work.train.images, work.train.views, pixels, seed)


def timed(work: Work, cached: bool) -> Timed:
    """Train for the epochs that the work says, of which the first warms up."""
    objective, images = sourced(work)
    config = work.train.loop
    with threads(config.cpus_per_worker):
        source = Cached.of(images, config) if cached else images
        clock = Clock(source.rows)
        setting = Setting(on_progress=lambda *_: clock.mark())
        run_worker(objective, source, config, Alone(), setting)
    return clock.timed


def main(side: str, work: str) -> None:
    """Print how fast a side is."""
    typer.echo(timed(Work.model_validate_json(work), side == "cached").model_dump_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
