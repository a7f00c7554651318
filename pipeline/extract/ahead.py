"""Work done in threads before its result is asked for: in order, and bounded in number or weight."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(
    work: Callable[[T], R],
    items: Iterable[T],
    threads: Executor,
    window: int,
    weight: Callable[[T], int] = lambda item: 1,
) -> Iterator[R]:
    """`map`, with items that weigh up to `window` together at work beside the one asked for.

    `items` is read by the caller's thread.
    """
    begun: deque[tuple[Future[R], int]] = deque()
    held = 0
    for item in items:
        begun.append((threads.submit(work, item), weight(item)))
        held += begun[-1][1]
        while begun and held > window:
            done, freed = begun.popleft()
            held -= freed
            yield done.result()
    while begun:
        yield begun.popleft()[0].result()


def one_ahead(items: Iterator[T], thread: Executor) -> Iterator[T]:
    """The same items, none of them None; each is made in `thread` while the one before is in use."""
    coming = thread.submit(next, items, None)
    while (item := coming.result()) is not None:
        coming = thread.submit(next, items, None)
        yield item


def single_threads(count: int) -> ThreadPoolExecutor:
    """A pool of threads in each of which torch uses one thread, so that together they use `count` CPUs.

    torch keeps the number per thread, and gives a thread that has not asked yet the number set last. So the threads
    here ask at once, and the caller sets its own number after.
    """
    pool = ThreadPoolExecutor(count)
    together = Barrier(count)

    def begin() -> None:
        together.wait()
        torch.set_num_threads(1)
        torch.get_num_threads()

    for started in [pool.submit(begin) for _ in range(count)]:
        started.result()
    return pool
