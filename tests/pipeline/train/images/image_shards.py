"""Small shards of unlabelled images, some of them damaged, and a worker that needs no others."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.preprocessing import Preprocessing
from models.views_config import Bank, ViewsConfig
from pipeline.ingest.shards import list_shards
from pipeline.train.config import TrainConfig
from pipeline.train.images.config import ImagesConfig

BANKS = (Bank(size=12, count=2, area=(0.3, 1.0)), Bank(size=8, count=1, area=(0.1, 0.3)))
SMALL = ViewsConfig(policy="grey", banks=BANKS, base=16)
LARGE = ViewsConfig(policy="colour", banks=BANKS)
IMAGES = ImagesConfig(lanes=6, shuffle_rows=60)
PIXELS = Preprocessing(size=16, resize=16)
LOOP = TrainConfig(batch_size=16)


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Worker:
    """A place among workers that never speak to each other."""

    rank: int = 0
    size: int = 1
    leads_machine: bool = True
    device: torch.device = CPU

    def max(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors

    def sum_in_place(self, tensors: object) -> None: ...

    def share(self, payload: bytes) -> bytes:
        return payload

    def barrier(self) -> None: ...


@dataclass
class RowStats:
    """How many rows there were, and a sum over pixels that knows which row each belongs to."""

    count: Tensor
    total: Tensor

    @classmethod
    def of(cls, image_nCHW: Tensor, row_n: Tensor) -> RowStats:
        level_n = image_nCHW.double().sum(dim=(1, 2, 3))
        return cls(torch.tensor(len(row_n)), (level_n * (row_n % 97)).sum())

    def __add__(self, other: RowStats) -> RowStats:
        return RowStats(self.count + other.count, self.total + other.total)

    def tensors(self) -> dict[str, Tensor]:
        return {"count": self.count, "total": self.total}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> RowStats:
        return RowStats(**tensors)


def image_bytes(number: int, kind: str = "png") -> bytes:
    """Of 20 × 17 pixels of noise; each number another."""
    pixels_HWC = np.random.default_rng(number).integers(0, 256, (17, 20, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, kind)
    return buffer.getvalue()


def tar_bytes(images: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in images.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_folder(folder: Path) -> list[str]:
    """80 usable images in 3 shards, the last of them compressed, and 3 that are not usable."""
    folder.mkdir()
    kinds = ("png", "jpeg")
    images = [(f"{number:04d}", kinds[number % 2]) for number in range(80)]
    encoded = {f"{key}.{kind}": image_bytes(int(key), kind) for key, kind in images}
    names = list(encoded)
    bad = {"broken.png": encoded["0000.png"][:60], "empty.png": b"", "words.jpg": b"no image at all"}
    (folder / "a.tar").write_bytes(tar_bytes({name: encoded[name] for name in names[:23]} | bad))
    (folder / "b.tar").write_bytes(tar_bytes({name: encoded[name] for name in names[23:63]}))
    (folder / "c.tar.gz").write_bytes(gzip.compress(tar_bytes({name: encoded[name] for name in names[63:]})))
    return list_shards([str(folder)])
