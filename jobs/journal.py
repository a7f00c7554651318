"""What a command tells machines while it works: JSON lines on stderr, and a status in the folder that it writes.

Lines are written where SHOAL_LOG=json asks for them; the status wherever a run has a folder of its own. Neither stops
the work: what cannot be written is told once, as a warning. Nothing heavy is imported here, for every command does.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Event, RLock, Thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pipeline.tables.place import Place

LOG, RUN_ID = "SHOAL_LOG", "SHOAL_RUN_ID"
STATUS = "status.json"
TICK_S = 1.0  # between two looks whether there is something to tell
EVERY_S, STORE_EVERY_S = 5.0, 60.0  # between two lines, or two writes of the status; to a store each is a request
CODE_OF_INTERRUPTED = 130
SENTENCE_OF_INTERRUPTED = "Interrupted; what was committed is kept, and the same command continues from there."
RUNNING, FINISHED, FAILED, INTERRUPTED = "running", "finished", "failed", "interrupted"
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # what Ray gives to the process of a submitted job


@dataclass(frozen=True)
class Work:
    """What is under way, as every line names it."""

    command: str | None = None
    config: str | None = None  # digest of the settings
    run: str | None = None  # kept from attempt to attempt
    attempt: int | None = None
    output: str | None = None

    def line(self, level: str, event: str, **more: Any) -> dict[str, Any]:
        """One line of the log; what is unknown is left out."""
        known = {"run": self.run, "attempt": self.attempt, "command": self.command, "config": self.config, **more}
        told = {name: value for name, value in known.items() if value is not None}
        return {"time": now(), "level": level, "event": event, **told}


@dataclass
class _Now:
    """The work of this process, for warnings and last words, which come from elsewhere."""

    work: Work = field(default_factory=Work)
    step: str | None = None
    over: bool = False
    journal: Journal | None = None


_now = _Now()


def as_json() -> bool:
    """Whether lines are wanted."""
    return os.environ.get(LOG) == "json"


def now(precision: str = "milliseconds") -> str:
    """The time as lines give it: UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec=precision).replace("+00:00", "Z")


def begin(command: str | None = None) -> None:
    """A new command begins in this process."""
    global _now  # noqa: PLW0603  one process, one command
    _now = _Now(Work(command))


def current() -> Work:
    """What is under way; empty before anything is."""
    return _now.work


def warn(message: str) -> None:
    """Tell a warning."""
    _emit(_now.work.line("warning", "warning", step=_now.step, message=message))


def interrupted() -> None:
    """Tell the interruption now: what is still to be left behind may take this process along."""
    if _now.journal is not None:
        _now.journal.end(INTERRUPTED, CODE_OF_INTERRUPTED, SENTENCE_OF_INTERRUPTED)


def last_words(message: str, code: int, event: str = FAILED) -> None:
    """Tell how the command ended, unless that is told."""
    if not _now.over:
        _now.over = True
        _emit(_now.work.line("error", event, step=_now.step, message=message, exit_code=code))


def submission() -> str | None:
    """The id of the Ray job that this process is; None outside of one."""
    try:
        found = json.loads(os.environ[_JOB_CONFIG])["metadata"]["job_submission_id"]
    except (KeyError, TypeError, ValueError):
        return None
    return str(found)


def _emit(line: Mapping[str, Any]) -> None:
    if not as_json() or sys.stderr is None:  # closed before Python began
        return
    with suppress(OSError, ValueError):  # nobody reads any more, which is no reason to end
        sys.stderr.write(f"{json.dumps(line, default=str)}\n")
        sys.stderr.flush()


