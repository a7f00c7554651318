"""Benchmark `extract-memory`: the peak memory of `shoal extract` on four times the shards, against once.

Bars: at most 1.1 times, of the driver and of the largest worker. The peaks are the kernel's own (VmHWM), read five
times a second for every process that the command starts; so Linux only. 40 and 160 shards of 2,000 images of
Fashion-MNIST, embedded as 256 pixels: 500 bytes left behind by each of the 240,000 rows more would be 10 % of the
1.2 GB that a process takes, most of it libraries. Takes 6 minutes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.images import Size, fashion, folder_for, linked
from jobs.bench.processes import PROC, family
from jobs.bench.speeds import extract_command, finished, running
from jobs.figures import Row
from models.backbones import BackboneConfig
from models.errors import ShoalError
from pipeline.progress import Progress

SIZE = Size(shards=40, images=2_000)
TIMES = 4
BACKBONE = BackboneConfig(name="pixels", size=16, grey=True)
_PAUSE_S = 0.2


@dataclass(frozen=True)
class Peak:
    """Most resident memory that they had."""

    driver_bytes: int  # the command's own process
    worker_bytes: int  # the largest of Ray's workers


def run(data: Path | None, on_progress: Progress, size: Size = SIZE) -> Result:
    """`data`: a folder where images are made and kept. Raises ShoalError where a process fails, or without /proc."""
    if not PROC.is_dir():
        raise ShoalError(f"Memory is read from {PROC}, which this system has not; run this benchmark on Linux.")
    peaks: dict[int, Peak] = {}
    with folder_for(data) as folder, tempfile.TemporaryDirectory(prefix="shoal-bench-") as scratch:
        shards = fashion(folder, size)
        for times in (1, TIMES):
            on_progress("bench, extract", len(peaks), 2)
            links = linked(shards, Path(scratch, f"shards-{times}"), times)
            peaks[times] = _extract(links, f"{scratch}/table-{times}")
    once, more = peaks[1], peaks[TIMES]
    bars = [
        Bar("times the peak, driver", more.driver_bytes / once.driver_bytes, most=1.1),
        Bar("times the peak, largest worker", more.worker_bytes / once.worker_bytes, most=1.1),
    ]
    rows: list[Row] = [
        {"shards": times * size.shards, "images": times * size.total, **asdict(peak)} for times, peak in peaks.items()
    ]
    return judged("extract-memory", bars, {"times_the_shards": TIMES}, {"peaks": rows})


def _extract(shards: Sequence[str], table: str) -> Peak:
    driver = worker = 0
    with running(extract_command(shards, table, BACKBONE)) as process:
        while process.poll() is None:
            for each in family(process.pid):
                if each.pid == process.pid:
                    driver = max(driver, each.peak_bytes)
                elif each.is_worker:
                    worker = max(worker, each.peak_bytes)
            time.sleep(_PAUSE_S)
        finished(process)
    return Peak(driver, worker)
