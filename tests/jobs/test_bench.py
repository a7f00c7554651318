"""Benchmarks: every one of them on a few rows, with real fits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from jobs.bench import bgm, components, growth, imagenet, imbalanced, n2d, workers
from jobs.bench.bars import Result
from jobs.bench.data import FASHION, MNIST
from jobs.bench.registry import BENCHMARKS, find
from jobs.bench.sides import Data, Measured, Side, compare, mean, tables, timed
from jobs.cli import app
from models.errors import ShoalError
from models.registry import ALGORITHMS
from pipeline.cluster.fit import Fit
from pipeline.evaluate.baselines import Baseline
from pipeline.evaluate.generated import Components
from pipeline.progress import silent

LAW = Components(rows=600, dim=2, clusters=4, spread=30.0)


@pytest.fixture
def embeddings(tmp_path: Path) -> Path:
    """A folder of both files: four classes, far apart."""
    x_ND, label_N = LAW.draw()
    for name in (MNIST, FASHION):
        np.savez(tmp_path / name, embedding=x_ND, label=label_N)
    return tmp_path


def named(result: Result) -> dict[str, tuple[float, bool]]:
    return {bar.name: (bar.value, bar.holds) for bar in result.bars}


def test_dpm_mnist_says_which_bars_hold(embeddings: Path) -> None:
    """Four classes found exactly: scores are 1 and hold, four clusters are fewer than the nine of the bar."""
    result = n2d.mnist(embeddings / MNIST, silent, seeds=2)
    bars = named(result)
    assert bars["nmi"] == bars["ari"] == bars["acc"] == (1.0, True)
    assert bars["clusters, each seed"] == (4.0, False)
    assert bars["cpu_seconds, prior given"][0] > 0
    assert not result.holds
    fits = result.figures.tables["fits"]
    sides = ["dpm", n2d.GIVEN, "kmeans"]
    assert [(fit["side"], fit["seed"]) for fit in fits] == [(side, seed) for seed in range(2) for side in sides]
    assert [bar["holds"] for bar in result.figures.tables["bars"]] == [bar.holds for bar in result.bars]


def test_dpm_fashion_has_no_bar_for_time(embeddings: Path) -> None:
    assert list(named(n2d.fashion(embeddings / FASHION, silent, seeds=1))) == [
        "nmi",
        "ari",
        "acc",
        "clusters, each seed",
    ]


def test_components_are_other_rows_for_every_seed() -> None:
    result = components.clear(None, silent, seeds=2, law=LAW)
    assert named(result)["nmi"] == (1.0, True)
    assert named(result)["clusters, largest relative error"] == (0.0, True)
    assert result.holds
    assert list(named(components.hard(None, silent, seeds=1, law=LAW))) == ["nmi"]


def test_imbalanced_takes_one_file_or_a_folder_of_both(embeddings: Path) -> None:
    result = imbalanced.run(embeddings, silent, seeds=1)
    assert list(named(result)) == ["nmi above kmeans, mnist_n2d", "nmi above kmeans, fashion_mnist_n2d"]
    assert result.holds
    assert len(imbalanced.run(embeddings / MNIST, silent, seeds=1).bars) == 1


def test_bgm_is_measured_beside_the_dpm(embeddings: Path) -> None:
    result = bgm.run(embeddings / MNIST, silent, components=6)
    seconds = {side["side"]: float(str(side["cpu_seconds"])) for side in result.figures.tables["sides"]}
    assert named(result)["times less CPU"][0] == seconds["scikit-learn bgm"] / seconds["dpm"]
    assert named(result)["nmi above bgm's"][0] >= 0


def test_growth_compares_with_twice_the_rows_and_twice_the_clusters() -> None:
    result = growth.run(None, silent, seeds=1, law=LAW)
    fits = result.figures.tables["fits"]
    assert [fit["side"] for fit in fits] == ["one", "twice the rows", "twice the clusters"]
    assert fits[0]["clusters"] == fits[1]["clusters"] == 4 < int(str(fits[2]["clusters"]))
    ratio = float(str(fits[1]["cpu_seconds"])) / float(str(fits[0]["cpu_seconds"]))
    assert named(result)["times for twice the rows"][0] == ratio


@pytest.mark.slow
def test_the_fit_of_imagenets_size_has_a_process_of_its_own() -> None:
    result = imagenet.run(None, silent, law=replace(LAW, seed=1), threads=1)
    bars = named(result)
    assert bars["nmi"] == (1.0, True)
    assert bars["clusters, relative error"] == (0.0, True)
    assert 0.05 < bars["peak_gib"][0] < 4
    assert bars["wall_seconds"][0] > 0


def test_a_process_that_fails_is_said_to_have_failed() -> None:
    with pytest.raises(ShoalError, match="process that should generate ended with 1 instead of 0"):
        imagenet.run(None, silent, law=replace(LAW, clusters=0))


def test_workers_are_compared_by_the_time_that_their_fits_recorded() -> None:
    """One worker twice: starting Ray takes as long as all other tests here."""
    if "seconds" not in Fit.__dataclass_fields__:
        with pytest.raises(ShoalError, match="do not record the time of their passes"):
            workers.run(None, silent, law=LAW, workers=(1, 1))
        return
    result = workers.run(None, silent, law=LAW, workers=(1, 1))
    bars, fits = named(result), result.figures.tables["fits"]
    assert bars["ari between them"] == (1.0, True)
    assert bars["rows labelled otherwise"] == (0.0, True)
    assert bars["efficiency"][0] == float(str(fits[0]["seconds"])) / float(str(fits[1]["seconds"]))
    assert (fits[0]["clusters"], fits[0]["nmi"]) == (4, 1.0)


@pytest.mark.slow
def test_deepdpm_is_compared_with_the_dpm(embeddings: Path) -> None:
    if "deepdpm" not in ALGORITHMS:
        with pytest.raises(ShoalError, match="no algorithm 'deepdpm' to measure"):
            n2d.deepdpm(embeddings / MNIST, silent, seeds=1)
        return
    result = n2d.deepdpm(embeddings / MNIST, silent, seeds=1)
    fits = result.figures.tables["fits"]
    assert [fit["side"] for fit in fits] == ["deepdpm", "dpm", "kmeans"]
    apart = abs(float(str(fits[0]["nmi"])) - float(str(fits[1]["nmi"])))
    assert named(result)["nmi, distance from the dpm's"] == (apart, apart <= 0.01)
    assert list(named(result))[-1] == "cpu_seconds"


def test_efficiency_is_one_where_two_workers_take_half_the_time() -> None:
    assert workers.efficiency((10.0, 5.0), (1, 2)) == 1.0
    assert workers.efficiency((10.0, 6.25), (1, 2)) == 0.8


def test_means_are_over_the_fits_of_a_side() -> None:
    def fit(side: str, seed: int, nmi: float) -> Measured:
        return Measured(side, seed, 3, nmi, nmi, nmi, 5, True, 1.0, 2.0)

    fits = [fit("a", 0, 0.5), fit("b", 0, 0.1), fit("a", 1, 0.7)]
    assert mean(fits, "a", "nmi") == pytest.approx(0.6)
    first, second = tables(fits)["sides"]
    assert (first["side"], first["nmi_deviation"], second["nmi"]) == ("a", pytest.approx(0.1), 0.1)


def test_a_side_is_warmed_up_once_and_every_draw_is_labelled_by_every_side() -> None:
    calls: list[tuple[str, int, int]] = []

    def side(name: str) -> Side:
        def label(x_ND: np.ndarray, seed: int) -> Baseline:
            calls.append((name, seed, len(x_ND)))
            return Baseline(np.zeros(len(x_ND), np.int64), 1, True)

        return Side(name, label)

    data = Data(np.zeros((1_500, 2), np.float32), np.arange(1_500) % 2)
    compare([side("a"), side("b")], [(0, data), (1, data)], silent)
    assert calls == [
        *(("a", 0, 1_000), ("a", 0, 1_500), ("b", 0, 1_000), ("b", 0, 1_500)),
        *(("a", 1, 1_500), ("b", 1, 1_500)),
    ]


def test_time_is_of_the_block() -> None:
    with timed() as clock:
        sum(range(200_000))
    assert clock.wall_seconds > 0
    assert clock.cpu_seconds > 0


@pytest.mark.parametrize("name", ["dpm-components", "dpm-components-hard", "dpm-workers", "dpm-imagenet", "dpm-growth"])
def test_generated_rows_need_no_data(name: str) -> None:
    with pytest.raises(ShoalError, match=r"--data x\.npz has no use here"):
        find(name).run(Path("x.npz"), silent)


def test_every_benchmark_is_one_that_exists() -> None:
    """Names lead to functions: what is not there (data, a peer) is asked for or refused, nothing else happens."""
    for name in BENCHMARKS:
        with pytest.raises(
            ShoalError, match=r"There is no (data at|lightly here)|has no use here|no algorithm 'deepdpm'"
        ):
            find(name).run(Path("/nowhere.npz"), silent)


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(ShoalError, match="There is no benchmark 'dpm-fasion'; the nearest is 'dpm-fashion'"):
        find("dpm-fasion")


def test_the_command_prints_one_line_and_misses_its_bar_on_noise(tmp_path: Path) -> None:
    """Labels that say nothing of the rows: the run works, the NMI is near 0, and the command says so."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", embedding=rng.normal(size=(300, 2)).astype(np.float32), label=np.arange(300) % 3)
    result = CliRunner().invoke(app, ["bench", "dpm-fashion", "--data", str(tmp_path / "x.npz")])
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("dpm-fashion misses its bar (mean NMI >= 0.68")
    line = json.loads(result.stdout.splitlines()[-1])
    assert (line["bench"], line["holds"], line["value"]) == ("dpm-fashion", False, line["bars"][0]["value"])
    assert [bar["name"] for bar in line["bars"]] == ["nmi", "ari", "acc", "clusters, each seed"]
    means = {side["side"]: side for side in line["figures"]["sides"]}
    assert line["value"] == means["dpm"]["nmi"]


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": np.zeros((3, 2))}, "is no .npz file with arrays `embedding` and `label`"),
        ({"embedding": np.zeros((3, 2)), "label": np.zeros(2)}, "has `embedding` (3, 2) and `label` (2,)"),
    ],
)
def test_a_file_needs_both_arrays_and_a_label_per_row(
    tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    result = CliRunner().invoke(app, ["bench", "dpm-mnist", "--data", str(tmp_path / "x.npz")])
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
