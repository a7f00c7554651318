"""The dashboard and the alerts on what a real Prometheus reads of a real Ray, while real commands run there."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from head import Head, free_port, head
from monitoring import FOLDER, OF_RAY, Expression, exported, shown, watched
from PIL import Image

RUN = "0123456789ab"
SCRAPE_S = 2
SETTLED_S = 25  # Ray's processes tell their figures every ten seconds, and the last ones when they end

NEEDS_GPU = {"ray_node_gpus_utilization"}
# What a small run that goes well need not have: GPUs, alerts, shards that are left or failed, and some kinds of moves.
# What they would show is in test_monitoring.py, by hand.
ON_DEMAND = {"CPUs and GPUs busy B", "Alerts", "Time left A", "Shards C", "Splits A", "Births and deaths B"}


@dataclass(frozen=True)
class Prometheus:
    """One that reads a head's nodes."""

    port: int

    def ask(self, path: str, **parameters: str | float) -> Any:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def series(self, expression: Expression, began: float, step: float = 5) -> list[dict[str, Any]]:
        """What a panel would draw."""
        result = self.ask("query_range", query=expression.text, start=began, end=time.time(), step=step)["result"]
        return [each for each in result if any(value != "NaN" for _, value in each["values"])]


@contextmanager
def prometheus(machine: Head, folder: Path) -> Iterator[Prometheus]:
    """With the project's configuration, which is read more often here."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": "5s"}
    config["rule_files"] = [str(FOLDER / "rules.yml")]
    found = config["scrape_configs"][0]["file_sd_configs"][0]
    found |= {"files": [str(machine.temp / "prom_metrics_service_discovery.json")], "refresh_interval": "2s"}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = ["prometheus", "--config.file", folder / "prometheus.yml", "--storage.tsdb.path", folder / "tsdb"]
    command += ["--web.listen-address", f"127.0.0.1:{port}", "--log.level", "warn"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield Prometheus(port)
    finally:
        process.terminate()
        process.wait(20)


def shoal(machine: Head, *words: str | Path) -> None:
    environment = {**machine.env, "RAY_ADDRESS": machine.address, "SHOAL_RUN_ID": RUN}
    command = [sys.executable, "-m", "jobs", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"


def troubled(folder: Path) -> Path:
    """Shards with a picture that is none, and one that is no shard at all."""
    folder.mkdir()
    with tarfile.open(folder / "some.tar", "w") as tar:
        for number in range(30):
            file = io.BytesIO()
            Image.new("L", (8, 8), 8 * number).save(file, "png")
            data = b"no picture" if number == 3 else file.getvalue()
            member = tarfile.TarInfo(f"{number:03}.png")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (folder / "none.tar").write_bytes(b"<html>" * 1000)
    return folder


TRAIN = {
    "loop.epochs": 3,
    "loop.log_every": 5,
    "objective.queue": 64,
    "objective.queue_start": 1,
}


def everything(machine: Head, folder: Path) -> None:
    """All that a dashboard can show, in miniature."""
    run, more = folder / "run", troubled(folder / "more")
    shoal(machine, "demo", "--output", run)
    options = [word for name, value in TRAIN.items() for word in ("--set", f"train.{name}={value}")]
    shoal(machine, "train", run / "shards", "--output", folder / "swav", "-c", "swav_digits_cpu", *options)
    shoal(machine, "extract", more, "--output", run / "table", "-c", "digits")
    shoal(machine, "recluster", run / "table", "-c", "digits")


@pytest.mark.slow
def test_every_panel_has_series_of_a_real_run(tmp_path: Path) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing, so the dashboard is NOT tried on real metrics; apt-get install prometheus")
    began = time.time()
    with head(tmp_path) as machine, prometheus(machine, tmp_path) as read:
        everything(machine, tmp_path)
        time.sleep(SETTLED_S)
        missing = [each.where for each in shown() if not read.series(each, began)]
        assert set(missing) <= ON_DEMAND
        named = {name for each in (*shown(), *watched()) for name in each.names if name.startswith("ray_")}
        there = set(read.ask("label/__name__/values", start=began))
        assert named - there <= NEEDS_GPU
        assert {name for name in there if name.startswith("ray_shoal_")} <= exported().keys()
        assert set(OF_RAY) - there <= NEEDS_GPU
        for metric in sorted(each for each in there if each.startswith("ray_shoal_")):
            runs = {each["run"] for each in read.ask("series", **{"match[]": metric}, start=began)}
            assert runs == {RUN}, metric
        health = {rule["name"]: rule["health"] for rule in read.ask("rules")["groups"][0]["rules"]}
        assert set(health.values()) == {"ok"}, health
        assert [each for each in read.ask("alerts")["alerts"] if each["state"] == "firing"] == []
        if (kept := os.environ.get("SHOAL_KEEP_SERIES")) is not None:  # to look at, by hand
            Path(kept).write_text(json.dumps({each.where: read.series(each, began) for each in shown()}))