class Journal:
    """Tells of one command from its start to its end; call it as a `Progress`.

    `home` says where the status goes, or None while the folder is not the run's yet. Safe in threads. A thread of its
    own writes every few seconds, so that a step which has nothing to tell for long is seen to be alive.
    """

    def __init__(self, work: Work, home: Callable[[], Place | None] = lambda: None) -> None:
        self._home = home
        self._work = work
        self._began = self._moved_at = time.monotonic()
        self._steps: dict[str, dict[str, Any]] = {}
        self._status: dict[str, Any] = {}
        self._fixed: dict[str, Any] = {
            "started": now("microseconds"),
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": submission(),
        }
        self._told_at = self._wrote_at = 0.0
        self._changed = self._due = self._ended = self._failed = self._identified = False
        self._named: str | None = None  # the run, from outside
        self._lock = RLock()
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._work = self._identify(self._work)
        _now.work, _now.journal = self._work, self
        self._named = os.environ.get(RUN_ID)
        os.environ[RUN_ID] = self._work.run or ""  # for metrics, in whatever process of ours
        self._tell("info", "started", job=self._fixed["job"])
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Ends without a word: `end` has it."""
        self._over.set()
        self._thread.join()
        _now.journal = None
        if self._named is None:
            os.environ.pop(RUN_ID, None)
        else:
            os.environ[RUN_ID] = self._named

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """A step is so far. What follows a comma in its name is detail."""
        name, _, detail = step.partition(",")
        with self._lock:
            fresh = name != self._status.get("step")
            self._count_time()
            self._steps.setdefault(name, {"step": name, "seconds": 0.0}).update(done=done, total=total)
            _now.step = name
            self._status = {"step": name, "done": done, "total": total, "detail": detail.strip() or None}
            self._changed = True
            if fresh:
                self._tell("info", "progress", **self._status)
                self._due = True

    def end(self, state: str, code: int, message: str | None, figures: Mapping[str, Any] | None = None) -> None:
        """Tell how it ended; only the first time counts."""
        if self._ended:
            return
        self._ended = True
        self._over.set()
        self._thread.join()
        self._count_time()
        level = "info" if code == 0 else "warning" if state == FINISHED else "error"
        more = {"exit_code": code, "message": message, "seconds": round(time.monotonic() - self._began, 3)}
        self._tell(level, state, **{"step": _now.step, **more, "figures": figures})
        _now.over = True
        self._status |= more
        home = self._home()
        if self._steps or home is None or read_status(home) is None:
            self._write(state)
        # else it was refused before its first step, and what an earlier attempt came to stays told

    def _count_time(self) -> None:
        """What went by since the last call went into the step that was told of then."""
        moment, since = time.monotonic(), self._moved_at
        self._moved_at = moment
        if "step" in self._status:
            self._steps[self._status["step"]]["seconds"] += moment - since

    def _watch(self) -> None:
        """Only this thread writes before the end: a store may take long, and the work is not to wait for it."""
        while not self._over.wait(TICK_S):
            with self._lock:
                if self._changed and time.monotonic() - self._told_at >= EVERY_S:
                    self._tell("info", "progress", **self._status)
            if self._due or (self._steps and time.monotonic() - self._wrote_at >= self._pause_s):
                self._write(RUNNING)

    def _tell(self, level: str, event: str, **more: Any) -> None:
        self._told_at, self._changed = time.monotonic(), False
        _emit(self._work.line(level, event, **more))

    def _write(self, state: str) -> None:
        """The whole status; readers see the old one or the new one."""
        self._wrote_at, self._due = time.monotonic(), False
        home = self._home()
        if home is None:
            return
        from pipeline.tables.place import write_whole  # noqa: PLC0415  who has a folder has imported it

        if not self._identified:  # the folder was not ours before, so nothing was known of earlier attempts
            self._identified = True
            self._work = _now.work = _followed(self._work, home)
        elif _is_older((self._work, self._fixed["started"]), read_status(home)):
            return  # another attempt has begun since, and this one is on its way out
        with self._lock:
            steps = [{**each, "seconds": round(each["seconds"], 3)} for each in self._steps.values()]
            line = self._work.line("info", "status", **self._status)
        whole = {**line, "state": state, **self._fixed, "output": self._work.output, "steps": steps}
        try:
            write_whole(home / STATUS, f"{json.dumps(whole, indent=1, allow_nan=False, default=str)}\n".encode())
        except OSError as error:
            if not self._failed:
                self._failed = True
                warnings.warn(f"{home / STATUS} cannot be written ({error}); the work goes on.", stacklevel=2)

    def _identify(self, work: Work) -> Work:
        home = self._home()
        if home is not None:
            self._identified = True
            return _followed(work, home)
        return replace(work, run=_id(os.environ.get(RUN_ID)) or secrets.token_hex(6), attempt=1)

    @property
    def _pause_s(self) -> float:
        return STORE_EVERY_S if "://" in (self._work.output or "") else EVERY_S


def read_status(folder: Place) -> dict[str, Any] | None:
    """The status of the run in a folder; None where there is none, or none of ours."""
    try:
        found = json.loads((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("state"), str) else None


def _followed(work: Work, home: Place) -> Work:
    """`work` as the next attempt of the run in `home`, or under the name that SHOAL_RUN_ID gives it."""
    before = read_status(home) or {}
    attempt = before.get("attempt")
    run = _id(os.environ.get(RUN_ID)) or _id(before.get("run")) or work.run or secrets.token_hex(6)
    again = isinstance(attempt, int) and run == before.get("run")
    return replace(work, run=run, attempt=attempt + 1 if again and isinstance(attempt, int) else 1)


def _is_older(mine: tuple[Work, str], found: Mapping[str, Any] | None) -> bool:
    """Whether a status is of a later attempt of the same run."""
    work, started = mine
    attempt, when = (found or {}).get("attempt"), (found or {}).get("started")
    if (found or {}).get("run") != work.run or not isinstance(attempt, int) or not isinstance(when, str):
        return False
    return (attempt, when) > (work.attempt or 0, started)


def _id(found: object) -> str | None:
    """What may name a run in lines, metrics and environments; None for anything else."""
    return found if isinstance(found, str) and re.fullmatch(r"[\w.-]{1,64}", found, re.ASCII) else None
