"""Benchmark `demo`: the whole job on scikit-learn's digits; the DPM finds K, k-means beside it is given K."""

from __future__ import annotations

import tempfile
from pathlib import Path

from jobs.bench.registry import Result
from jobs.config import resolve
from jobs.demo import demo
from jobs.figures import Figures
from models.errors import ShoalError
from pipeline.progress import Progress

LEAST_NMI = 0.88
FEWEST, MOST = 9, 13  # clusters; the true number is 10


def run(data: Path | None, on_progress: Progress) -> Result:
    """Takes under 3 minutes on 2 cores."""
    if data is not None:
        raise ShoalError(f"--data {data} has no use here: the demo's digits come with scikit-learn.")
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        figures = demo(f"{folder}/demo", resolve(Path("digits"))).run(on_progress)
    values = {name: value for name, value in figures.values.items() if name not in ("table", "report")}
    nmi, clusters = values["nmi"], values["clusters"]
    if not isinstance(nmi, float) or not isinstance(clusters, int):
        raise ShoalError(f"The demo gave no NMI or no K ({nmi}, {clusters}); its labels are missing.")
    holds = nmi >= LEAST_NMI and FEWEST <= clusters <= MOST
    return Result(nmi, holds, Figures("bench demo", values, figures.tables))
