"""Benchmark `extract-kills`: one extraction killed 20 times and resumed by the same command, against one left in peace.

Kills (SIGKILL) come at seeded random moments, aimed in turn at start-ups, at the work, and at commits, and hit the
driver or one of Ray's workers. Bar: the same set of rows (key, shard, offset, size, label, status, bytes of the
embedding), every sample exactly once, and no run that stood still. 160 shards of 192 images of Fashion-MNIST, embedded
by a ResNet-18 at 64 pixels. Linux only; takes 10 minutes on 2 cores.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.images import Size, fashion, folder_for
from jobs.bench.killer import DRIVER, PHASES, Kill, Killer, Pace, commit_seconds, count_commits
from jobs.bench.speeds import extract_command, finished, outputs, running
from jobs.figures import Row
from models.backbones import BackboneConfig
from pipeline.progress import Progress
from pipeline.tables.collection import Collection
from pipeline.tables.samples import embedding_matrix
from pipeline.tables.schema import OK

SIZE = Size(shards=160, images=192)
BACKBONE = BackboneConfig(name="torchvision/resnet18", weights="random", size=64)
COMMIT_SHARDS = 2
KILLS = 20


class Sample(NamedTuple):
    """What a row of a samples table says."""

    key: str
    shard: str
    offset: int | None
    size: int | None
    label: str | None
    status: str
    embedding: str  # SHA-256 of its bytes; "" of a reject


def run(
    data: Path | None,
    on_progress: Progress,
    size: Size = SIZE,
    backbone: BackboneConfig = BACKBONE,
    kills: int = KILLS,
) -> Result:
    """`data`: a folder where images are made and kept. Raises ShoalError where a run fails that nobody killed."""
    with folder_for(data) as folder, tempfile.TemporaryDirectory(prefix="shoal-bench-") as scratch:
        shards = fashion(folder, size)
        paths = [Path(scratch, name) for name in ("in-peace", "killed")]
        settings = f"extract.commit_shards={COMMIT_SHARDS}"
        in_peace, command = (extract_command(shards, str(path), backbone, settings) for path in paths)
        on_progress("bench, in peace", 0, kills)
        pace = _measure_pace(in_peace, paths[0])
        killer = Killer(command, paths[1], pace, kills)
        killer.run(on_progress)
        on_progress("bench, to the end", kills, kills)
        outputs([command])
        wanted, found = (samples_of(path) for path in paths)
    bars = [
        Bar("kills", len(killer.kills), least=kills),
        Bar("rows missing or different", (wanted - found).total(), most=0),
        Bar("rows too many or different", (found - wanted).total(), most=0),
        Bar("samples not there exactly once", not_once(found, size.total), most=0),
        Bar("runs that stood still", sum(kill.stalled for kill in killer.kills), most=0),
    ]
    values = {"images": size.total, "shards": size.shards, "starts": killer.starts, **asdict(pace)}
    tables: dict[str, list[Row]] = {"phases": _phases(killer.kills), "kills": [asdict(kill) for kill in killer.kills]}
    return judged("extract-kills", bars, values, tables)


def samples_of(table: Path) -> Counter[Sample]:
    """Every row of the samples table, and how often it is there. Memory: 500 bytes a row."""
    samples, found = Collection.open(table).samples, Counter[Sample]()
    for status, files in samples.files_by_status().items():
        for file in files:
            rows = samples.read(file)
            digests = (
                [hashlib.sha256(x_D.tobytes()).hexdigest() for x_D in embedding_matrix(rows)]
                if status == OK
                else [""] * len(rows)
            )
            places = (rows[name].to_pylist() for name in ("key", "shard", "offset", "size", "label"))
            found.update(map(Sample, *places, [status] * len(rows), digests))
    return found


def not_once(found: Counter[Sample], total: int) -> int:
    """Samples that are there twice, or not at all of so many."""
    times = Counter((sample.shard, sample.key) for sample in found.elements())
    return sum(count != 1 for count in times.values()) + max(0, total - len(times))


def _measure_pace(command: Sequence[str], table: Path) -> Pace:
    """Extract without kills, and see how long that takes."""
    began = time.monotonic()
    with running(command) as process:
        while process.poll() is None and not count_commits(table):
            time.sleep(0.02)
        first = time.monotonic()
        finished(process)
    return Pace(first - began, time.monotonic() - first, commit_seconds(table))


def _phases(kills: Sequence[Kill]) -> list[Row]:
    """How many kills were meant for each phase, and how many hit it: driver and workers."""
    return [
        {
            "phase": phase,
            "aimed": sum(kill.aimed == phase for kill in kills),
            "hit_driver": sum(kill.hit == phase and kill.victim == DRIVER for kill in kills),
            "hit_worker": sum(kill.hit == phase and kill.victim != DRIVER for kill in kills),
        }
        for phase in PHASES
    ]
