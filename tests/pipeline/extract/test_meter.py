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
from pipeline.tables.collection import Collection


def exported() -> dict[str, float]:
    """Our metrics, summed over workers, by name and the one tag that each may have."""
    sums: dict[str, float] = {}
    for node in ray.nodes():  # type: ignore[no-untyped-call]
        port = node["MetricsExportPort"]
        with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for name, tags, value in re.findall(r"^ray_(shoal_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            tag = re.search(r'(?:reason|stage|outcome)="(\w+)"', tags)
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
