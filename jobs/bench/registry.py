"""The only list of benchmarks, and what each leaves behind: a table, and one JSON line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from jobs.figures import Figures
from models.errors import ShoalError
from pipeline.progress import Progress


@dataclass(frozen=True)
class Result:
    """One run of a benchmark. `value` is what the bar is about; `figures` are all that was measured."""

    value: float
    holds: bool
    figures: Figures


@dataclass(frozen=True)
class Benchmark:
    """A comparison by name, and the bar that it must clear."""

    name: str
    compares: str
    bar: str
    run: Callable[[Path | None, Progress], Result]  # data (None for its usual place), listener


def _later(module: str) -> Callable[[Path | None, Progress], Result]:
    """The `run` of a module that is imported when the benchmark is, so that listing stays quick."""

    def run(data: Path | None, on_progress: Progress) -> Result:
        result: Result = import_module(module).run(data, on_progress)
        return result

    return run


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "demo",
            "the DPM, which finds K, against k-means given K, on scikit-learn's digits through the whole job",
            "NMI >= 0.88 at 9 <= K <= 13",
            _later("jobs.bench.demo"),
        ),
        Benchmark(
            "dpm-mnist",
            "the DPM, which finds K, against k-means given K, on 10-d embeddings of MNIST (N2D)",
            "NMI >= 0.94, the mean of 5 seeds",
            _later("jobs.bench.dpm_mnist"),
        ),
    )
}


def find(name: str) -> Benchmark:
    """The benchmark of that name; ShoalError names the nearest one."""
    if name in BENCHMARKS:
        return BENCHMARKS[name]
    near = difflib.get_close_matches(name, BENCHMARKS, n=1, cutoff=0.0)[0]
    raise ShoalError(f"There is no benchmark {name!r}; the nearest is {near!r}, and `shoal bench list` names them all.")


def listing() -> Figures:
    """All benchmarks."""
    rows = [{"name": each.name, "compares": each.compares, "bar": each.bar} for each in BENCHMARKS.values()]
    return Figures("bench list", {}, {"benchmarks": rows})


def json_line(benchmark: Benchmark, result: Result) -> str:
    """The last line of a run, for machines."""
    figures = {name: value for name, value in result.figures.document().items() if name != "command"}
    line = {
        "bench": benchmark.name,
        "bar": benchmark.bar,
        "value": result.value,
        "holds": result.holds,
        "figures": figures,
    }
    return json.dumps(line, ensure_ascii=False, allow_nan=False)
