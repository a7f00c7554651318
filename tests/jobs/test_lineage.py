"""The commands about generations, on tables told by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import figures_of, shoal
from histories import Told, five_generations

from jobs.brief import LIMIT, legible
from jobs.history import draw
from models.kmeans import KMeansConfig
from pipeline.cluster.cluster import cluster
from pipeline.cluster.config import ClusterConfig
from pipeline.history.tree import history


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Five generations by hand, a sixth with a model that is there, and images that came later."""
    told = five_generations().copied(tmp_path_factory.mktemp("told") / "table")
    one = ClusterConfig(algorithm=KMeansConfig(clusters=1))
    digest = cluster(told.collection, one, name="one").generation.artifact
    told.publish(told.labels[5], artifact=digest)
    told.shard(["d0", "d1"])
    return told


def _undated(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d( to \d{4}-\d\d-\d\d)?", "DATE", text)


def test_a_diff_in_figures(told: Told, tmp_path: Path) -> None:
    found = figures_of(tmp_path, "diff", told.folder, "1", "5", "--name", "dpm", "--output", tmp_path / "moved.parquet")
    expected = {"stayed": 6, "moved": 4, "arrived": 4, "gone": 0, "born": 1, "split": 0, "merged": 1, "died": 1}
    expected |= {"before": 1, "after": 5, "clusters_before": 3, "clusters_after": 3, "files_shared": 0, "files_read": 5}
    assert {name: found[name] for name in expected} == expected
    assert found["born_and_gone_in_between"] == "4"
    assert found["clusters"][0] == {
        "cluster": 1,
        "event": "merged",
        "parents": [1, 2],
        "size_before": 4,
        "size_after": 8,
        "log_hastings": -1.5,
    }
    assert [row["log_hastings"] for row in found["on_the_way"]] == [None, 2.5, 2.5, -1.5, None, None, None]
    assert found["largest_flows"] == [
        {"before": 0, "after": 1, "images": 2, "share_of_before": 0.5},
        {"before": 2, "after": 1, "images": 2, "share_of_before": 1.0},
    ]
    assert found["moved_images"] == pq.read_table(tmp_path / "moved.parquet").to_pylist()
    assert len(found["moved_images"]) == 4
    assert found["rows_at_most"] == LIMIT


def test_a_diff_on_a_screen(told: Told) -> None:
    lines = shoal("diff", told.folder, "2", "3").stdout.splitlines()
    assert lines[0] == "diff"
    table = [line.split() for line in lines]
    assert ["moved", "2"] in table
    assert ["4", "split", "0", "0", "2", "2.500"] in table
    assert ["a", "a2", "0", "4"] in table
    assert ["0", "4", "2", "0.333"] in table


def test_a_diff_of_nothing(told: Told, tmp_path: Path) -> None:
    found = figures_of(tmp_path, "diff", told.folder, "3", "3", "--name", "dpm")
    assert (found["stayed"], found["moved"], found["clusters"], found["moved_images"]) == (14, 0, [], [])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["diff", "TABLE", "1", "9"], "Clustering dpm has no generation 9; it has 1-6."),
        (["diff", "TABLE", "1", "2", "--output", "moved.txt"], "/moved.txt ends in .txt; end it in .parquet or .csv."),
        (["diff", "TABLE", "1", "2", "--name", "none"], "has no clustering named 'none'; it has dpm, one"),
        (["history", "TABLE", "9"], "Clustering dpm never had a cluster 9; the nearest it has or had are 4, 3, 2."),
        (["rollback", "TABLE", "7", "--dry-run"], "Clustering dpm has no generation 7; it has 1-6."),
        (["assign", "TABLE", "--as-of", "1999-12-31", "--dry-run"], "has no generation of 1999-12-31 23:59:59 UTC"),
        (["assign", "TABLE", "--as-of", "soon"], "--as-of 'soon' is no date"),
        (["assign", "TABLE", "--as-of", "1", "--artifact", "x"], "there can be no --artifact; give one of them."),
        (["diff", "/nowhere", "1", "2"], "There is nothing at /nowhere; give a table"),
        (["history", "/nowhere"], "There is nothing at /nowhere; give a table"),
        (["rollback", "/nowhere", "1"], "There is nothing at /nowhere; give a table"),
    ],
)
def test_what_is_refused_is_one_line_on_stderr(told: Told, arguments: list[str], sentence: str) -> None:
    result = shoal(*(str(told.folder) if each == "TABLE" else each for each in arguments))
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert result.stderr.count("\n") == 1
    assert len(told.clustering.generations()) == 6


def test_a_life_as_lines(told: Told) -> None:
    result = shoal("history", told.folder, "1")
    assert result.exit_code == 0, result.stderr
    life = _undated(result.stdout).partition("cluster 1\n")[2]
    assert life == (
        "  born, generation 1, 4 images, fit, DATE\n"
        "  kept, generations 2-3, 4 images, assign and refine, DATE\n"
        "  merged, generation 4, 6 images, log Hastings −1.5, refine, DATE\n"
        "    took in 4\n"
        "      split, generation 3, 2 images, log Hastings +2.5, refine, DATE\n"
        "        from 0\n"
        "          born, generation 1, 4 images, fit, DATE\n"
        "          kept, generation 2, 6 images, assign, DATE\n"
        "  merged, generation 5, 8 images, refine, DATE\n"
        "    took in 2\n"
        "      born, generation 1, 2 images, fit, DATE\n"
        "      kept, generations 2-4, 2 images, assign and refine, DATE\n"
        "  kept, generation 6, 8 images, refine, DATE\n"
    )


