from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import figures_of, shoal
from jinja2 import Environment

import jobs.report
from jobs.remove import _beside
from pipeline.removal.traces import delete_beside
from pipeline.tables.collection import Collection

TEMPLATE = Path(jobs.report.__path__[0]) / "templates" / "report.html.j2"
ROWS = 40


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run: 40 rows of two clusters, in two files of which both have the key k00; a report."""
    rng = np.random.default_rng(0)
    x_ND = (np.arange(ROWS)[:, None] % 2 * 9 + rng.normal(0, 0.3, (ROWS, 2))).astype(np.float32)
    keys = np.array([f"k{number:02d}" for number in [*range(20), 0, *range(21, 40)]])
    for name, part in (("a", slice(0, 20)), ("b", slice(20, 40))):
        np.savez(tmp_path / f"{name}.npz", embedding=x_ND[part], key=keys[part])
    run = tmp_path / "run"
    figures_of(tmp_path, "import", tmp_path / "a.npz", tmp_path / "b.npz", "--output", run / "table")
    figures_of(
        tmp_path, "cluster", run, "--set", "cluster.algorithm.kind=kmeans", "--set", "cluster.algorithm.clusters=2"
    )
    (run / "run.json").write_text(json.dumps({"format": "shoal-run", "version": 1}))
    for name in ("report.html", "metrics.json"):
        (run / name).write_text("k00")
    return run


def test_keys_are_removed_of_all_shards_or_of_one(run: Path, tmp_path: Path) -> None:
    plan = figures_of(tmp_path, "remove", run, "k00", "--dry-run")
    assert plan["steps"][0]["what"].startswith("2 images and 0 rejects of 2 shards, in 2 data files")
    assert plan["steps"][1]["what"].startswith("kmeans: generation 1 ends")
    assert (run / "report.html").exists()

    one = figures_of(tmp_path, "remove", run, "k00", "--shard", "b.npz")
    assert (one["images"], one["rejects"], one["unknown_keys"]) == (1, 0, 0)
    assert one["clusterings"] == [{"clustering": "kmeans", "ended_generations": "1", "generation": 2}]
    assert one["shards_that_hold_them_still"] == [{"shard": str(tmp_path / "b.npz"), "images": 1}]
    assert {row["file"] for row in one["files_deleted_beside_the_table"]} == {
        str(run / "report.html"),
        str(run / "metrics.json"),
    }
    assert not (run / "report.html").exists()
    assert not (run / "metrics.json").exists()

    listed = tmp_path / "list.csv"
    listed.write_text(f"key,shard\nk00,\nk21,{tmp_path / 'b.npz'}\nk22,{tmp_path / 'a.npz'}\n")
    result = shoal("remove", run, "k01", "--keys", listed, "--json", tmp_path / "more.json")
    assert result.exit_code == 0, result.output
    more = json.loads((tmp_path / "more.json").read_text())
    assert (more["images"], more["unknown_keys"], more["removed_before"]) == (3, 1, 0)
    shown = figures_of(tmp_path, "show", run)
    assert (shown["images"], shown["rejects"]) == (36, 0)
    assert figures_of(tmp_path, "remove", run, "k01")["removed_before"] == 1


def test_only_what_shoal_wrote_is_deleted_beside_the_table(run: Path) -> None:
    table = Collection.open(run)
    leftover, backup = run / f"report.html.{'0' * 32}", run / "report.html.bak"
    written = Environment(autoescape=True).from_string(TEMPLATE.read_text().partition("<style>")[0])
    report = written.render(data={"title": "k" * 5000})
    (run / "run.json").unlink()
    backup.write_text(report)
    leftover.write_text("mine")
    for content, stays in (("mine", True), (report, False)):
        (run / "report.html").write_text(content)
        delete_beside(tuple(_beside(table)))
        assert (run / "report.html").exists() == stays
    assert not leftover.exists()
    (run / "report.html").write_text("mine")
    leftover.write_text(report)
    (run / "run.json").write_text("{}")  # somebody else's
    assert delete_beside(tuple(_beside(table))) == [str(leftover)]
    assert not leftover.exists()
    for name in ("report.html", "metrics.json", "report.html.bak"):
        assert (run / name).exists()


def test_what_is_not_there_is_a_sentence_and_changes_nothing(run: Path, tmp_path: Path) -> None:
    for arguments, sentence in (
        (["nobody"], "None of the 1 keys is in the table"),
        ([], "no key was given"),
        (["k01", "--keys", str(tmp_path / "none.txt")], "none.txt does not exist"),
    ):
        result = shoal("remove", run, *arguments)
        assert result.exit_code == 2
        assert sentence in result.stderr
        assert result.stderr.count("\n") == 1
    assert (run / "report.html").exists()
    assert figures_of(tmp_path, "show", run)["images"] == ROWS
