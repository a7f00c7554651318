"""Work done in threads before its result is asked for, in order and in bounded number."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def map_ahead(work: Callable[[T], R], items: Iterable[T], threads: Executor, window: int) -> Iterator[R]:
    """`map`, with up to `window` items at work; `items` is read by the caller's thread."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(threads.submit(work, item))
        if len(waiting) > window:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def one_ahead(items: Iterator[T], thread: Executor) -> Iterator[T]:
    """The same items, none of which may be None; each is made in `thread` while the one before is in use."""
    coming = thread.submit(next, items, None)
    while (item := coming.result()) is not None:
        coming = thread.submit(next, items, None)
        yield item
