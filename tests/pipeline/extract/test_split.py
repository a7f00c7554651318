"""Decoding in tasks of its own: the same rows, whatever dies."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from torch import Tensor

from models.backbones import BackboneConfig
from pipeline.extract.config import ExtractConfig
from pipeline.extract.extract import extract
from pipeline.ingest.decode import decode
from pipeline.tables.collection import Collection

pytestmark = pytest.mark.usefixtures("ray_session")
SPLIT = ExtractConfig(layout="split", actors=1, streams=2, batch_size=4, ahead_bytes=2**20)


def rows(table: Collection) -> list[dict[str, object]]:
    return [row for file in table.samples.files() for row in table.samples.read(file).to_pylist()]


@pytest.mark.slow
def test_both_layouts_make_the_same_table(
    tar: Callable[..., str], png: Callable[..., bytes], pixels: BackboneConfig, tmp_path: Path
) -> None:
    images = [(f"{i:02}.png", png(i)[: 30 if i == 7 else None]) for i in range(21)]
    shards = [tar(tmp_path / f"{s}.tar", images[s:]) for s in range(3)]
    split, fused = (Collection.create(tmp_path / name) for name in ("split", "fused"))
    summary = extract(shards, split, pixels, SPLIT)
    extract(shards, fused, pixels, SPLIT.model_copy(update={"layout": "fused"}))
    assert rows(split) == rows(fused)
    assert summary.rejects == {"truncated_image": 3}
    assert split.samples.rejects().equals(fused.samples.rejects())
    assert summary.stage_seconds["decode"] > 0  # told by the tasks


@pytest.mark.slow
def test_an_image_that_kills_its_task_is_a_reject_and_the_worker_lives(
    tar: Callable[..., str], png: Callable[..., bytes], pixels: BackboneConfig, tmp_path: Path
) -> None:
    deaths = tmp_path / "deaths"

    def decoder(image: bytes) -> Tensor:
        if image.endswith(b"KILL"):
            with deaths.open("a") as log:
                log.write("x")
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(image.removesuffix(b"KEEP"))

    images = [png(i) + b"KEEP" for i in range(12)]
    images[6] += b"KILL"
    bad = tar(tmp_path / "bad.tar", [(f"{i:02}.png", image) for i, image in enumerate(images)])
    good = tar(tmp_path / "good.tar", [("g.png", png(1))])
    gone = str(tmp_path / "gone.tar")
    table = Collection.create(tmp_path / "table")
    summary = extract([bad, good, gone], table, pixels, SPLIT, decoder)
    assert [row["key"] for row in rows(table)] == [f"{i:02}" for i in range(12) if i != 6] + ["g"]
    assert table.samples.rejects().select(["key", "reason"]).to_pylist() == [{"key": "06", "reason": "kills_decoder"}]
    assert deaths.read_text() == "xxx"
    assert list(summary.shards_failed) == [gone]
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert ray.available_resources()["CPU"] == 2  # every task has ended, and the worker
