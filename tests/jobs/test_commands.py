"""Each command on a table of imported embeddings: no images, no Ray, the same tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import figures_of, shoal

CENTRES = np.array([[0, 0, 0], [9, 0, 0], [0, 9, 0], [0, 0, 9]], np.float32)
ROWS_EACH = 50


def planted(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows around four centres, and which."""
    rng = np.random.default_rng(seed)
    label_N = np.repeat(np.arange(len(CENTRES)), ROWS_EACH)
    return (CENTRES[label_N] + rng.normal(0, 0.3, (len(label_N), 3))).astype(np.float32), label_N


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of 200 labelled rows, clustered by the default algorithm."""
    folder = tmp_path_factory.mktemp("commands")
    x_ND, label_N = planted(0)
    np.savez(folder / "a.npz", embedding=x_ND, label=label_N.astype(str))
    table = folder / "table"
    found = figures_of(folder, "import", folder / "a.npz", "--output", table)
    assert (found["images"], found["rejects"], found["new_rows"], found["dimension"]) == (200, 0, 200, 3)
    clustered = figures_of(folder, "cluster", table)
    assert (clustered["clustering"], clustered["clusters"], clustered["skipped"]) == ("dpm", 4, False)
    return table


def test_what_was_imported_or_clustered_before_is_skipped(collection: Path, tmp_path: Path) -> None:
    again = figures_of(tmp_path, "import", collection.parent / "a.npz", "--output", collection)
    assert (again["new_files"], again["skipped_files"], again["images"]) == (0, 1, 200)
    plan = figures_of(tmp_path, "cluster", collection, "--dry-run")
    assert [step["state"] for step in plan["steps"]] == ["done, skipped"]
    assert figures_of(tmp_path, "cluster", collection)["skipped"] is True
    assert figures_of(tmp_path, "assign", collection)["new_rows"] == 0


def test_a_prior_scale_is_a_setting_of_the_mixture_and_refused_where_there_is_none(
    collection: Path, tmp_path: Path
) -> None:
    plan = figures_of(tmp_path, "cluster", collection, "--prior-scale", "0.2", "--dry-run")
    assert [step["state"] for step in plan["steps"]] == ["to do"]
    assert figures_of(tmp_path, "cluster", collection, "--name", "given", "--prior-scale", "0.2")["clusters"] == 4
    assert "prior_scale" in shoal("cluster", collection, "--prior-scale", "-1").output
    refused = shoal("cluster", collection, "--prior-scale", "1", "--set", "cluster.algorithm.kind=kmeans")
    assert refused.exit_code == 2


def test_planted_clusters_score_as_they_should_by_name_or_all(collection: Path, tmp_path: Path) -> None:
    figures_of(
        tmp_path,
        "cluster",
        collection,
        "--name",
        "two",
        "--set",
        "cluster.algorithm.kind=kmeans",
        "--set",
        "cluster.algorithm.clusters=2",
    )
    scores = {row["name"]: row for row in figures_of(tmp_path, "evaluate", collection)["scores"]}
    assert next(iter(scores)) == "dpm"
    assert (scores["dpm"]["clusters"], scores["dpm"]["acc"]) == (4, 1.0)
    assert (scores["two"]["clusters"], scores["two"]["acc"]) == (2, 0.5)
    one = figures_of(tmp_path, "evaluate", collection, "--name", "two")
    assert one["scores"] == [{name: value for name, value in scores["two"].items() if name in one["scores"][0]}]


def test_a_clustering_that_is_not_there_is_one_sentence(collection: Path) -> None:
    for command in ("evaluate", "report", "assign"):
        result = shoal(command, collection, "--name", "none")
        assert result.exit_code == 2
        assert "has no clustering named 'none'; it has dpm" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_report_is_written_into_the_table_or_where_it_is_told(collection: Path, tmp_path: Path) -> None:
    """What is beside a table that belongs to no run may be somebody else's."""
    inside = figures_of(tmp_path, "report", collection)
    assert Path(inside["report"]) == collection / "report.html"
    named = figures_of(tmp_path, "report", collection, "--output", tmp_path / "mine.html")
    assert Path(named["report"]) == tmp_path / "mine.html"
    assert "<html" in (tmp_path / "mine.html").read_text()
    assert (named["clusters"], named["images"]) == (4, 200)


