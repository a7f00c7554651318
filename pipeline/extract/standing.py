"""How far an extraction is while shards are being read: a thread that asks the ledger, and says it in words."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

from pipeline.extract.ledger import Standing
from pipeline.extract.resume import Todo
from pipeline.progress import Progress

EVERY_S = 1.0


class Watch:
    """Tells a listener once a second how it goes, and at once what was committed.

    The rate is that of the last ten seconds or so. The time that is left follows from the part of the shards' bytes
    that was read since the first image.
    """

    def __init__(self, ask: Callable[[], Standing], on_progress: Progress, step: str, todo: Todo) -> None:
        self._ask = ask
        self._on_progress = on_progress
        self._step = step
        self._todo = todo
        self._in_table = len(todo.skipped)
        self._pace = Pace(len(todo.shards))
        self._over = Event()
        self._talk = Lock()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def committed(self, in_table: int) -> None:
        """So many shards need no more work."""
        self._in_table = in_table
        self._tell()

    def _watch(self) -> None:
        while not self._over.wait(EVERY_S):
            with suppress(Exception):  # the ledger is busy or gone: there is nothing to say, and nothing to fail for
                self._pace.see(self._ask(), time.monotonic())
                self._tell()

    def _tell(self) -> None:
        with self._talk:
            words = self._pace.words()
            self._on_progress(f"{self._step}, {words}" if words else self._step, self._in_table, self._todo.total)


class Pace:
    """Rate and remaining time, from what was seen."""

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self._began: tuple[float, Standing] | None = None
        self._last: tuple[float, Standing] | None = None
        self._rate: float | None = None  # images/s

    def see(self, standing: Standing, now_s: float) -> None:
        """Take in where the run stands at a moment."""
        if self._began is None:
            if standing.images:
                self._began = self._last = (now_s, standing)
            return
        before_s, before = self._last or self._began
        if standing.images < before.images:  # a worker died, and what it did is undone
            self._last = (now_s, standing)
        elif now_s - before_s >= 1e-3:
            rate = (standing.images - before.images) / (now_s - before_s)
            keep = 0.9 ** (now_s - before_s)
            self._rate = rate if self._rate is None else keep * self._rate + (1 - keep) * rate
            self._last = (now_s, standing)

    @property
    def left_s(self) -> float | None:
        """Seconds to the end, if it goes on like this."""
        if self._began is None or self._last is None:
            return None
        part = self._last[1].shards - self._began[1].shards
        left = self._shards - self._last[1].shards
        return max(0.0, left * (self._last[0] - self._began[0]) / part) if part > 0 else None

    def words(self) -> str:
        """As a listener shows it; empty while there is nothing to say."""
        if self._rate is None or self._last is None:
            return ""
        standing = self._last[1]
        said = [f"{standing.images:,} images", f"{self._rate:,.0f}/s"]
        if (left_s := self.left_s) is not None:
            said.append(f"{_clock(left_s)} left")
        said += [f"{standing.rejects:,} rejects", f"{standing.waiting:,} waiting"]
        return ", ".join(said)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
