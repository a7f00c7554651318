"""Real workers, which speak to each other: what they hold together is what one has alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.train.images.index import index_shards

pytestmark = pytest.mark.slow


def test_two_processes_see_the_batches_and_the_sums_of_one(shards: list[str], tmp_path: Path) -> None:
    index_shards(shards, tmp_path / "index")
    script = Path(__file__).with_name("gloo_feed.py")
    places = [(0, 1), (0, 2), (1, 2)]
    started = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(size), str(tmp_path)]) for rank, size in places
    ]
    assert [process.wait(timeout=500) for process in started] == [0, 0, 0]
    alone, first, second = (np.load(tmp_path / f"{size}-{rank}.npz", allow_pickle=False) for rank, size in places)
    names = [name for name in alone.files if name.startswith(("view", "row"))]
    assert len(names) == 8
    for name in names:
        assert 0 < len(second[name]) < len(alone[name])
        np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), alone[name])
    for part in (first, second):
        assert part["count"] == alone["count"] == 80
        np.testing.assert_allclose(part["total"], alone["total"], rtol=1e-12)
