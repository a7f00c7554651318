"""Benchmark `recluster-kills`: reclusters killed 20 times over a stream, and run again, beside the same left in peace.

Two copies of a clustered table get the same ten increments: rows of old clusters, rows of new ones, files that go, one
full refit. On the first copy every `shoal recluster` runs to its end. On the other it is killed (SIGKILL) at seeded
random moments: a third at any time, the others as soon as it has written so many files, a number drawn from those that
it wrote in peace, hence also in the midst of commits. After each kill every published generation is verified
(`pipeline.recluster.verify`). Bars: 20 kills; no generation that does not hold together; in the end both tables have
the same generations, artifacts, clusters, events and moves, and the same assignment of every row. Linux only; takes
five minutes.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.costs import cost_of, shoal_command
from jobs.bench.data import refuse
from jobs.bench.speeds import finished, running
from jobs.figures import Row
from models.errors import ShoalError
from pipeline.evaluate.following import arrive, begun
from pipeline.evaluate.streams import Batch, Mixture
from pipeline.progress import Progress
from pipeline.recluster.verify import verify
from pipeline.tables.collection import Collection
from pipeline.tables.schema import TableError

NAME = "dpm"
KILLS = 20
ANY, WRITING = "any time", "after files"
AIMS = (WRITING, ANY, WRITING)
_BLINK_S = 0.001


@dataclass(frozen=True)
class Increment:
    """What happens to the table, and how it is clustered then."""

    batch: Batch
    leaving: int = 0
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pace:
    """An increment's recluster in peace."""

    seconds: float
    files: int  # that it wrote


@dataclass(frozen=True)
class Kill:
    """One kill, and what it left behind."""

    increment: int
    aimed: str
    seconds: float  # since the start
    files: int  # written until then
    published: bool  # whether the generation was there nevertheless
    verified: int  # generations that hold together
    damage: str  # what does not


@dataclass(frozen=True)
class Size:
    """Of the stream."""

    clusters: int = 8
    dim: int = 8
    rows: int = 6_000
    increment_rows: int = 400
    increments: int = 10
    spread: float = 6.0


SIZE = Size()


def run(data: Path | None, on_progress: Progress, size: Size = SIZE, kills: int = KILLS) -> Result:
    """Raises ShoalError where data are given, or where a run fails that nobody killed."""
    refuse(data)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as scratch:
        peace, killed = Path(scratch, "in-peace"), Path(scratch, "killed")
        base, increments = stream(size)
        arrive(begun(peace, size.dim), base)
        cost_of(shoal_command("cluster", str(peace)))
        shutil.copytree(peace, killed)
        paces = []
        for number, increment in enumerate(increments):
            on_progress("bench, in peace", number, len(increments))
            paces.append(_in_peace(peace, increment))
        killer = Killer(killed, kills)
        for number, (increment, pace) in enumerate(zip(increments, paces, strict=True)):
            on_progress("bench, kills", len(killer.kills), kills)
            killer.run(increment, pace, number, len(increments))
        different = differences(Collection.open(peace), Collection.open(killed))
        damaged = sum(map(bool, verified(Collection.open(killed))))
        decisions = [each.decision for each in Collection.open(peace).clustering(NAME).generations()]
    bars = [
        Bar("kills", len(killer.kills), least=kills),
        Bar("generations that do not hold together", damaged + sum(bool(kill.damage) for kill in killer.kills), most=0),
        Bar("generations unlike those in peace", sum(map(bool, different)), most=0),
        Bar("generations", len(different), least=len(increments) + 1),
    ]
    rows: list[Row] = [
        {"generation": number, "decision": decision, "differs_in": ", ".join(names)}
        for number, (decision, names) in enumerate(zip(decisions, different, strict=False), start=1)
    ]
    tables: dict[str, Sequence[Row]] = {
        "in_peace": [asdict(pace) for pace in paces],
        "kills": [asdict(kill) for kill in killer.kills],
        "generations": rows,
    }
    return judged("recluster-kills", bars, {**asdict(size), "starts": killer.starts}, tables)


