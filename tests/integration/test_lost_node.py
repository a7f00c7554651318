"""A cluster of three machines on one, in a process of its own, and a machine that goes away in mid-run."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from pipeline.tables.collection import Collection

SHARDS, IMAGES = 12, 40
PROGRAM = """
import json, os, sys, threading, time
os.environ["RAY_AUTH_MODE"] = "disabled"
from ray.cluster_utils import Cluster
from jobs.context import RayConfig, local_ray
from models.backbones import BackboneConfig
from pipeline.extract.config import ExtractConfig
from pipeline.extract.extract import extract
from pipeline.ingest.decode import decode
from pipeline.tables.collection import Collection

table, layout, *shards = sys.argv[1:]
memory = 200_000_000
head = {"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
nodes = [cluster.add_node(num_cpus=2, object_store_memory=memory) for _ in range(2)]
removed_at = []

def slow(image):  # so that the run is still going when the machine goes
    time.sleep(0.05)
    return decode(image)

def listen(step, done, total):
    if done >= 2 and not removed_at:
        removed_at.append(done)
        threading.Thread(target=cluster.remove_node, args=(nodes[1],), kwargs={"allow_graceful": False}).start()

with local_ray(RayConfig(address=cluster.address)):
    settings = {"layout": layout, "commit_shards": 1, "batch_size": 8, "actors": 3 if layout == "fused" else 1}
    config = ExtractConfig(**settings)
    summary = extract(shards, Collection.create(table), BackboneConfig(name="pixels", size=8), config, slow, listen)
print(json.dumps({"images": summary.images, "failed": summary.shards_failed, "removed_at": removed_at}))
cluster.shutdown()
"""


def shard(path: Path, number: int) -> str:
    with tarfile.open(path, "w") as tar:
        for i in range(IMAGES):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (number * 20, i, 0)).save(buffer, "PNG")
            info = tarfile.TarInfo(f"{number:02}-{i:03}.png")
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["fused", "split"])
def test_every_image_is_one_row_although_a_machine_was_lost(layout: str, tmp_path: Path) -> None:
    shards = [shard(tmp_path / f"{s:02}.tar", s) for s in range(SHARDS)]
    table = tmp_path / "table"
    program = [sys.executable, "-c", PROGRAM, str(table), layout, *shards]
    done = subprocess.run(program, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["failed"] == {}
    assert 2 <= said["removed_at"][0] < SHARDS  # the machine went while there was work left
    samples = Collection.open(table).samples
    keys = [key for file in samples.files() for key in samples.read(file)["key"].to_pylist()]
    assert sorted(keys) == [f"{s:02}-{i:03}" for s in range(SHARDS) for i in range(IMAGES)]
    assert samples.count("rejected") == 0
