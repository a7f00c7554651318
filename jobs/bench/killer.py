"""Kills an extraction at random moments, and starts it again. Linux only."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from jobs.bench.processes import family
from jobs.bench.speeds import finished, running
from pipeline.progress import Progress

DRIVER, WORKER = "driver", "a worker"
PLAN = (  # what is meant to be hit, over and over; only the driver commits
    ("start-up", WORKER),
    ("work", DRIVER),
    ("commit", DRIVER),
    ("start-up", DRIVER),
    ("work", WORKER),
    ("commit", DRIVER),
)
PHASES = tuple(dict.fromkeys(phase for phase, _ in PLAN))
BEGUN = "shards/**/*.parquet"  # a commit begins with the table of shards
COMMITS = "samples/_delta_log/*[1-9]*.json"
PATIENCE_S = 180.0  # a run without a commit for so long stands still


@dataclass(frozen=True)
class Pace:
    """How long things take without kills, in seconds."""

    startup_seconds: float  # to the first commit
    work_seconds: float  # from there to the end
    commit_seconds: float  # from the first file that belongs to a commit to its end

    def latest(self, aim: str, kills: int) -> float:
        """How long after its begin a phase is hit at most; so many kills leave half of the work undone."""
        work = self.work_seconds / kills
        return {"start-up": self.startup_seconds, "work": work, "commit": self.commit_seconds}[aim]


@dataclass(frozen=True)
class Kill:
    """What was meant, and what was hit."""

    run: int  # counts the starts of the command
    seconds: float  # since that start
    aimed: str
    hit: str  # start-up: before the first commit of the run, or since the kill before
    victim: str  # the driver, or the name of a worker
    commits: int  # by this run until then
    stalled: bool


class Killer:
    """Brings a command nearly to its end: it, or one of its Ray workers, is killed `kills` times."""

    def __init__(self, command: Sequence[str], table: Path, pace: Pace, kills: int, seed: int = 0) -> None:
        self._command = command
        self._table = table
        self._pace = pace
        self._random = random.Random(seed)
        self._plan = [PLAN[number % len(PLAN)] for number in range(kills)]
        self._random.shuffle(self._plan)
        self.kills: list[Kill] = []
        self.starts = 0

    def run(self, on_progress: Progress) -> None:
        """Ends early where the work does. Raises ShoalError where a run fails that nothing was killed in."""
        finishing = False
        while len(self.kills) < len(self._plan) and not finishing:
            self.starts += 1
            before = len(self.kills)
            with running(self._command) as process:
                self._hunt(process, on_progress)
                finishing = process.poll() == 0
                if process.poll() is not None and len(self.kills) == before:
                    finished(process)

    def _hunt(self, process: subprocess.Popen[str], on_progress: Progress) -> None:
        """Kill until the command is dead, or enough was killed."""
        began, since = time.monotonic(), time.time_ns()
        first = last = count_commits(self._table)
        while len(self.kills) < len(self._plan):
            aim, whom = self._plan[len(self.kills)]
            on_progress(f"bench, kill at {aim}", len(self.kills), len(self._plan))
            stalled = self._wait(process, aim)
            if process.poll() is not None:
                return
            seconds, now = time.monotonic() - began, count_commits(self._table)
            victim = self._kill(process, DRIVER if stalled else whom)
            committing = victim == DRIVER and in_commit(self._table, since)
            hit = "commit" if committing else "start-up" if now == last else "work"
            self.kills.append(Kill(self.starts, seconds, aim, hit, victim, now - first, stalled))
            last = now

    def _wait(self, process: subprocess.Popen[str], aim: str) -> bool:
        """Wait for the moment, or the end of the process; whether nothing happened for too long."""
        watched = {"start-up": "", "work": COMMITS, "commit": BEGUN}[aim]
        seen, patient_until = _count(self._table, watched), time.monotonic() + PATIENCE_S
        while watched and process.poll() is None and _count(self._table, watched) == seen:
            if time.monotonic() > patient_until:
                return True
            time.sleep(0.002)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self._random.uniform(0, self._pace.latest(aim, len(self._plan))))
        return False

    def _kill(self, process: subprocess.Popen[str], whom: str) -> str:
        """Kill the driver, or one of its workers if there is one by now; returns who it was."""
        workers = [each for each in family(process.pid) if each.is_worker] if whom == WORKER else []
        if workers:
            worker = self._random.choice(workers)
            with suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            return worker.title.split("(")[0]
        process.kill()
        process.wait()
        return DRIVER


def count_commits(table: Path) -> int:
    """Versions of the samples table but the first, which is empty."""
    return _count(table, COMMITS)


def in_commit(table: Path, since_ns: int) -> bool:
    """Whether a commit was begun after that time (since 1970) and not ended."""
    return max(_times(table, BEGUN), default=0) > max([since_ns, *_times(table, COMMITS)])


def commit_seconds(table: Path) -> float:
    """Median time that commits took, by the times of their first and last files."""
    begun = _times(table, BEGUN)
    return median((end - max(time for time in begun if time <= end)) / 1e9 for end in _times(table, COMMITS))


def _times(table: Path, pattern: str) -> list[int]:
    """When files were written, in nanoseconds since 1970."""
    return [path.stat().st_mtime_ns for path in table.glob(pattern)]


def _count(table: Path, pattern: str) -> int:
    return sum(1 for _ in table.glob(pattern)) if pattern else 0
