"""Looking on while a job works: its log as bars and sentences, its end as an exit code."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console

from jobs.brief import legible
from jobs.outcome import INTERRUPTED, REFUSED
from jobs.screen import progress
from jobs.submit.client import Client, FailedError, Job, UnknownJobError, UnreachableError
from models.errors import ShoalError
from pipeline.progress import Progress

EVERY_S = 0.3
AT_ONCE = 1_000_000  # characters of a log per second of waiting: it comes whole each time, so a long one comes rarely
PATIENCE_S = 60.0  # without an answer
SIGNALLED = 128  # and the signal's number, as shells have it
_KEYS = {"time", "level", "event"}


@dataclass
class Log:
    """Pieces of a log as whole lines; those that are shoal's own as what they tell."""

    on_progress: Progress
    with_bars: bool
    out: TextIO | None = None  # for what the job printed; None: stdout as it is at the time
    _rest: str = field(default="", init=False)

    def take(self, text: str) -> None:
        """The next piece."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._show(line)

    def close(self) -> None:
        """What came without the end of its line."""
        if self._rest:
            self._show(self._rest)
        self._rest = ""

    def _show(self, text: str) -> None:
        line = as_line(text)
        if line is None:
            out = self.out or sys.stdout
            out.write(f"{legible(text.expandtabs())}\n")
            out.flush()
        elif self.with_bars and line["event"] == "progress" and isinstance(line.get("step"), str):
            self.on_progress(legible(_step(line)), _count(line, "done") or 0, _count(line, "total"))
        else:
            sys.stderr.write(f"{legible(sentence(line))}\n")
            sys.stderr.flush()


def as_line(text: str) -> Mapping[str, Any] | None:
    """A line of shoal's own; None for anything else."""
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and found.keys() >= _KEYS else None


def sentence(line: Mapping[str, Any]) -> str:
    """A line of shoal's own for people: the time, and what happened."""
    event, message, step = line["event"], line.get("message"), line.get("step")
    if event == "progress":
        done, total = _count(line, "done"), _count(line, "total")
        text = f"{_step(line)}: {done:,}" + ("" if total is None else f" of {total:,}") if done is not None else step
    elif event == "started":
        text = f"started {line.get('command')}, run {line.get('run')}, attempt {line.get('attempt')}"
    else:
        seconds = line.get("seconds")
        took = f" after {seconds:,.0f} s" if isinstance(seconds, int | float) else ""
        text = message or f"{event} {line.get('command')}{took}"
    level = "" if line["level"] == "info" else f"{line['level']}: "
    return f"{str(line['time'])[11:19]} {level}{text}"


def follow(client: Client, id_: str, show: Callable[[str], None]) -> Job:
    """Show a job's log until it is over. Raises ShoalError when the cluster has not answered for a minute."""
    tail, last_heard, job = _Tail(client, id_, show), time.monotonic(), None
    while True:
        try:
            job = client.job(id_)  # before the log, so that the log of a job that is over is whole
            tail.read()
        except UnreachableError as error:
            if time.monotonic() - last_heard > PATIENCE_S:
                raise ShoalError(_lost(client, id_, job)) from error
            time.sleep(1.0)
            continue
        except UnknownJobError as error:
            raise ShoalError(_forgotten(client, id_) if job else str(error)) from error
        last_heard = time.monotonic()
        if job.is_over:
            return job
        time.sleep(max(EVERY_S, min(30.0, tail.seen / AT_ONCE)))


@dataclass
class _Tail:
    """What a job says, as it says it."""

    client: Client
    id: str
    show: Callable[[str], None]
    seen: int = 0
    is_silent: bool = False

    def read(self) -> None:
        """Show what is new; warn once where the log cannot be had and the job can.

        The machine that has it may be gone, or something in it is no UTF-8, and then Ray gives none of it.
        """
        try:
            log = self.client.log(self.id)
        except FailedError as error:
            if not self.is_silent:
                warnings.warn(f"What job {self.id} says cannot be shown, its end will be: {error}", stacklevel=2)
            self.is_silent = True
            return
        self.show(log[self.seen :])
        self.seen = max(self.seen, len(log))


@contextmanager
def shown() -> Iterator[Callable[[str], None]]:
    """Where a log goes: bars on a terminal, lines anywhere else; what the job printed goes to stdout."""
    # Bars put themselves in the place of stdout, so that lines do not tear them; a file or a pipe is no place for bars.
    out = None if sys.stdout.isatty() else sys.stdout
    with progress() as on_progress:
        log = Log(on_progress, Console(stderr=True).is_terminal, out)
        try:
            yield log.take
        finally:
            log.close()


def watch(client: Client, id_: str) -> Job:
    """Show a job until it is over. Ctrl-C leaves it alone: raises Detached."""
    try:
        with shown() as show:
            return follow(client, id_, show)
    except KeyboardInterrupt as interrupt:
        raise Detached(
            f"No longer watching; the job goes on. Look again with `shoal jobs logs {id_} --follow`, stop it with "
            f"`shoal jobs stop {id_}`, with the same --address."
        ) from interrupt


class Detached(Exception):  # noqa: N818  not an error: the job goes on
    """Whoever watched went away."""


def exit_code(job: Job) -> int:
    """The job's own exit code as a shell would have it; 2 where it never came to have one."""
    if job.state == "SUCCEEDED":
        return 0
    if job.state == "STOPPED":
        return INTERRUPTED
    if not job.exit_code:
        return REFUSED
    return SIGNALLED - job.exit_code if job.exit_code < 0 else job.exit_code


def ending(job: Job) -> str:
    """How a job ended, in a sentence."""
    if job.state == "SUCCEEDED":
        return f"Job {job.id} succeeded."
    if job.state == "STOPPED":
        return f"Job {job.id} was stopped; submit the same command again, and it continues."
    if job.exit_code is None:
        return f"Job {job.id} failed before or without its command: {_first(job.message)}"
    code = exit_code(job)
    if code == 127:
        return f"Job {job.id} failed: no `python` on the PATH of the cluster's head; activate its environment there."
    if code > SIGNALLED:
        how = f"ended by signal {code - SIGNALLED}"
        return f"Job {job.id} was {how}; submit the same command again, and it continues from what is committed."
    return f"Job {job.id} ended with exit code {code}; its last lines say why."


def _first(message: str) -> str:
    """The first line of what Ray has to say, which may be pages."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return (lines or ["the cluster does not say why"])[0][:500]


def _lost(client: Client, id_: str, job: Job | None) -> str:
    known = "is not known to have begun" if job is None else f"was {job.state} when last heard of, not known to be over"
    return (
        f"{client.address.url} has not answered for {PATIENCE_S:.0f} s; job {id_} {known}. Look again with "
        f"`shoal jobs logs {id_} --follow`, or submit the same command again once the cluster is back: it continues."
    )


def _forgotten(client: Client, id_: str) -> str:
    return (
        f"The cluster at {client.address.url} was started anew and no longer knows job {id_}, which is over; submit "
        "the same command again, and it continues from what is committed."
    )


def _step(line: Mapping[str, Any]) -> str:
    detail = line.get("detail")
    return f"{line.get('step')}, {detail}" if detail else str(line.get("step"))


def _count(line: Mapping[str, Any], name: str) -> int | None:
    value = line.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None
