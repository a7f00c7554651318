"""Small shards whose embeddings can be told by hand: images of one grey level each."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.backbones import BackboneConfig, load_backbone
from pipeline.extract.pool import Pool
from pipeline.extract.shard import Job, table_properties
from pipeline.ingest.decode import decode
from pipeline.tables.collection import Collection

PIXELS = BackboneConfig(name="pixels", size=8)


def grey_png(level: int, side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (level, level, level)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> str:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture(scope="session")
def png() -> Callable[..., bytes]:
    """A square of one grey level."""
    return grey_png


@pytest.fixture(scope="session")
def tar() -> Callable[..., str]:
    """Writes (name, data) pairs as a shard; returns its path."""
    return write_tar


@pytest.fixture(scope="session")
def pixels() -> BackboneConfig:
    return PIXELS


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A job on a new table: pixels, batches of 4, one thread each."""

    def make(backbone: BackboneConfig = PIXELS, **settings: object) -> Job:
        loaded = load_backbone(backbone)
        options = {"decoder": decode, "decoding": {}, "max_member_bytes": 2**20, "batch_size": 4} | settings
        return Job(
            table=Collection.create(tmp_path / "table").create_samples(table_properties(loaded)),
            backbone=backbone,
            pixels=loaded.pixels,
            pool=Pool(1, 1, 0, 1, 1),
            **{"rows_per_file": 1000, "ahead_bytes": 2**20, **options},  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def torch_threads() -> Iterable[None]:
    """Workers set torch's number of threads; put it back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