def stream(size: Size) -> tuple[list[Batch], list[Increment]]:
    """The rows of the first fit in four files, and the increments."""
    rng = np.random.default_rng(0)
    mixture = Mixture.drawn(size.clusters, size.dim, size.spread, rng)
    born = mixture.with_births(2, 0.3, 30.0, rng)
    base = [mixture.draw(size.rows // 4, rng) for _ in range(4)]
    increments = []
    for number in range(size.increments):
        law = born if number >= size.increments // 3 else mixture
        options = ("--mode", "refit") if number == size.increments // 2 else ()
        increments.append(Increment(law.draw(size.increment_rows, rng), int(number % 4 == 3), options))
    return base, increments


class Killer:
    """Reclusters a table whose process is killed again and again before it may end."""

    def __init__(self, path: Path, kills: int, seed: int = 0) -> None:
        self._path = path
        self._table = Collection.open(path)
        self._wanted = kills
        self._random = random.Random(seed)
        self.kills: list[Kill] = []
        self.starts = 0

    def run(self, increment: Increment, pace: Pace, number: int, increments: int) -> None:
        """One increment: its share of the kills that are still to come, and a run to the end.

        A kill that comes after the generation was published is the last one of its increment; the last increment is
        there for those that are missing then.
        """
        arrive(self._table, [increment.batch], increment.leaving)
        before = self._generations()
        share = math.ceil((self._wanted - len(self.kills)) / max(1, increments - 1 - number))
        for _ in range(share):
            if self._generations() == before:
                self._strike(_command(self._path, increment), pace, number)
        self.starts += 1
        cost_of(_command(self._path, increment))

    def _strike(self, command: Sequence[str], pace: Pace, number: int) -> None:
        """Start, wait for the moment, kill; what a process that was faster did is undone, and it starts again."""
        aim = AIMS[len(self.kills) % len(AIMS)]
        with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
            shutil.copytree(self._path, Path(name, "table"))
            while not self._struck(command, pace, number, aim):
                shutil.rmtree(self._path)
                shutil.copytree(Path(name, "table"), self._path)

    def _struck(self, command: Sequence[str], pace: Pace, number: int, aim: str) -> bool:
        """Whether the kill came before the end of the process."""
        self.starts += 1
        before, began, generations = _files(self._path), time.monotonic(), self._generations()
        with running(command) as process:
            if aim == ANY:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(self._random.uniform(0, pace.seconds))
            else:
                self._wait(process, before, self._random.randint(1, pace.files))
            if process.poll() is not None:
                finished(process)
                return False
            seconds = time.monotonic() - began
            process.kill()
            process.wait()
        damage = verified(self._table)
        self.kills.append(
            Kill(
                increment=number + 1,
                aimed=aim,
                seconds=seconds,
                files=len(_files(self._path) - before),
                published=self._generations() > generations,
                verified=damage.count(""),
                damage="; ".join(filter(None, damage)),
            )
        )
        return True

    def _wait(self, process: subprocess.Popen[str], before: set[str], files: int) -> None:
        """Until the process has written so many, or has ended."""
        seen: set[str] = set()
        while process.poll() is None and len(seen) < files:
            time.sleep(_BLINK_S)
            seen |= _files(self._path) - before

    def _generations(self) -> int:
        return len(self._table.clustering(NAME).generations())


def verified(table: Collection) -> list[str]:
    """What is wrong with each published generation, oldest first; empty where it holds together."""
    found = []
    for generation in table.clustering(NAME).generations():
        try:
            verify(table, NAME, generation)
            found.append("")
        except (ShoalError, TableError) as error:
            found.append(str(error))
    return found


def differences(one: Collection, other: Collection) -> list[list[str]]:
    """In what the generations of two tables differ, one list for each, oldest first. Clocks and file names may."""
    pairs = [each.clustering(NAME).generations() for each in (one, other)]
    found = [["is missing"]] * abs(len(pairs[0]) - len(pairs[1]))
    for mine, theirs in reversed(list(zip(*pairs, strict=False))):
        told = zip(_told(one, mine.generation), _told(other, theirs.generation), strict=True)
        found.insert(0, [name for (name, here), (_, there) in told if repr(here) != repr(there)])  # NaN is unlike NaN
    return found


def _told(table: Collection, number: int) -> Iterator[tuple[str, object]]:
    """All that a generation says, by name, but when it was made."""
    clustering = table.clustering(NAME)
    generation = clustering.generation(number)
    for name in ("samples_version", "artifact", "statistics", "config_digest", "parent", "decision"):
        yield name, getattr(generation, name)
    yield "clusters", sorted(clustering.events(generation).to_pylist(), key=lambda row: str(row["cluster"]))
    yield "moves", clustering.moves(generation).to_pylist()
    files = table.samples.files(version=generation.samples_version)
    yield "assignments", [clustering.read_assignments(generation, file).to_pydict() for file in files]


def _in_peace(path: Path, increment: Increment) -> Pace:
    arrive(Collection.open(path), [increment.batch], increment.leaving)
    before = _files(path)
    cost = cost_of(_command(path, increment))
    return Pace(cost.wall_seconds, len(_files(path) - before))


def _command(path: Path, increment: Increment) -> list[str]:
    return shoal_command("recluster", str(path), *increment.options)


def _files(path: Path) -> set[str]:
    """All files below a folder; those that go while it looks may be there or not."""
    return {f"{root}/{name}" for root, _, names in os.walk(path) for name in names}
