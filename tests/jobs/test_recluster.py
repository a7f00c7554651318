from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from commands import figures_of, shoal

from jobs.config import RunConfig
from jobs.recluster import Follow
from jobs.steps import State
from pipeline.tables.collection import Collection


def _import(folder: Path, name: str, labels: list[int], seed: int) -> None:
    """100 rows of each label, around corners of a cube."""
    corners = 20 * np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    label_N = np.repeat(labels, 100)
    x_ND = corners[label_N] + np.random.default_rng(seed).standard_normal((len(label_N), 3)).astype(np.float32)
    np.savez(folder / f"{name}.npz", embedding=x_ND.astype(np.float32), label=label_N.astype(str))
    figures_of(folder, "import", folder / f"{name}.npz", "--output", folder / "table")


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    """A table that was clustered, and to which rows of a new cluster came."""
    _import(tmp_path, "a", [0, 1, 2], 0)
    figures_of(tmp_path, "cluster", tmp_path / "table")
    _import(tmp_path, "b", [0, 3], 1)
    return tmp_path / "table"


def test_what_came_is_folded_in_and_told(grown: Path, tmp_path: Path) -> None:
    plan = figures_of(tmp_path, "recluster", grown, "--dry-run")["steps"][0]
    assert plan["what"] == "200 rows of 1 new files, 0 of removed ones: dpm, mode auto"
    found = figures_of(tmp_path, "recluster", grown, "--metrics", tmp_path / "shoal.prom")
    assert (found["decision"], found["arrived"], found["clusters"], found["born"]) == ("refine", 200, 4, 1)
    assert found["low_scores"] > 0.3
    (event,) = found["events"]
    assert (event["event"], event["size"]) == ("born", 100)
    assert 'shoal_recluster_clusters{clustering="dpm"} 4.0' in (tmp_path / "shoal.prom").read_text()
    assert figures_of(tmp_path, "recluster", grown, "--dry-run")["steps"][0]["state"] == State.DONE
    assert figures_of(tmp_path, "recluster", grown)["decision"] == "nothing"


def test_a_run_that_goes_on_folds_in_what_came(grown: Path) -> None:
    followed = Follow(str(grown), RunConfig()).run(lambda *_: None)
    assert followed.values["decision"] == "refine"
    assert Collection.open(grown).clustering("dpm").latest().decision == "refine"  # type: ignore[union-attr]
    assert Follow(str(grown), RunConfig()).plan()[0].state == State.DONE


def test_a_mode_that_is_none_is_a_sentence(grown: Path) -> None:
    result = shoal("recluster", grown, "--mode", "refresh")
    assert result.exit_code == 2
    assert "recluster.mode" in result.output
    assert "'auto', 'assign', 'refine' or 'refit'" in result.output


def test_assign_takes_account_of_rows_that_went(grown: Path, tmp_path: Path) -> None:
    samples = Collection.open(grown).samples
    first, second = samples.files()
    samples.replace([first], [], {})
    found = figures_of(tmp_path, "assign", grown)
    assert (found["new_rows"], found["rows"]) == (200, 200)
    latest = Collection.open(grown).clustering("dpm").latest()
    assert latest is not None
    assert latest.statistics is not None
    assert second.rows == 200
