"""Clusters of several machines on one, in a process of their own, which lose or gain a machine in mid-run."""

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
import glob, json, os, sys, threading, time
os.environ["RAY_AUTH_MODE"] = "disabled"
import ray
from ray.cluster_utils import Cluster
from jobs.context import RayConfig, local_ray
from models.backbones import BackboneConfig
from pipeline.extract.config import ExtractConfig
from pipeline.extract.extract import extract
from pipeline.ingest.decode import decode
from pipeline.tables.collection import Collection

table, layout, nodes, *shards = sys.argv[1:]
memory = 200_000_000
head = {"num_cpus": 1, "object_store_memory": memory, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
add = lambda: cluster.add_node(num_cpus=2, object_store_memory=memory)
others = [add() for _ in range(2)] if nodes == "removed" else []
changed_at, used = [], set()

def slow(image):  # so that the run is still going when machines come and go
    time.sleep(0.05)
    open(table + ".node." + ray.get_runtime_context().get_node_id(), "w").close()
    deadline = time.time() + 200
    while os.path.exists(table + ".adding") and len(glob.glob(table + ".node.*")) < 2 and time.time() < deadline:
        time.sleep(0.1)
    return decode(image)

def listen(step, done, total):
    main = threading.current_thread() is threading.main_thread()  # Ray sets signal handlers when it starts a machine
    if done < 2 or changed_at or not main:
        return
    changed_at.append(done)
    if nodes == "added":
        open(table + ".adding", "w").close()
        add()
    else:
        deadline = time.time() + 200
        while not os.path.exists(table + ".node." + others[1].node_id) and time.time() < deadline:
            time.sleep(0.1)  # a machine that has not worked yet is no loss
        cluster.remove_node(others[1], allow_graceful=False)

with local_ray(RayConfig(address=cluster.address)):
    settings = {"layout": layout, "commit_shards": 1, "batch_size": 8, "actors": 3 if layout == "fused" else 1}
    config = ExtractConfig(**settings, autoscale=nodes == "added")
    summary = extract(shards, Collection.create(table), BackboneConfig(name="pixels", size=8), config, slow, listen)
print(json.dumps({"images": summary.images, "failed": summary.shards_failed, "changed_at": changed_at}))
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


def run(tmp_path: Path, layout: str, nodes: str) -> int:
    """Extract on a cluster that changes in mid-run; returns the number of machines that decoded an image."""
    shards = [shard(tmp_path / f"{s:02}.tar", s) for s in range(SHARDS)]
    table = tmp_path / "table"
    program = [sys.executable, "-c", PROGRAM, str(table), layout, nodes, *shards]
    done = subprocess.run(program, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.strip().splitlines()[-1])
    assert said["failed"] == {}
    assert 2 <= said["changed_at"][0] < SHARDS  # while there was work left
    samples = Collection.open(table).samples
    keys = [key for file in samples.files() for key in samples.read(file)["key"].to_pylist()]
    assert sorted(keys) == [f"{s:02}-{i:03}" for s in range(SHARDS) for i in range(IMAGES)]
    assert samples.count("rejected") == 0
    return len(list(tmp_path.glob("table.node.*")))


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["fused", "split"])
def test_every_image_is_one_row_although_a_machine_was_lost(layout: str, tmp_path: Path) -> None:
    assert run(tmp_path, layout, "removed") >= 2  # one of them is the machine that was lost


@pytest.mark.slow
def test_a_machine_that_comes_later_gets_work(tmp_path: Path) -> None:
    assert run(tmp_path, "fused", "added") == 2