def test_a_life_as_a_tree(told: Told, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes a terminal of a pipe, for rich
    monkeypatch.setenv("COLUMNS", "120")
    draw(history(told.collection, "dpm", 4))
    shown = _undated(re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out))
    assert [line.rstrip() for line in shown.splitlines()] == [
        "cluster 4",
        "├── split, generation 3, 2 images, log Hastings +2.5, refine, DATE",
        "│   └── from 0",
        "│       ├── born, generation 1, 4 images, fit, DATE",
        "│       └── kept, generation 2, 6 images, assign, DATE",
        "└── died, generation 4, refine, DATE",
        "    └── went into 1",
    ]


def test_a_life_in_figures(told: Told, tmp_path: Path) -> None:
    found = figures_of(tmp_path, "history", told.folder, "4", "--name", "dpm")
    values = {"cluster": "4", "lives": False, "images": 0, "first_generation": 3, "last_generation": 4, "relatives": 2}
    assert {name: found[name] for name in values} == values
    split, died = found["events"]
    assert (split["event"], split["parents"], split["log_hastings"], split["size"]) == ("split", [0], 2.5, 2)
    assert (died["event"], died["generation"], died["parent_generation"], died["ended"]) == ("died", 4, 3, False)
    assert found["related_clusters"] == [
        {"cluster": 0, "relation": "from", "of": 4, "in_generation": 3},
        {"cluster": 1, "relation": "went into", "of": 4, "in_generation": 4},
    ]


def test_all_generations_and_the_clusters_that_live(told: Told, tmp_path: Path) -> None:
    found = figures_of(tmp_path, "history", told.folder, "--name", "dpm")
    values = {"newest_generation": 6, "generations_ended": 0, "living_clusters": 3, "clusters_ever": 5}
    assert {name: found[name] for name in values} == values
    columns = ("generation", "parent", "decision", "images", "clusters", "born", "split", "merged", "died")
    assert [tuple(row[name] for name in columns) for row in found["generations"][:4]] == [
        (1, None, "fit", 10, 3, 3, 0, 0, 0),
        (2, 1, "assign", 14, 4, 1, 0, 0, 0),
        (3, 2, "refine", 14, 5, 0, 2, 0, 0),
        (4, 3, "refine", 14, 4, 0, 0, 1, 1),
    ]
    columns = ("cluster", "images", "since_generation", "last_event", "in_generation", "parents")
    assert [tuple(row[name] for name in columns) for row in found["clusters"]] == [
        (1, 8, 1, "merged", 5, [1, 2]),
        (0, 4, 1, "split", 3, [0]),
        (3, 2, 2, "born", 2, []),
    ]


def test_a_rollback_there_and_again(told: Told, tmp_path: Path) -> None:
    copy = told.copied(tmp_path / "copy")
    plan = figures_of(tmp_path, "rollback", copy.folder, "3", "--dry-run")
    assert [(step["state"], step["what"]) for step in plan["steps"]] == [
        ("to do", "generation 3 of dpm again: 14 rows, 5 clusters")
    ]
    assert len(copy.clustering.generations()) == 6
    found = figures_of(tmp_path, "rollback", copy.folder, "3")
    values = {"generation": 7, "skipped": False, "rows": 14, "clusters": 5, "rows_without_label": 2}
    assert {name: found[name] for name in values} == values
    again = figures_of(tmp_path, "rollback", copy.folder, "3")
    assert (again["generation"], again["skipped"]) == (7, True)
    assert again["note"] == "nothing to do: generation 3 is what the clustering says already"
    told_again = _undated(shoal("history", copy.folder, "4").stdout)
    assert "kept, generation 7, 2 images, continues generation 3, rollback to 3, DATE" in told_again


def test_assign_as_of(told: Told, tmp_path: Path) -> None:
    copy = told.copied(tmp_path / "copy")
    plan = figures_of(tmp_path, "assign", copy.folder, "--as-of", "6", "--dry-run")
    assert [(step["state"], step["what"]) for step in plan["steps"]] == [
        ("to do", "2 new rows of 16 as by generation 6 of dpm: dpm-as-of-6")
    ]
    assert copy.collection.clusterings() == ["dpm", "one"]
    found = figures_of(tmp_path, "assign", copy.folder, "--as-of", "6")
    assert (found["clustering"], found["new_rows"], found["rows"]) == ("dpm-as-of-6", 2, 16)
    assert (found["generation"], found["clusters"]) == (2, 3)  # labels by hand are copied, not made anew: 0, 1 and 3
    again = figures_of(tmp_path, "assign", copy.folder, "--as-of", "9000-01-01")
    assert (again["clustering"], again["new_rows"], again["generation"]) == ("dpm-as-of-6", 0, found["generation"])
    plan = figures_of(tmp_path, "assign", copy.folder, "--as-of", "6", "--dry-run")
    assert [step["state"] for step in plan["steps"]] == ["done, skipped"]


def test_a_key_cannot_steer_the_terminal(tmp_path: Path) -> None:
    told = Told(tmp_path / "table")
    key = "a\x1b[2J\x9b\u202egnp\n"
    told.shard([key])
    told.publish({key: 0}, parent=None)
    told.publish({key: 1})
    result = shoal("diff", told.folder, "1", "2", "--json", tmp_path / "figures.json")
    assert r"a\x1b[2J\x9b\u202egnp\n" in result.stdout
    assert "\x1b" not in result.stdout
    assert json.loads((tmp_path / "figures.json").read_text())["moved_images"][0]["key"] == key


@pytest.mark.parametrize("text", ["photo 1.jpg", "große Möwe", "鴎/2.png", "📷"])
def test_what_is_legible_stays(text: str) -> None:
    assert legible(text) == text
