"""What Prometheus would read, from the port that Ray serves it on."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from models.backbones import BackboneConfig
from pipeline.extract.config import ExtractConfig
from pipeline.extract.extract import extract
from pipeline.extract.meter import ROWS, tell_commit
from pipeline.extract.shard import ShardResult
from pipeline.ingest.shards import ShardSummary
from pipeline.metrics import Counter
from pipeline.tables.collection import Collection


def exported() -> dict[str, float]:
    """Our metrics, summed over workers, by name and the one tag that each may have."""
    sums: dict[str, float] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        port = node["MetricsExportPort"]
        with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for name, tags, value in re.findall(r"^ray_(shoal_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            tag = re.search(r'(?:reason|stage|outcome|status)="(\w+)"', tags)
            key = f"{name} {tag[1]}" if tag else name
            sums[key] = sums.get(key, 0.0) + float(value)
    return sums


def settled() -> dict[str, float]:
    """What is exported once earlier workers have told all they had."""
    deadline = time.monotonic() + 60
    while True:
        try:
            last = exported()
            break
        except OSError:  # Ray's agent is not up yet
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
    for _ in range(20):
        time.sleep(3)
        if (now := exported()) == last:
            return now
        last = now
    return last


def test_rows_of_a_commit_are_told_by_status_and_those_of_a_shard_that_failed_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[Counter, float, dict[str, str]]] = []
    monkeypatch.setattr(Counter, "add", lambda self, value, **labels: told.append((self, value, labels)))
    summary = ShardSummary("a", size=10, checksum="sha256:0", samples=3, rejects=2, ignored=0)
    tell_commit(
        [
            ShardResult("a", images=3, rejects={"empty_image": 1, "not_an_image": 1}, summary=summary),
            ShardResult("b", images=5, failure="it is gone"),
        ]
    )
    assert told == [(ROWS, 3, {"status": "ok"}), (ROWS, 2, {"status": "rejected"})]


@pytest.mark.slow
def test_images_rejects_bytes_and_stages_are_counted(
    ray_session: None, tar: Callable[..., str], png: Callable[..., bytes], pixels: BackboneConfig, tmp_path: Path
) -> None:
    members = [(f"{i:03}.png", b"" if i == 3 else png(i % 256)) for i in range(40)]
    shard = tar(tmp_path / "s.tar", members)
    before = settled()
    extract([shard], Collection.create(tmp_path / "table"), pixels, ExtractConfig(actors=1, batch_size=8))
    wanted = {
        "shoal_images_embedded_total": 39,
        "shoal_rejects_total empty_image": 1,
        "shoal_rows_committed_total ok": 39,
        "shoal_rows_committed_total rejected": 1,
        "shoal_shards_total extracted": 1,
        "shoal_shard_bytes_read_total": Path(shard).stat().st_size,
    }
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        seen = {name: exported().get(name, 0.0) - before.get(name, 0.0) for name in wanted}
        if seen == wanted:
            break
        time.sleep(1)
    assert seen == wanted
    assert exported()["shoal_stage_seconds_total forward"] > before.get("shoal_stage_seconds_total forward", 0.0)
