"""Extraction on a CUDA device: pinned batches, two shards at a time, half precision; compared with the CPU."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.backbones import BackboneConfig
from pipeline.extract.config import ExtractConfig
from pipeline.extract.extract import extract
from pipeline.tables.collection import Collection
from pipeline.tables.samples import embedding_matrix

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.usefixtures("ray_session"),
]
RESNET = BackboneConfig(name="torchvision/resnet18", weights="random", size=64)


def shard(path: Path, seed: int) -> str:
    rng = np.random.default_rng(seed)
    with tarfile.open(path, "w") as tar:
        for i in range(20):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
            info = tarfile.TarInfo(f"{i:02}.png")
            info.size = buffer.tell()
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    return str(path)


def embedded(table: Collection) -> np.ndarray:
    return np.concatenate([embedding_matrix(table.samples.read(file)) for file in table.samples.files()])


@pytest.mark.parametrize(
    ("layout", "precision", "tolerance"), [("fused", "fp32", 1e-3), ("fused", "fp16", 3e-2), ("split", "bf16", 8e-2)]
)
def test_a_gpu_embeds_as_a_cpu_does(layout: str, precision: str, tolerance: float, tmp_path: Path) -> None:
    shards = [shard(tmp_path / f"{seed}.tar", seed) for seed in range(4)]
    on_cpu, on_gpu = (Collection.create(tmp_path / name) for name in ("cpu", "gpu"))
    extract(shards, on_cpu, RESNET, ExtractConfig(gpus_per_actor=0, batch_size=8))
    backbone = RESNET.model_copy(update={"precision": precision})
    config = ExtractConfig.model_validate({"layout": layout, "gpus_per_actor": 1, "actors": 1, "batch_size": 8})
    summary = extract(shards, on_gpu, backbone, config)
    assert summary.images == 80
    expected_ND, found_ND = embedded(on_cpu), embedded(on_gpu)
    error_N = np.linalg.norm(found_ND - expected_ND, axis=1) / np.linalg.norm(expected_ND, axis=1)
    assert error_N.max() < tolerance
