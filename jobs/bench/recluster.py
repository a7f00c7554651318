"""Benchmark `recluster`: what a 1 % increment costs beside a full refit, without births and with births in 5 of 500.

10^6 generated rows of 500 Gaussians in 64 dimensions, in data files of 20,000 rows, no reduction. Each step is a
process of its own, as users run it: `shoal cluster`; 1 % more rows of the same Gaussians and `shoal recluster`; 1 %
more, a fifth of them of 5 new Gaussians, each next to another old one, and `shoal recluster`; `shoal recluster --mode
refit`. CPU seconds are the whole process's, imports included. Bytes are all that it reads by read calls (the kernel's
count), less what the same command reads on a table of a few hundred rows, which is Python's modules. Bars: at most .03
of the refit's CPU and .02 of its bytes without births, .10 of each with them; the births are found, all other ids kept.
Linux only; takes 15 minutes and 1 GB of temporary files.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.costs import Cost, cost_of, shoal_command
from jobs.bench.data import refuse
from jobs.figures import Row
from pipeline.evaluate.following import Seen, arrive, begun, born, kept_share, seen
from pipeline.evaluate.metrics import score_labels
from pipeline.evaluate.streams import Batch, Mixture
from pipeline.progress import Progress
from pipeline.tables.collection import Collection

NAME = "dpm"
FIT, QUIET, BIRTHS, REFIT = "fit", "increment", "increment with births", "refit"
STEPS = {FIT: ("cluster",), QUIET: ("recluster",), BIRTHS: ("recluster",), REFIT: ("recluster", "--mode", "refit")}
NO_REDUCTION = ("--set", "cluster.reduce.kind=none")


@dataclass(frozen=True)
class Size:
    """The law of the rows, and how they come."""

    rows: int = 1_000_000
    dim: int = 64
    clusters: int = 500
    spread: float = 1.2
    file_rows: int = 20_000
    increment: float = 0.01  # of `rows`
    births: int = 5
    births_share: float = 0.2  # of the increment's rows
    births_distance: float = 8.0  # deviations from the parent's mean: where the parent's own rows are in 64-d
    seed: int = 0

    @property
    def new_rows(self) -> int:
        """In an increment."""
        return round(self.increment * self.rows)


SIZE = Size()
IDLE_RUNS = 2  # the first one also writes and reads what Python compiles
SMALL = Size(rows=500, dim=64, clusters=2, file_rows=500, increment=0.1, births=1)  # whose cost is starting up


@dataclass(frozen=True)
class Step:
    """One command, what it cost, and what it published."""

    step: str
    cost: Cost
    decision: str
    seen: Seen


def run(data: Path | None, on_progress: Progress, size: Size = SIZE) -> Result:
    """Raises ShoalError where data are given, or a command fails."""
    refuse(data)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        idle: dict[str, Cost] = {}
        for number in range(IDLE_RUNS):
            for step in _steps(Path(folder, f"idle-{number}"), replace(SMALL, dim=size.dim)):
                idle[step.step] = _least(step.cost, idle.get(step.step, step.cost))
        steps: dict[str, Step] = {}
        for step in _steps(Path(folder, "table"), size):
            on_progress(f"bench, {step.step}", len(steps), len(STEPS))
            steps[step.step] = step
    net = {
        name: replace(step.cost, bytes_read=step.cost.bytes_read - idle[name].bytes_read)
        for name, step in steps.items()
    }
    new = range(size.clusters, size.clusters + size.births)
    found = born(steps[QUIET].seen, steps[BIRTHS].seen, new)
    bars = [
        *_ratios(QUIET, net, 0.03, 0.02),
        *_ratios(BIRTHS, net, 0.10, 0.10),
        Bar("births found", len(found), least=size.births),
        Bar("new ids without a birth", len(steps[BIRTHS].seen.ids - steps[FIT].seen.ids - set(found.values())), most=0),
        Bar("ids lost", len(steps[FIT].seen.ids - steps[BIRTHS].seen.ids), most=0),
    ]
    values = asdict(size) | {
        "rows_that_keep_their_id": kept_share(steps[FIT].seen, steps[BIRTHS].seen),
        "rows_that_keep_their_id_in_the_refit": kept_share(steps[BIRTHS].seen, steps[REFIT].seen),
    }
    rows = [_row(step, net[name], idle[name]) for name, step in steps.items()]
    return judged("recluster", bars, values, {"steps": rows})


def _least(one: Cost, other: Cost) -> Cost:
    """The smaller of each figure."""
    figures = zip(asdict(one).values(), asdict(other).values(), strict=True)
    return Cost(*(min(pair) for pair in figures))


def _ratios(step: str, net: dict[str, Cost], cpu: float, read: float) -> Iterator[Bar]:
    """The bars of an increment beside the refit."""
    yield Bar(f"CPU seconds, {step} / refit", net[step].cpu_seconds / net[REFIT].cpu_seconds, most=cpu)
    yield Bar(f"bytes read, {step} / refit", net[step].bytes_read / net[REFIT].bytes_read, most=read)


def _row(step: Step, net: Cost, idle: Cost) -> Row:
    return {
        "step": step.step,
        "decision": step.decision,
        "cpu_seconds": net.cpu_seconds,
        "cpu_seconds_of_start_up": idle.cpu_seconds,
        "wall_seconds": net.wall_seconds,
        "megabytes_read": net.bytes_read / 1e6,
        "megabytes_of_start_up": idle.bytes_read / 1e6,
        "clusters": len(step.seen.ids),
        "nmi": score_labels(step.seen.label_N, step.seen.cluster_N).nmi,
    }


def _steps(path: Path, size: Size) -> Iterator[Step]:
    """Each command in turn, on the rows that came before it."""
    rng = np.random.default_rng(size.seed)
    mixture = Mixture.drawn(size.clusters, size.dim, size.spread, rng)
    with_births = mixture.with_births(size.births, size.births_share, size.births_distance, rng)
    table = begun(path, size.dim)
    arrive(table, _files(mixture, size, rng))
    increments: dict[str, Mixture] = {QUIET: mixture, BIRTHS: with_births}
    for step, command in STEPS.items():
        if step in increments:
            arrive(table, [increments[step].draw(size.new_rows, rng)])
        verb, *options = command
        cost = cost_of(shoal_command(verb, str(path), *options, *NO_REDUCTION))
        yield _published(step, cost, table)


def _published(step: str, cost: Cost, table: Collection) -> Step:
    clustering = table.clustering(NAME)
    latest = clustering.generations()[-1]
    return Step(step, cost, latest.decision, seen(table, clustering, latest))


def _files(mixture: Mixture, size: Size, rng: np.random.Generator) -> Iterator[Batch]:
    """The rows of the first fit, a data file at a time."""
    for begin in range(0, size.rows, size.file_rows):
        yield mixture.draw(min(size.file_rows, size.rows - begin), rng)
