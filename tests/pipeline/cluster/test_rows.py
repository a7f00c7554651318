"""Room on a disk, where a system can give it beforehand."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.cluster.rows import reserve


def test_room_is_reserved_and_macos_goes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if hasattr(os, "posix_fallocate"):
        with (tmp_path / "a").open("w+b") as file:
            reserve(file.fileno(), 10_000)
            assert os.fstat(file.fileno()).st_size == 10_000
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "b").open("w+b") as file:
        reserve(file.fileno(), 10_000)
        assert os.fstat(file.fileno()).st_size == 0  # the memory map gives it its length
