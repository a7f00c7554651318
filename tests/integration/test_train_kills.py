"""`shoal train` with two workers: one killed in mid-epoch, then the whole command; and the same run left alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.ingest.digits import digits
from pipeline.ingest.write import ShardConfig, write_samples
from pipeline.tables.artifacts import read_artifact
from pipeline.train.metrics import read_lines

EPOCHS, STEPS = 6, 15  # of 1,797 images in batches of 128
SETTINGS = {
    "backbone.name": "shoal/conv4_grey",
    "backbone.size": 16,
    "train.objective.hidden": 32,
    "train.objective.dim": 16,
    "train.objective.prototypes": 20,
    "train.objective.queue": 256,
    "train.objective.queue_start": 0,
    "train.views.policy": "digits",
    "train.views.base": 16,
    "train.images.lanes": 8,
    "train.loop.batch_size": 128,
    "train.loop.epochs": EPOCHS,
    "train.loop.optimizer": "sgd",
    "train.loop.lr": 0.1,
    "train.loop.log_every": 3,  # of 15, and at the end of an epoch
    "train.loop.checkpoint_minutes": 1e-6,  # so at every line of metrics
    "train.loop.keep": 1000,
}
BANKS = "[{size: 16, count: 2, area: [.5, 1]}, {size: 8, count: 2, area: [.2, .5]}]"


def command(shards: Path, output: Path, workers: int) -> list[str]:
    sets = {**SETTINGS, "train.views.banks": BANKS, "train.loop.workers": workers}
    options = [part for name, value in sets.items() for part in ("--set", f"{name}={value}")]
    return [sys.executable, "-m", "jobs", "train", str(shards), "--output", str(output), *options]


def steps_in(output: Path) -> list[int]:
    return [int(line["step"]) for line in read_lines(output) if "loss" in line]


def wait_for(output: Path, step: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not any(found >= step for found in saved(output)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def saved(output: Path) -> dict[int, int]:
    """When each checkpoint was written, by its step; all are kept."""
    manifests = (output / "checkpoints").glob("[0-9]*.json")
    return {int(path.stem): path.stat().st_mtime_ns for path in manifests}


def repeated(output: Path, before: dict[int, int]) -> int:
    """Intervals that were trained again: each ends in a checkpoint that is written a second time."""
    now = saved(output)
    return sum(now[step] != written for step, written in before.items())


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Ray Train's workers among the processes that this one began."""
    parent, title = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            title[int(folder.name)] = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parent[int(folder.name)] = int(stat[1])

    def ours(pid: int) -> bool:
        while pid in parent and pid != process.pid:
            pid = parent[pid]
        return pid == process.pid

    return [pid for pid, name in title.items() if name.startswith(b"ray::RayTrainWorker") and ours(pid)]


def tensors_of(output: Path) -> dict[str, torch.Tensor]:
    [folder] = (output / "artifacts").glob("backbone-*")
    return {name: torch.from_numpy(value.copy()) for name, value in read_artifact(folder).tensors.items()}


@pytest.mark.slow
def test_a_worker_and_then_the_driver_killed_in_mid_epoch_cost_two_intervals_at_most(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    write_samples(digits(), shards, ShardConfig(images_per_shard=300))
    killed, alone = tmp_path / "killed", tmp_path / "alone"
    with subprocess.Popen(command(shards, killed, 2), stdout=subprocess.PIPE, start_new_session=True) as first:
        wait_for(killed, STEPS + 5, first)
        before = workers_of(first)
        assert len(before) == 2
        os.kill(before[1], signal.SIGKILL)
        time.sleep(1.0)  # so that nothing of the old group is still being written
        at_death = saved(killed)
        wait_for(killed, 3 * STEPS + 5, first)  # by itself
        assert set(workers_of(first)).isdisjoint(before)
        assert repeated(killed, at_death) <= 2
        os.killpg(first.pid, signal.SIGKILL)
    at_death = saved(killed)
    assert max(at_death) < EPOCHS * STEPS
    json_path = tmp_path / "figures.json"
    subprocess.run([*command(shards, killed, 2), "--json", json_path], check=True, timeout=300)
    assert repeated(killed, at_death) <= 2
    figures: dict[str, Any] = json.loads(json_path.read_text())
    assert figures["steps"] == EPOCHS * STEPS
    subprocess.run(command(shards, alone, 2), check=True, timeout=300)
    assert steps_in(killed) == steps_in(alone)  # every line once
    for name, value in tensors_of(alone).items():
        assert torch.equal(tensors_of(killed)[name], value), name
