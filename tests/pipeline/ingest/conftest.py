"""Small archives and images, built byte by byte where it matters."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

Members = Iterable[tuple[str, bytes]]


def _tar_of(members: Members, format: int = tarfile.GNU_FORMAT) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture(scope="session")
def tar_of() -> Callable[..., bytes]:
    """An archive of (name, data) pairs, padded to tar's record of 10,240 bytes."""
    return _tar_of


@pytest.fixture
def shard_of(tmp_path: Path) -> Callable[..., str]:
    """The same as a file; its path."""

    def write(members: Members | bytes, name: str = "shard.tar") -> str:
        path = tmp_path / name
        path.write_bytes(members if isinstance(members, bytes) else _tar_of(members))
        return str(path)

    return write


@pytest.fixture(scope="session")
def picture() -> Image.Image:
    """13 high, 17 wide, no two pixels alike."""
    y_HW, x_HW = np.mgrid[0:13, 0:17]
    return Image.fromarray(np.stack([x_HW * 15, y_HW * 19, x_HW + y_HW], axis=-1).astype(np.uint8))


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    """An image as the bytes of a file."""

    def save(image: Image.Image, format: str, **options: object) -> bytes:  # noqa: A002
        buffer = io.BytesIO()
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return save
