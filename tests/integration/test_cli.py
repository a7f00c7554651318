"""`shoal run` from a folder of images to a report, on a real Ray: what it leaves, skips, refuses and counts."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from jobs.cli import app
from pipeline.tables.collection import Collection

SETTINGS = (
    "backbone.name=pixels",
    "backbone.size=4",
    "backbone.grey=true",
    "cluster.reduce.kind=pca",
    "cluster.reduce.n_components=3",
    "shards.images_per_shard=25",
    "extract.actors=1",
)
EACH = 30  # images of each of three labels


def shoal(*arguments: str | Path) -> Result:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    command, *rest = map(str, arguments)
    return CliRunner().invoke(app, [command, *sets, *rest])


def shoal_plain(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def kept(output: Path) -> dict[str, Any]:
    """What must not change when a run has nothing left to do."""
    table = Collection.open(output)
    return {
        "samples": table.samples.version,
        "generations": {name: len(table.clustering(name).generations()) for name in table.clusterings()},
        "shards": {path.name: path.stat().st_mtime_ns for path in (output / "shards").glob("*.tar")},
        "artifacts": [path.name for path in table.artifacts.list()],
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety images of three labels: bright above, bright below, bright to the left; each with noise of its own."""
    source = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    halves = {"above": np.s_[:4, :], "below": np.s_[4:, :], "left": np.s_[:, :4]}
    for label, bright in halves.items():
        (source / label).mkdir()
        for index in range(EACH):
            pixels = rng.integers(0, 60, (8, 8))
            pixels[bright] += 180
            Image.fromarray(pixels.astype(np.uint8)).save(source / label / f"{index:02d}.png")
    return source


@pytest.fixture(scope="module")
def output(images: Path, tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = shoal("run", images, "--output", folder, "--json", folder.parent / "figures.json")
    assert result.exit_code == 0, result.output
    return folder


def test_a_run_finds_the_clusters_and_scores_them_beside_kmeans(output: Path) -> None:
    figures = json.loads((output.parent / "figures.json").read_text())
    assert {name: figures[name] for name in ("images", "rejects", "shards", "clusters", "nmi")} == {
        "images": 3 * EACH,
        "rejects": 0,
        "shards": 4,
        "clusters": 3,
        "nmi": 1.0,
    }
    assert [(row["clustering"], row["clusters"], row["acc"]) for row in figures["scores"]] == [
        ("dpm", 3, 1.0),
        ("kmeans", 3, 1.0),
    ]
    steps = [row["step"] for row in figures["seconds_by_step"]]
    assert steps == ["shards", "extract", "cluster", "baseline", "assign", "evaluate", "report"]
    assert json.loads((output / "metrics.json").read_text()) == figures
    assert "<html" in Path(figures["report"]).read_text()


def test_a_second_run_skips_what_is_done(images: Path, output: Path) -> None:
    before = kept(output)
    plan = shoal("run", images, "--output", output, "--dry-run")
    steps = plan.stdout.partition("steps\n")[2].partition("estimates\n")[0]
    states = {line.split()[0]: line for line in steps.splitlines()[1:]}
    for step in ("extract", "cluster", "baseline", "assign"):
        assert states[step].rstrip().endswith("done, skipped"), states[step]
    result = shoal("run", images, "--output", output)
    assert result.exit_code == 0, result.output
    assert kept(output) == before


def test_the_table_of_a_run_is_what_single_commands_work_on(output: Path) -> None:
    shown = shoal_plain("show", output)
    assert f"{output}/table" in shown.stdout
    assert shoal("cluster", output, "--dry-run").stdout.count("done, skipped") == 1


def test_images_that_changed_since_are_refused_and_nothing_is_touched(
    images: Path, output: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "images"
    shutil.copytree(images, changed)
    shutil.copy2(images / "left" / "00.png", changed / "left" / "new.png")
    before = kept(output)
    result = shoal("run", changed, "--output", output)
    assert result.exit_code == 2
    assert result.stderr.startswith("The images, or how they are packed, changed since")
    assert result.stderr.count("\n") == 1
    assert kept(output) == before


def test_settings_of_another_backbone_are_refused(images: Path, output: Path) -> None:
    before, config = kept(output), (output / "config.yaml").read_text()
    result = shoal("run", images, "--output", output, "--set", "backbone.size=5")
    assert result.exit_code == 2
    assert "dimension 16 against 25" in result.stderr
    assert result.stderr.count("\n") == 1
    assert (kept(output), (output / "config.yaml").read_text()) == (before, config)


@pytest.mark.slow
def test_shards_with_damage_are_counted_kept_and_fail_above_the_fraction(
    output: Path, tmp_path: Path, ray_session: None
) -> None:
    source = tmp_path / "shards"
    source.mkdir()
    good = sorted((output / "shards").glob("*.tar"))[0].read_bytes()
    (source / "a.tar").write_bytes(good)
    (source / "b.tar").write_bytes(b"<!DOCTYPE html><title>404</title>" * 100)
    (source / "c.tar").write_bytes(b"")
    result = shoal("run", source, "--output", tmp_path / "run", "--json", tmp_path / "figures.json")
    assert result.exit_code == 1
    assert result.stderr.startswith("2 of 27 samples were rejected (7.4%, more than the 5.0% of --max-reject-fraction)")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert (figures["images"], figures["rejects"]) == (25, 2)
    assert {row["reason"]: row["samples"] for row in figures["rejects_by_reason"]} == {"not_a_tar": 1, "empty_shard": 1}
    assert {Path(row["shard"]).name for row in figures["first_rejects"]} == {"b.tar", "c.tar"}
    assert Path(figures["report"]).exists()
    again = shoal("run", source, "--output", tmp_path / "run", "--max-reject-fraction", "0.1")
    assert again.exit_code == 0, again.output


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_the_same_command_continues(tmp_path: Path) -> None:
    """Ctrl-C once the shards are there, which is while Ray starts or embeds."""
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    command = [sys.executable, "-m", "jobs", "demo", *sets, "--output", str(tmp_path / "demo")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # A shell starts its background jobs with SIGINT ignored, and their children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **pipes, text=True, preexec_fn=heed) as process:  # noqa: PLW1509  # one thread here
        while not list(tmp_path.glob("demo/shards/*.tar")) and process.poll() is None:
            time.sleep(0.1)
        time.sleep(5)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr.splitlines()[-1].startswith("Interrupted; what was committed is kept, and the same command continues")
    assert "Traceback" not in stderr
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "1,797" in again.stdout


def test_an_unknown_backbone_is_refused_before_anything_is_packed(images: Path, tmp_path: Path) -> None:
    result = shoal_plain("run", images, "--output", tmp_path / "run", "--set", "backbone.name=torchvision/resnet19")
    assert result.exit_code == 2
    assert "nearest names: torchvision/resnet18" in result.stderr
    assert not (tmp_path / "run").exists()