def test_a_table_and_its_artifacts_are_shown(collection: Path, tmp_path: Path) -> None:
    shown = figures_of(tmp_path, "show", collection)
    assert {name: shown[name] for name in ("kind", "images", "rejects", "dimension", "backbone")} == {
        "kind": "table",
        "images": 200,
        "rejects": 0,
        "dimension": 3,
        "backbone": "imported",
    }
    first = next(row for row in shown["generations"] if row["clustering"] == "dpm")
    assert (first["generation"], first["parent"], first["assignments"], first["clusters"]) == (1, None, 200, 4)
    artifact = figures_of(tmp_path, "show", collection / "artifacts" / f"dpm-{first['artifact']}")
    assert artifact["digest"].startswith(first["artifact"])
    assert artifact["kind"] == "artifact: dpm"
    assert any(row["tensor"] == "model.cluster.mean_KD" and row["shape"] == "4 × 3" for row in artifact["tensors"])


def test_new_rows_are_assigned_by_the_model_that_is_there(tmp_path: Path) -> None:
    table = tmp_path / "table"
    for seed, name in enumerate("ab"):
        x_ND, label_N = planted(seed)
        np.savez(tmp_path / f"{name}.npz", embedding=x_ND, label=label_N.astype(str))
    figures_of(tmp_path, "import", tmp_path / "a.npz", "--output", table)
    fitted = figures_of(tmp_path, "cluster", table)
    figures_of(tmp_path, "import", tmp_path / "b.npz", "--output", table)
    assert figures_of(tmp_path, "assign", table, "--dry-run")["steps"][0]["what"] == "200 new rows of 400 by dpm"
    assigned = figures_of(tmp_path, "assign", table)
    assert (assigned["new_rows"], assigned["rows"], assigned["clusters"]) == (200, 400, fitted["clusters"])
    assert figures_of(tmp_path, "evaluate", table)["scores"][0]["acc"] == 1.0
    lineage = figures_of(tmp_path, "show", table)["generations"]
    assert [(row["generation"], row["parent"], row["decision"]) for row in lineage] == [
        (1, None, "fit"),
        (2, 1, "assign only"),
    ]


def test_an_artifact_of_another_dimension_is_one_sentence(collection: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32))
    figures_of(tmp_path, "import", tmp_path / "wide.npy", "--output", tmp_path / "wide")
    artifact = next((collection / "artifacts").glob("dpm-*"))
    result = shoal("assign", tmp_path / "wide", "--artifact", artifact)
    assert result.exit_code == 2
    assert "Embeddings are 5-d but the clusterer was fitted on 3-d" in result.stderr


def test_rejects_are_told_and_fail_above_the_fraction_that_is_allowed(tmp_path: Path) -> None:
    x_ND = np.ones((20, 2), np.float32)
    x_ND[:2] = np.nan
    np.save(tmp_path / "x.npy", x_ND)
    allowed = shoal("import", tmp_path / "x.npy", "--output", tmp_path / "a", "--max-reject-fraction", "0.1")
    assert allowed.exit_code == 0, allowed.stderr
    result = shoal("import", tmp_path / "x.npy", "--output", tmp_path / "b", "--json", tmp_path / "figures.json")
    assert result.exit_code == 1
    assert result.stderr.startswith(
        "2 of 20 samples were rejected (10.0%, more than the 5.0% of --max-reject-fraction)"
    )
    found = json.loads((tmp_path / "figures.json").read_text())
    assert (found["images"], found["rejects"], found["reject_fraction"]) == (18, 2, 0.1)
    assert found["rejects_by_reason"] == [{"reason": "non_finite_embedding", "samples": 2}]
    assert [row["shard"] for row in found["first_rejects"]] == [str(tmp_path / "x.npy")] * 2
    assert figures_of(tmp_path, "show", tmp_path / "b")["images"] == 18  # results are kept


def test_a_table_where_nothing_was_extracted_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "table").mkdir()
    result = shoal("cluster", tmp_path / "table")
    assert result.exit_code == 2
    assert "is no shoal table but a folder that holds nothing" in result.stderr
