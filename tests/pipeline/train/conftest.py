"""Rows that the tests here train on, and the way to the scripts that they start."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.train.rows import HeldRows, Rows, SavedRows

sys.path.insert(0, str(Path(__file__).parent))  # toy_objective is also imported by the scripts beside it


@pytest.fixture(scope="session")
def rows() -> Rows:
    """1,003 rows of eight overlapping Gaussians: no count here divides another."""
    rng = np.random.default_rng(0)
    x_ND = (rng.standard_normal((1003, 3)) + 4 * rng.integers(0, 2, (1003, 3))).astype(np.float32)
    return Rows(x_ND, rng.integers(-(2**62), 2**62, 1003))


@pytest.fixture(scope="session")
def saved(rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> SavedRows:
    return HeldRows(rows.x_ND, rows.row_N).saved(tmp_path_factory.mktemp("saved") / "rows")
