"""Tables that are made once, and copied for tests that change them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from histories import Told, five_generations

from models.kmeans import KMeansConfig
from pipeline.cluster.assign import assign
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.tables.collection import Collection
from pipeline.tables.imports import import_files

Arrive = Callable[[Path, str, int], None]


@pytest.fixture(scope="session")
def told() -> Told:
    """Five generations told by hand; to be read only."""
    return five_generations()


@pytest.fixture
def copy(told: Told, tmp_path: Path) -> Told:
    """The same, to be changed."""
    return told.copied(tmp_path / "copy")


def _arrive(folder: Path, name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x_ND = 20 * np.eye(3)[rng.integers(0, 3, 30)] + rng.standard_normal((30, 3))
    np.savez(folder / f"{name}.npz", embedding=x_ND.astype(np.float32), key=[f"{name}{i}" for i in range(30)])
    import_files([folder / f"{name}.npz"], folder / "table")


@pytest.fixture(scope="session")
def arrive() -> Arrive:
    """`arrive(folder, name, seed)`: thirty rows around three centres join `folder / "table"`."""
    return _arrive


@pytest.fixture(scope="package")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose table was fitted on a (generation 1), and b was assigned (2)."""
    folder = tmp_path_factory.mktemp("fitted")
    _arrive(folder, "a", 1)
    table = Collection.open(folder / "table")
    cluster(table, ClusterConfig(algorithm=KMeansConfig(clusters=3)))
    _arrive(folder, "b", 2)
    assign(table)
    return folder


@pytest.fixture
def table(fitted: Path, tmp_path: Path) -> Collection:
    """A copy of that table, in `tmp_path`."""
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)
    return Collection.open(tmp_path / "table")
