"""Benchmarks: a table, and last one JSON line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from jobs.bench.registry import BENCHMARKS, Result, json_line
from jobs.cli import app
from jobs.figures import Figures


def test_the_line_has_its_six_parts() -> None:
    benchmark = BENCHMARKS["demo"]
    result = Result(0.9, True, Figures("bench demo", {"clusters": 10}, {"scores": [{"nmi": float("nan")}]}))
    assert json.loads(json_line(benchmark, result)) == {
        "bench": "demo",
        "bar": benchmark.bar,
        "value": 0.9,
        "holds": True,
        "figures": {"clusters": 10, "scores": [{"nmi": None}]},
    }


def test_dpm_mnist_measures_both_sides_and_misses_its_bar_on_noise(tmp_path: Path) -> None:
    """Labels that say nothing of the rows: the run works, the NMI is near 0, and the command says so."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", embedding=rng.normal(size=(300, 2)).astype(np.float32), label=np.arange(300) % 3)
    result = CliRunner().invoke(app, ["bench", "dpm-mnist", "--data", str(tmp_path / "x.npz")])
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("dpm-mnist misses its bar (NMI >= 0.94, the mean of 5 seeds): it reached 0")
    line = json.loads(result.stdout.splitlines()[-1])
    assert (line["bench"], line["holds"]) == ("dpm-mnist", False)
    fits = line["figures"]["fits"]
    assert [(fit["side"], fit["seed"]) for fit in fits] == [(side, s) for side in ("dpm", "kmeans") for s in range(5)]
    assert {fit["clusters"] for fit in fits if fit["side"] == "kmeans"} == {3}
    means = {side["side"]: side for side in line["figures"]["sides"]}
    assert abs(means["dpm"]["nmi"] - np.mean([fit["nmi"] for fit in fits if fit["side"] == "dpm"])) < 1e-12
    assert line["value"] == means["dpm"]["nmi"]


def test_dpm_mnist_needs_the_arrays_by_their_names(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 2)))
    result = CliRunner().invoke(app, ["bench", "dpm-mnist", "--data", str(tmp_path / "x.npz")])
    assert result.exit_code == 2
    assert "is no .npz file with arrays `embedding` and `label`" in result.stderr
    assert result.stderr.count("\n") == 1
