"""Benchmark `demo`: the whole job on scikit-learn's digits; the DPM finds K, k-means beside it is given K.

Bars: NMI at least 0.88, and 9 to 13 clusters where there are 10. Takes under 3 minutes on 2 cores.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from jobs.bench.bars import Bar, Result, judged
from jobs.config import resolve
from jobs.demo import demo
from models.errors import ShoalError
from pipeline.progress import Progress


def run(data: Path | None, on_progress: Progress) -> Result:
    """Raises ShoalError where data are given."""
    if data is not None:
        raise ShoalError(f"--data {data} has no use here: the demo's digits come with scikit-learn.")
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as folder:
        figures = demo(f"{folder}/demo", resolve(Path("digits"))).run(on_progress)
    values = {name: value for name, value in figures.values.items() if name not in ("table", "report")}
    nmi, clusters = values["nmi"], values["clusters"]
    if not isinstance(nmi, float) or not isinstance(clusters, int):
        raise ShoalError(f"The demo gave no NMI or no K ({nmi}, {clusters}); its labels are missing.")
    bars = [Bar("nmi", nmi, least=0.88), Bar("clusters", clusters, 9, 13)]
    return judged("demo", bars, values, figures.tables)
