"""The benchmarks of reclustering: what they count, and each of them on a few rows."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.bench import recluster, recluster_kills, recluster_stream
from jobs.bench.bars import Result
from jobs.bench.costs import cost_of
from jobs.bench.registry import find
from models.errors import ShoalError
from models.kmeans import KMeansConfig
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.evaluate.following import arrive, begun
from pipeline.evaluate.streams import Drift, Mixture, Unseen
from pipeline.progress import silent
from pipeline.tables.collection import Collection


def named(result: Result) -> dict[str, tuple[float, bool]]:
    return {bar.name: (bar.value, bar.holds) for bar in result.bars}


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_bytes_and_seconds_are_those_of_the_process_and_its_children() -> None:
    idle = cost_of(python("pass"))
    reading = "open('/dev/zero', 'rb', 0).read(3_000_000)"
    own = cost_of(python(reading))
    assert 3_000_000 <= own.bytes_read - idle.bytes_read < 3_010_000
    child = cost_of(python(f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', {reading!r}])"))
    assert child.bytes_read - idle.bytes_read > 3_000_000
    busy = cost_of(python("import time\nwhile time.process_time() < 0.3: pass"))
    assert 0.3 <= busy.cpu_seconds < 0.3 + 10 * idle.cpu_seconds
    assert busy.wall_seconds >= 0.25


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_command_that_fails_has_no_cost() -> None:
    with pytest.raises(ShoalError, match="ended with 3 instead of 0"):
        cost_of(python("raise SystemExit(3)"))


@pytest.mark.parametrize("name", ["recluster", "recluster-kills"])
def test_generated_benchmarks_take_no_data(name: str) -> None:
    with pytest.raises(ShoalError, match="has no use here"):
        find(name).run(Path("data.npz"), silent)


def test_digits_that_are_not_there_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="There is no data at"):
        find("recluster-stream").run(tmp_path / "none.npz", silent)


def test_tables_are_compared_generation_by_generation(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    mixture = Mixture.drawn(3, 2, 20.0, rng)
    one = begun(tmp_path / "one", 2)
    arrive(one, [mixture.draw(30, rng)])
    cluster(one, ClusterConfig(algorithm=KMeansConfig(clusters=3, restarts=1)), recluster_kills.NAME)
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    other = Collection.open(tmp_path / "other")
    assert recluster_kills.differences(one, other) == [[]]
    assert recluster_kills.verified(other) == [""]
    cluster(other, ClusterConfig(algorithm=KMeansConfig(clusters=2, restarts=1)), recluster_kills.NAME)
    assert recluster_kills.differences(one, other) == [[], ["is missing"]]
    cluster(one, ClusterConfig(algorithm=KMeansConfig(clusters=1, restarts=1)), recluster_kills.NAME)
    [same, different] = recluster_kills.differences(one, other)
    assert same == []
    assert {"artifact", "statistics", "clusters", "assignments"} <= set(different)


def test_a_stream_of_kills_has_births_files_that_go_and_a_refit() -> None:
    base, increments = recluster_kills.stream(recluster_kills.SIZE)
    assert sum(len(batch) for batch in base) == recluster_kills.SIZE.rows
    assert len(increments) == recluster_kills.SIZE.increments
    born = [max(each.batch.label_N) >= recluster_kills.SIZE.clusters for each in increments]
    assert born == [False] * 3 + [True] * 7
    assert sum(each.leaving for each in increments) == 2
    assert [each.options for each in increments if each.options] == [("--mode", "refit")]


def test_statistics_are_held_against_one_pass(tmp_path: Path) -> None:
    assert recluster_stream.fixed(tmp_path / "table", "kmeans", silent, rows=60, increments=3) <= 1e-9


def test_an_unseen_class_is_told_from_those_that_were_there(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = Mixture.drawn(5, 2, 60.0, rng).draw(1_500, rng)
    stream = Unseen(rows.x_ND, rows.label_N, unseen=(4,), increments=1, rows=100)
    outcome = recluster_stream.arrivals(tmp_path / "table", stream, silent)
    assert [bar.value for bar in outcome.bars] == [1.0, 1.0, 0.0]
    assert [row["increment"] for row in outcome.rows] == [1, 2, "refit"]
    assert outcome.values["unseen_classes_under_new_ids"] == 1


@pytest.mark.slow
def test_drifting_clusters_are_followed(tmp_path: Path) -> None:
    law = Drift(clusters=5, dim=3, increments=30, rows=300, window=6, meet=12, stop=10, step=0.1)
    outcome = recluster_stream.drifting(tmp_path / "table", law, silent)
    assert [bar.name for bar in outcome.bars if not bar.holds] == []
    assert len(outcome.rows) == 30


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(recluster_stream.FIXED))
def test_statistics_of_every_algorithm_equal_those_of_one_pass(tmp_path: Path, kind: str) -> None:
    assert recluster_stream.fixed(tmp_path / "table", kind, silent, rows=600) <= 1e-9


@pytest.mark.slow
def test_increments_are_measured_beside_a_refit() -> None:
    size = replace(
        recluster.SIZE, rows=8_000, dim=8, clusters=10, spread=8.0, file_rows=1_000, births=2, increment=0.05
    )
    result = recluster.run(None, silent, size)
    bars = named(result)
    assert bars["births found"] == (2.0, True)
    assert bars["new ids without a birth"] == (0.0, True)
    assert bars["ids lost"] == (0.0, True)
    steps = {str(row["step"]): row for row in result.figures.tables["steps"]}
    assert list(steps) == list(recluster.STEPS)
    assert steps[recluster.BIRTHS]["clusters"] == 12
    assert all(float(str(row["cpu_seconds"])) > 0 for row in steps.values())


@pytest.mark.slow
def test_killed_reclusters_end_as_those_in_peace() -> None:
    size = replace(recluster_kills.SIZE, clusters=4, rows=800, increment_rows=100, increments=3)
    result = recluster_kills.run(None, silent, size, kills=4)
    assert {name: held for name, (_, held) in named(result).items() if not held and name != "kills"} == {}
    assert len(result.figures.tables["kills"]) >= 2
    assert len(result.figures.tables["generations"]) == 4
