"""`shoal run` that learns its backbone first: in one command, on a part of the images, killed in every step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import figures_of, shoal

from jobs.backbone import trained
from jobs.folder import RunFolder
from pipeline.ingest.digits import digits
from pipeline.ingest.write import ShardConfig, write_samples
from pipeline.tables.collection import Collection

TINY = """
backbone: {name: shoal/conv4_grey, size: 8}
collection: {images: 240, image_bytes: 110}
shards: {images_per_shard: 20}
learn: true
train:
  objective: {prototypes: 12, hidden: 16, dim: 8, freeze: 1}
  views: {policy: digits, base: 8, banks: [{size: 8, count: 2, area: [0.4, 1.0]}]}
  images: {lanes: 8}
  loop: {batch_size: 40, epochs: 4, workers: 4, gpus_per_worker: null, log_every: 1}
extract: {actors: 4}
cluster:
  reduce: {kind: pca, n_components: 4}
  algorithm: {kind: deepdpm}
  train: {epochs: 5}
"""
STEPS = ["shards", "train", "extract", "cluster", "baseline", "assign", "evaluate", "report"]
KILLED = ("shards", "index images", "train", "extract", "read embeddings", "fit", "map")  # fit: of k-means; map: report


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All digits, in eighteen shards."""
    folder = tmp_path_factory.mktemp("shards")
    write_samples(digits(), folder, ShardConfig(images_per_shard=100))
    return folder


def planned(folder: Path, *arguments: str | Path) -> list[str]:
    return [row["step"] for row in figures_of(folder, "run", *arguments, "--dry-run")["steps"]]


def test_a_given_backbone_is_not_learned(config: Path, shards: Path, tmp_path: Path) -> None:
    run = (shards, "--output", tmp_path / "run", "-c", config)
    assert planned(tmp_path, *run)[:2] == ["train", "extract"]
    assert "train" not in planned(tmp_path, *run, "--backbone", "pixels")
    assert planned(tmp_path, *run, "--set", "scale=0.25")[:3] == ["shards", "train", "extract"]
    assert not (tmp_path / "run").exists()


def test_too_many_workers_are_refused_before_anything_is_done(config: Path, shards: Path, tmp_path: Path) -> None:
    result = shoal(
        "run", shards, "--output", tmp_path / "run", "-c", config, "--set", "train.images.lanes=2", "--dry-run"
    )
    assert result.exit_code == 2 and "train.images.lanes to at least 4" in result.stderr


@pytest.mark.slow
def test_a_quarter_of_the_images_learns_embeds_and_clusters(
    config: Path, shards: Path, tmp_path: Path, ray_session: None
) -> None:
    run = ("run", shards, "--output", tmp_path / "run", "-c", config, "--set", "scale=0.25")
    found = figures_of(tmp_path, *run)
    assert (found["images"], found["backbone"], found["dimension"]) == (60, "shoal/conv4_grey", 256)
    assert [row["step"] for row in found["seconds_by_step"]] == STEPS
    learned = trained(str(tmp_path / "run" / "train"))
    table = Collection.open(tmp_path / "run")
    assert learned is not None and found["learned"][0]["backbone"] == learned
    assert found["learned"][0]["epochs"] == 1
    assert table.samples.properties.preprocessing["weights"] == "SwAV by shoal (1 epochs, 60 images)"
    plan = figures_of(tmp_path, *run, "--dry-run")
    states = {row["step"]: row["state"] for row in plan["steps"]}
    assert {states[step] for step in ("shards", "train", "extract", "cluster")} == {"done, skipped"}
    again = figures_of(tmp_path, *run)
    assert again["learned"][0]["skipped"] is True and again["nmi"] == found["nmi"]
    other = shoal(*run, "--set", "train.loop.lr=0.3")
    assert other.exit_code == 2 and "train.loop.lr" in other.stderr


@pytest.mark.slow
def test_a_table_of_another_backbone_is_refused_before_anything_is_learned(
    config: Path, shards: Path, tmp_path: Path, ray_session: None
) -> None:
    run = ("run", shards, "--output", tmp_path / "run", "-c", config, "--set", "scale=0.25")
    figures_of(tmp_path, *run, "--backbone", "pixels", "--set", "backbone.size=4")
    for extra in ((), ("--dry-run",)):
        result = shoal(*run, *extra)
        assert result.exit_code == 2 and "has embeddings already" in result.stderr
    assert not (tmp_path / "run" / "train").exists()


@pytest.mark.slow
def test_killed_in_every_step_the_same_command_comes_to_the_same_end(
    config: Path, shards: Path, tmp_path: Path
) -> None:
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    for step in KILLED:
        told = _told_until(step, config, shards, killed)
        assert told[-1].startswith(step), (step, told)
    written = {path: path.stat().st_mtime_ns for path in (killed / "train" / "artifacts").rglob("*") if path.is_file()}
    ends = [_ended(config, shards, output) for output in (killed, alone)]
    assert written == {path: path.stat().st_mtime_ns for path in written}  # learned once
    for name in ("images", "rejects", "clusters", "nmi", "ari", "acc"):
        assert ends[0][name] == ends[1][name], name
    digests = [
        Collection.open(RunFolder(str(each)).table).samples.properties.backbone_digest for each in (killed, alone)
    ]
    assert digests[0] == digests[1]


def _command(config: Path, shards: Path, output: Path) -> list[str]:
    sets = ("--set", "scale=0.25", "--set", "ray.num_cpus=2")
    words = ("run", shards, "--output", output, "-c", config, *sets)
    return [sys.executable, "-m", "jobs", *map(str, words)]


def _told_until(step: str, config: Path, shards: Path, output: Path) -> list[str]:
    """Run until the first word of a step, then SIGKILL the command and all that it began. What it told, last lines."""
    process = subprocess.Popen(
        _command(config, shards, output),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "SHOAL_LOG": "json"},
        start_new_session=True,
    )
    told = ["nothing"]
    try:
        for line in process.stderr or ():
            told = [*told[-9:], (json.loads(line).get("step") or line) if line.startswith("{") else line]
            if told[-1].startswith(step):
                break
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr:
            process.stderr.close()
    return told


def _ended(config: Path, shards: Path, output: Path) -> dict[str, Any]:
    done = subprocess.run(_command(config, shards, output), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return found
