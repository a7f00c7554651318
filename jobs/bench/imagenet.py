"""Benchmark `dpm-imagenet`: as many rows and classes as ImageNet has, 1,281,167 x 128, 1,000 generated Gaussians.

Bars, on 2 cores, no K given: at most 12 minutes, peak memory at most 4 GiB, K within 5 %, NMI at least .97. The rows
are generated into a memory-mapped file first, and the fit has a process of its own, so that the memory is its alone.
Takes about 15 minutes, and 0.7 GB of temporary files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.bars import Bar, Result, judged
from jobs.bench.data import refuse
from models.errors import ShoalError
from pipeline.evaluate.generated import LABELS_FILE, Components
from pipeline.evaluate.metrics import score_labels
from pipeline.progress import Progress

LAW = Components(rows=1_281_167, dim=128, clusters=1_000, spread=1.2)
FOUND_FILE = "found.npy"


def run(data: Path | None, on_progress: Progress, law: Components = LAW, threads: int = 2) -> Result:
    """Raises ShoalError where data are given, or where a process fails."""
    refuse(data)
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as name:
        on_progress("bench, generate", 0, 2)
        _process("generate", name, json.dumps(asdict(law)))
        on_progress("bench, fit", 1, 2)
        measured = json.loads(_process("fit", name, str(threads), str(law.seed)).splitlines()[-1])
        true_N, found_N = (np.load(Path(name) / file, allow_pickle=False) for file in (LABELS_FILE, FOUND_FILE))
    scores, clusters = score_labels(true_N, found_N), len(np.unique(found_N))
    bars = [
        Bar("wall_seconds", measured["wall_seconds"], most=12 * 60),
        Bar("peak_gib", measured["peak_gib"], most=4),
        Bar("clusters, relative error", abs(clusters / law.clusters - 1), most=0.05),
        Bar("nmi", scores.nmi or 0.0, least=0.97),
    ]
    values: dict[str, Any] = {"rows": law.rows, "dimension": law.dim, "true_clusters": law.clusters}
    values |= {"clusters": clusters, "nmi": scores.nmi, "ari": scores.ari, "acc": scores.acc, **measured}
    return judged("dpm-imagenet", bars, values, {})


def _process(step: str, *arguments: str) -> str:
    """What `jobs.bench.one` printed; its errors go where this process's go."""
    done = subprocess.run(
        [sys.executable, "-m", "jobs.bench.one", step, *arguments], stdout=subprocess.PIPE, check=False, text=True
    )
    if done.returncode != 0:
        raise ShoalError(
            f"The process that should {step} ended with {done.returncode} instead of 0 (-9: out of memory); "
            "its message is above, and 6 GB of memory and 2 GB of temporary files should do."
        )
    return done.stdout
