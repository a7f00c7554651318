"""Views that are made elsewhere: by actors on any CPU of the cluster, for workers that hold a GPU.

Every producer makes the parts of some of a worker's lanes by the code that the worker would use itself, so batches are
the same to the last bit. Parts wait in the object store, `ahead` of each producer, which then stops.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Generator, Iterator
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from models.errors import ShoalError, first_line
from pipeline.train.config import TrainConfig
from pipeline.train.images.parts import Maker, Part
from pipeline.train.world import World

if TYPE_CHECKING:
    from pipeline.train.images.feed import ImageSource

_LOOK_S = 1.0  # how long a wait goes on when nobody wants its end any more
_PATIENCE_S = 30.0  # until a user hears why nothing happens; a fresh worker process takes a few
_Arrays = tuple[tuple[np.ndarray, ...], np.ndarray]  # a Part as the object store holds it without a copy


class Producers:
    """A worker's producers. They live as long as this does, with the small images that they have cached.

    One that dies takes nothing with it that could not be made again: all are started anew, at the batch that is due.
    """

    def __init__(self, source: ImageSource, batch_rows: int, lanes: range, config: TrainConfig, world: World) -> None:
        """Raises ShoalError when there is no Ray session, or none with room for all producers."""
        count = min(source.images.producers, len(lanes))
        _require_room(count * source.images.threads, config, world)
        self._source = source
        self._batch_rows = batch_rows
        self._shares = [lanes[len(lanes) * each // count : len(lanes) * (each + 1) // count] for each in range(count)]
        self._max_failures = config.max_failures
        self._actors: list[Any] = []
        self._stopped = Event()

    def parts(self, epoch: int, start: int) -> Generator[Part, None, None]:
        """As Maker.parts. Raises OSError when producers died more than `train.loop.max_failures` times in an epoch."""
        self._stopped.clear()
        return self._parts(epoch, start)

    def stop(self) -> None:
        """As of Parts."""
        self._stopped.set()

    def _parts(self, epoch: int, start: int) -> Generator[Part, None, None]:
        due, failures, ended = start, 0, False
        try:
            while not ended:
                try:
                    for part in self._joined(epoch, due):
                        due += 1
                        yield part
                    ended = True
                except RayTaskError as error:
                    if isinstance(error.cause, ShoalError):
                        raise ShoalError(str(error.cause)) from None  # Ray's text of it is a traceback
                    raise
                except RayError as error:
                    failures += 1
                    if failures > self._max_failures:
                        raise OSError(f"Producers of views died {failures} times ({first_line(error)})") from error
                    self._kill()
        finally:
            if not ended:
                self._kill()  # or they would wait for ever for somebody to take what they have made

    def _joined(self, epoch: int, start: int) -> Iterator[Part]:
        if not self._actors:
            self._actors = [self._producer(lanes) for lanes in self._shares]
            self._await_room()
        ahead = self._source.images.ahead
        streams = [
            actor.parts.options(num_returns="streaming", _generator_backpressure_num_objects=ahead).remote(epoch, start)
            for actor in self._actors
        ]
        for references in zip(*(self._each(stream) for stream in streams), strict=True):
            arrays: list[_Arrays] = ray.get(list(references))
            views = zip(*(each for each, _ in arrays), strict=True)
            # Also of one producer: its arrays are the object store's, which nobody may write to.
            joined = tuple(torch.from_numpy(np.concatenate(view)) for view in views)
            yield Part(joined, np.concatenate([row_B for _, row_B in arrays]))

    def _each(self, stream: Any) -> Iterator[Any]:
        """What a stream gives; its own `next` could not be stopped."""
        while True:
            while not ray.wait([stream], timeout=_LOOK_S, fetch_local=False)[0]:
                self._require_going()
            try:
                reference = next(stream)
            except StopIteration:
                return
            yield reference

    def _await_room(self) -> None:
        """Wait until all have begun, and say so, once, where that takes long: their CPUs may be somebody else's."""
        waiting, began, told = [actor.begun.remote() for actor in self._actors], time.monotonic(), False
        while waiting:
            begun, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=_LOOK_S)
            ray.get(begun)  # raises what ended one of them
            self._require_going()
            if waiting and not told and time.monotonic() - began > _PATIENCE_S:
                told = True
                warnings.warn(
                    f"{len(waiting)} of {len(self._actors)} producers of views wait for {self._source.images.threads} "
                    "free CPUs each (train.images.producers and threads); training goes on when others let go of them.",
                    stacklevel=2,
                )

    def _require_going(self) -> None:
        if self._stopped.is_set():
            raise InterruptedError("Producers of views were stopped")

    def _producer(self, lanes: range) -> Any:
        images = self._source.images
        actor: Any = ray.remote(_Producer).options(num_cpus=images.threads, scheduling_strategy="SPREAD")
        return actor.remote(self._source, self._batch_rows, lanes)

    def _kill(self) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []


class _Producer:
    """An actor. What may fail is done in `parts`, whose errors reach the worker."""

    def __init__(self, source: ImageSource, batch_rows: int, lanes: range) -> None:
        self._source = source
        self._batch_rows = batch_rows
        self._lanes = lanes
        self._maker: Maker | None = None

    def begun(self) -> None:
        """Answers when the actor has a place to run."""

    def parts(self, epoch: int, start: int) -> Iterator[_Arrays]:
        """A stream of objects."""
        torch.set_num_threads(1)  # the threads that make views have their own
        if self._maker is None:
            index = self._source.index()
            self._maker = self._source.maker(index, self._source.order(index, self._batch_rows), self._lanes)
        for part in self._maker.parts(epoch, start):
            yield tuple(view.numpy() for view in part.views), part.row_B


def _require_room(cpus: int, config: TrainConfig, world: World) -> None:
    if not ray.is_initialized():
        raise ShoalError(
            "train.images.feed is remote, but there is no Ray session; start one, or set train.images.feed to local."
        )
    held = world.size * config.cpus_per_worker if world.size > 1 else 0
    cluster: Any = ray
    there = cluster.cluster_resources().get("CPU", 0)
    if world.size * cpus + held > there:
        raise ShoalError(
            f"{world.size} workers with {cpus} CPUs of producers each, and {held} of their own, need "
            f"{world.size * cpus + held} CPUs but the cluster has {there:g}; set train.images.producers lower, or "
            "train.images.feed to local."
        )
