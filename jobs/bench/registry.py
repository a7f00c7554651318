"""The only list of benchmarks, and what each leaves behind: a table, and one JSON line."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from jobs.bench.bars import Result
from jobs.figures import Figures
from models.errors import ShoalError
from pipeline.progress import Progress


@dataclass(frozen=True)
class Benchmark:
    """A comparison by name, and the bar that it must clear."""

    name: str
    compares: str
    bar: str
    run: Callable[[Path | None, Progress], Result]  # data (None for its usual place), listener


def _later(function: str, **options: Any) -> Callable[[Path | None, Progress], Result]:
    """`module.function` of this package, which is imported when the benchmark is run, so that listing stays quick."""
    module, _, name = function.partition(".")

    def run(data: Path | None, on_progress: Progress) -> Result:
        result: Result = getattr(import_module(f"jobs.bench.{module}"), name)(data, on_progress, **options)
        return result

    return run


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "demo",
            "the DPM, which finds K, against k-means given K, on scikit-learn's digits through the whole job",
            "NMI >= 0.88 at 9 <= K <= 13",
            _later("demo.run"),
        ),
        Benchmark(
            "dpm-mnist",
            "the DPM, which finds K, against k-means given K, on 10-d embeddings of MNIST (N2D), 5 seeds",
            "mean NMI >= 0.94, ARI >= 0.95, ACC >= 0.97, 9 <= every K <= 12; CPU s <= 15, <= 1.5 at a given prior",
            _later("n2d.mnist"),
        ),
        Benchmark(
            "dpm-fashion",
            "likewise on embeddings of Fashion-MNIST",
            "mean NMI >= 0.68, ARI >= 0.51, ACC >= 0.62, 9 <= every K <= 13",
            _later("n2d.fashion"),
        ),
        Benchmark(
            "deepdpm-mnist",
            "DeepDPM against the DPM and k-means given K on embeddings of MNIST, 5 seeds",
            "mean NMI, ARI and ACC within 0.01 of the DPM's; CPU s <= 60",
            _later("n2d.deepdpm"),
        ),
        Benchmark(
            "dpm-components",
            "the DPM against k-means given K on 250 Gaussians in 32 dimensions, spread 1.2, one seed",
            "NMI >= 0.985, K within 3 %",
            _later("components.clear"),
        ),
        Benchmark(
            "dpm-components-5",
            "likewise, 5 seeds",
            "mean NMI >= 0.985, every K within 3 %",
            _later("components.clear", seeds=5),
        ),
        Benchmark(
            "dpm-components-hard",
            "likewise at spread 0.55, where means overlap, one seed",
            "NMI >= 0.80",
            _later("components.hard"),
        ),
        Benchmark(
            "dpm-components-hard-5",
            "likewise at spread 0.55, 5 seeds",
            "mean NMI >= 0.80",
            _later("components.hard", seeds=5),
        ),
        Benchmark(
            "dpm-imbalanced",
            "the DPM against scikit-learn's k-means given K (n_init 10), MNIST and Fashion-MNIST with unequal classes",
            "mean NMI of 5 seeds no more than 0.005 below k-means, on each",
            _later("imbalanced.run"),
        ),
        Benchmark(
            "dpm-workers",
            "one worker against two of Ray Train on the same rows",
            "equal labels; time of one >= 1.6 times that of two",
            _later("workers.run"),
        ),
        Benchmark(
            "dpm-vs-bgm",
            "the DPM against scikit-learn's BayesianGaussianMixture (30 components, full) on embeddings of MNIST",
            "10 times less CPU, NMI no worse",
            _later("bgm.run"),
        ),
        Benchmark(
            "dpm-imagenet",
            "the DPM on 1,281,167 x 128 generated rows of 1,000 Gaussians",
            "<= 12 minutes on 2 cores, peak memory <= 4 GiB, K within 5 %, NMI >= 0.97",
            _later("imagenet.run"),
        ),
        Benchmark(
            "dpm-growth",
            "the DPM on generated rows against itself on twice the rows, and on twice the clusters",
            "<= 2.2 times the CPU for twice the rows, <= 1.5 for twice the clusters",
            _later("growth.run"),
        ),
        Benchmark(
            "extract",
            "shoal extract against bare processes, one per core, on PNGs and JPEGs, EfficientNet-Lite0 and ResNet-18",
            "images/s >= 0.95 of the bare processes' on each of the four; start-up <= 8 s",
            _later("extract.run"),
        ),
        Benchmark(
            "extract-dataloader",
            "shoal extract against a tuned script of torch's DataLoader and webdataset, on JPEGs",
            "images/s >= 1.0 of the script's in fp32; >= 1.3 in bf16 against the script in fp32",
            _later("extract_dataloader.run"),
        ),
        Benchmark(
            "extract-dataloader-fashion",
            "likewise on Fashion-MNIST as PNGs",
            "the same",
            _later("extract_dataloader.run", images="fashion"),
        ),
        Benchmark(
            "extract-kills",
            "shoal extract killed 20 times and resumed by the same command against one left in peace",
            "the same set of rows, every sample exactly once",
            _later("extract_kills.run"),
        ),
        Benchmark(
            "extract-memory",
            "the peak memory of shoal extract on four times the shards against once",
            "<= 1.1 times, of the driver and of the largest worker",
            _later("extract_memory.run"),
        ),
        Benchmark(
            "swav-step",
            "a training step of shoal's SwAV against one of lightly's: the same network, crops and batch, in memory",
            "images/s >= 1.05 times lightly's, in fp32 and in bf16; bf16 >= 1.5 times shoal's fp32",
            _later("swav_step.run"),
        ),
        Benchmark(
            "swav-data",
            "shoal train as it reads Fashion-MNIST from shards against the same steps on batches in memory",
            "images/s >= 0.9 times, once images are kept in memory",
            _later("swav_data.run"),
        ),
        Benchmark(
            "swav-fashion",
            "a small ConvNet trained by SwAV against itself untrained and raw pixels, on Fashion-MNIST",
            "k-NN >= 0.835, linear >= 0.875, k-means NMI >= 0.63 and ACC >= 0.64; training <= 20 minutes on 2 cores",
            _later("swav_fashion.run"),
        ),
        Benchmark(
            "recluster",
            "shoal recluster after 1 % more rows against a full refit, 10^6 x 64 generated rows of 500 Gaussians",
            "CPU <= 0.03 and bytes read <= 0.02 of the refit's; <= 0.10 with births among 5 of 500, which are found",
            _later("recluster.run"),
        ),
        Benchmark(
            "recluster-stream",
            "increments against the truth, a full refit and one pass: MNIST with two unseen digits, drifting clusters",
            "both digits found, ids kept by >= 0.995, NMI within 0.01; events as generated; statistics to 1e-9",
            _later("recluster_stream.run"),
        ),
        Benchmark(
            "recluster-kills",
            "shoal recluster killed 20 times over ten increments and run again against the same left in peace",
            "every generation holds together after every kill; the same rows, clusters and events in the end",
            _later("recluster_kills.run"),
        ),
        Benchmark(
            "submit",
            "a head of Ray started on loopback and the demo submitted to it, until the job's first line is seen",
            "median of 3 <= 15 s",
            _later("submit.run"),
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
        "bars": figures.pop("bars", []),
        "figures": figures,
    }
    return json.dumps(line, ensure_ascii=False, allow_nan=False)
