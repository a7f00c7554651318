"""An earlier generation, again the newest; and what came later labelled as it would have."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from histories import Told

from models.errors import ShoalError
from models.kmeans import KMeansConfig
from pipeline.cluster.assign import assign
from pipeline.cluster.cluster import cluster, ids_used
from pipeline.cluster.config import ClusterConfig
from pipeline.cluster.fitted import read_labeller, write_model
from pipeline.history.as_of import assign_as_of, found, moment
from pipeline.history.diff import diff
from pipeline.history.lineage import published
from pipeline.history.rollback import rollback, stands
from pipeline.progress import silent
from pipeline.recluster.config import ReclusterConfig
from pipeline.recluster.update import recluster
from pipeline.tables.clusterings import Clustering, Generation
from pipeline.tables.collection import Collection
from pipeline.tables.imports import import_files

Arrive = Callable[[Path, str, int], None]


def _labels(table: Collection, clustering: Clustering, generation: Generation) -> dict[str, int]:
    files = table.samples.files(version=generation.samples_version)
    parts = [clustering.read_assignments(generation, file, ["key", "cluster"]).to_pylist() for file in files]
    return {row["key"]: row["cluster"] for part in parts for row in part}


def test_a_rollback_is_a_generation_that_says_the_same_with_the_same_files(table: Collection) -> None:
    clustering = table.clustering("kmeans")
    first = clustering.generation(1)
    again = rollback(table, "kmeans", 1)
    assert (again.generation, again.parent, again.decision) == (3, 1, "rollback to 1")
    kept = ("samples_version", "artifact", "config_digest", "statistics")
    assert [getattr(again, name) for name in kept] == [getattr(first, name) for name in kept]
    assert _labels(table, clustering, again) == _labels(table, clustering, first)
    found = diff(table, "kmeans", 1, 3)
    assert (found.stayed, found.moved, found.files_read, found.fates) == (30, 0, 0, ())
    rows, before = clustering.clusters(again).to_pylist(), clustering.clusters(first).to_pylist()
    assert [row["event"] for row in rows] == ["kept"] * 3
    assert [row["parents"] for row in rows] == [[row["cluster"]] for row in rows]
    columns = ("cluster", "size", "medoid_key", "medoid_shard", "medoid_score")
    assert [[row[name] for name in columns] for row in rows] == [[row[name] for name in columns] for row in before]
    assert clustering.moves(again).num_rows == 0


def test_what_came_later_is_labelled_by_the_next_assign(table: Collection) -> None:
    clustering = table.clustering("kmeans")
    rollback(table, "kmeans", 1)
    summary = assign(table, name="kmeans")
    assert (summary.generation.generation, summary.generation.parent, summary.labelled) == (4, 3, 30)
    assert _labels(table, clustering, summary.generation) == _labels(table, clustering, clustering.generation(2))


@pytest.mark.slow
def test_there_and_back_again(table: Collection) -> None:
    clustering = table.clustering("kmeans")
    assert rollback(table, "kmeans", 1).generation == 3
    assert rollback(table, "kmeans", 2).generation == 4
    again = rollback(table, "kmeans", 3)  # a rollback itself
    assert (again.generation, again.decision) == (5, "rollback to 3")
    assert _labels(table, clustering, again) == _labels(table, clustering, clustering.generation(1))


def test_where_nothing_is_to_do_nothing_is_done(table: Collection) -> None:
    clustering = table.clustering("kmeans")
    assert stands(clustering, 2)
    assert rollback(table, "kmeans", 2) == clustering.generation(2)
    assert not stands(clustering, 1)
    again = rollback(table, "kmeans", 1)
    assert stands(clustering, 1)
    assert stands(clustering, 3)
    assert rollback(table, "kmeans", 1) == rollback(table, "kmeans", 3) == again
    assert len(clustering.generations()) == 3


def test_ids_of_models_that_were_rolled_back_are_not_given_again(table: Collection, tmp_path: Path) -> None:
    clustering = table.clustering("dpm")
    first = cluster(table, ClusterConfig()).generation
    fitted = read_labeller(table.artifacts, first.artifact)
    used = ids_used(clustering)
    assert fitted.model.next_id < used + 7
    model = fitted.model.renamed(fitted.model.id_K, used + 7)  # it gave ids to clusters that no generation has
    later = write_model(table, fitted.artifact, model, {})
    assign(table, table.artifacts.path(later.kind, later.digest), "dpm")
    again = rollback(table, "dpm", 1)
    assert max(clustering.lineage()["cluster"].to_pylist()) + 1 == used  # the lineage alone does not know
    assert json.loads(again.evidence)["next_id"] == used + 7
    assert json.loads(rollback(table, "dpm", 2).evidence)["next_id"] == used + 7
    again = rollback(table, "dpm", 1)

    x_ND = 20 * np.array([1, 1, 0]) + np.random.default_rng(3).standard_normal((60, 3))
    np.savez(tmp_path / "c.npz", embedding=x_ND.astype(np.float32), key=[f"c{i}" for i in range(60)])
    import_files([tmp_path / "c.npz"], tmp_path / "table")
    summary = recluster(table, ReclusterConfig(mode="refine"))
    assert summary.generation.parent == again.generation
    events = clustering.events(summary.generation).to_pylist()
    (born,) = (row["cluster"] for row in events if row["event"] == "born")
    assert born >= used + 7


def test_a_rollback_of_a_generation_whose_model_is_lost_still_counts_its_clusters(copy: Told) -> None:
    again = rollback(copy.collection, "dpm", 2)
    assert json.loads(again.evidence)["next_id"] == 5


def test_a_generation_that_ended_or_never_was_is_a_sentence(table: Collection) -> None:
    clustering = table.clustering("kmeans")
    with pytest.raises(ShoalError, match=r"Clustering kmeans has no generation 3; it has 1-2\."):
        rollback(table, "kmeans", 3)
    rollback(table, "kmeans", 1)
    clustering.end([1])
    for call in (lambda: rollback(table, "kmeans", 1), lambda: diff(table, "kmeans", 1, 2)):
        with pytest.raises(ShoalError, match="Generation 1 of clustering kmeans has ended: retention or a removal"):
            call()
    assert len(clustering.generations()) == 2


def test_later_rows_are_labelled_as_by_an_earlier_generation(table: Collection, tmp_path: Path, arrive: Arrive) -> None:
    clustering = table.clustering("kmeans")
    cluster(table, ClusterConfig(algorithm=KMeansConfig(clusters=2)), name="kmeans")
    once = assign_as_of(table, "kmeans", 1)
    assert (once.name, once.labelled, once.rows, once.clusters) == ("kmeans-as-of-1", 30, 60, 3)
    own, source = table.clustering("kmeans-as-of-1"), clustering.generation(1)
    first = own.generation(1)
    for name in ("samples_version", "artifact", "config_digest", "statistics"):
        assert getattr(first, name) == getattr(source, name)
    assert _labels(table, own, first) == _labels(table, clustering, source)
    assert _labels(table, own, once.generation) == _labels(table, clustering, clustering.generation(2))
    assert assign_as_of(table, "kmeans", 1).generation == once.generation  # until something comes
    arrive(tmp_path, "c", 3)
    again = assign_as_of(table, "kmeans", 1)
    assert (again.name, again.labelled, again.rows) == (once.name, 30, 90)
    assert again.generation.parent == once.generation.generation
    assert len(clustering.generations()) == 3  # the clustering itself is left alone


@pytest.mark.parametrize("when", ["copied", "published"])
def test_a_generation_that_ends_while_it_is_copied_is_a_sentence(
    table: Collection, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(table, ClusterConfig(algorithm=KMeansConfig(clusters=2)), name="kmeans")
    swept: list[str] = []

    def end(*_: object) -> None:
        if not swept:
            other = Collection.open(table.path)
            other.clustering("kmeans").retain(1)
            swept.extend(other.sweep_artifacts())

    if when == "published":
        publish = Clustering.publish

        def late(self: Clustering, *arguments: Any, **named: Any) -> Generation:
            end()
            return publish(self, *arguments, **named)

        monkeypatch.setattr(Clustering, "publish", late)
    sentence = "Generation 1 of clustering kmeans has ended meanwhile: .* Nothing was labelled"
    with pytest.raises(ShoalError, match=sentence):
        assign_as_of(table, "kmeans", 1, end if when == "copied" else silent)
    assert swept
    assert table.clusterings() == ["kmeans"]
    assert not list(Path(str(table.path), "clusterings/kmeans-as-of-1/assignments").glob("*.parquet"))
    assert [each.generation for each in table.clustering("kmeans").generations()] == [3]


def test_files_that_go_while_they_are_copied_are_a_generation_that_ended(
    table: Collection, tmp_path: Path, arrive: Arrive
) -> None:
    arrive(tmp_path, "c", 3)
    assign(table, name="kmeans")
    cluster(table, ClusterConfig(algorithm=KMeansConfig(clusters=2)), name="kmeans")

    def end(_: str, done: int, __: int | None) -> None:
        if done == 1:  # of three files
            Collection.open(table.path).clustering("kmeans").retain(1)

    with pytest.raises(ShoalError, match="Generation 3 of clustering kmeans has ended meanwhile"):
        assign_as_of(table, "kmeans", 3, end)
    assert table.clusterings() == ["kmeans"]


def test_a_number_that_is_none_is_told_how_a_date_is_written(table: Collection) -> None:
    with pytest.raises(
        ShoalError, match=r"no generation 20261130; it has 1-2\. --as-of takes .* a date \(2026-11-30, "
    ):
        assign_as_of(table, "kmeans", moment("20261130"))


def test_another_clustering_of_that_name_is_left_alone(table: Collection) -> None:
    cluster(table, ClusterConfig(algorithm=KMeansConfig(clusters=2)), name="kmeans-as-of-1")
    with pytest.raises(ShoalError, match="clustering named kmeans-as-of-1 whose model is not that of generation 1"):
        assign_as_of(table, "kmeans", 1)


def test_a_time_is_the_newest_generation_until_then(copy: Told) -> None:
    clustering = copy.clustering
    there = clustering.generations()
    tick = timedelta(microseconds=1)
    for before, each in itertools.pairwise(there):
        assert found(clustering, each.created_at) == each
        assert found(clustering, each.created_at - tick) == before
    assert found(clustering, datetime(9000, 1, 1, tzinfo=UTC)) == there[-1]
    assert found(clustering, 3) == there[2] == published(clustering, 3)
    with pytest.raises(ShoalError, match=r"has no generation of .* or before; the first it has is 1, of "):
        found(clustering, there[0].created_at - tick)


def test_a_time_whose_generation_may_have_ended_is_a_sentence(copy: Told) -> None:
    clustering = copy.clustering
    there = clustering.generations()
    clustering.end([1, 3])
    assert found(clustering, there[4].created_at).generation == 5
    assert found(clustering, there[3].created_at).generation == 4
    with pytest.raises(ShoalError, match="Generation 3 of clustering dpm has ended, and may have been the newest at"):
        found(clustering, there[2].created_at)
    with pytest.raises(ShoalError, match="or before; the first it has is 2, of"):
        found(clustering, there[0].created_at)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("17", 17),
        ("20261130", 20261130),
        ("2026-11-30", datetime(2026, 11, 30, 23, 59, 59, 999_999, UTC)),
        ("2026-11-30T18:00", datetime(2026, 11, 30, 18, 0, tzinfo=UTC)),
        ("2026-11-30 18:00:01.5", datetime(2026, 11, 30, 18, 0, 1, 500_000, UTC)),
        ("2026-11-30T18:00+01:00", datetime(2026, 11, 30, 17, 0, tzinfo=UTC)),
        ("2026-11-30T18:00Z", datetime(2026, 11, 30, 18, 0, tzinfo=UTC)),
    ],
)
def test_what_as_of_may_say(text: str, expected: int | datetime) -> None:
    assert moment(text) == expected


@pytest.mark.parametrize("text", ["9" * 5000, "2026-11-30T18:00" + "0" * 5000])
def test_what_as_of_says_is_short(text: str) -> None:
    with pytest.raises(ShoalError, match=r"^--as-of has 5,0\d\d characters and is no date; give a generation") as error:
        moment(text)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "-1", "1.5", "²", "9999-12-31", "2026-11-30T25:00"])
def test_what_as_of_may_not_say(text: str) -> None:
    with pytest.raises(ShoalError, match=r"is no date .*; give a generation's number, a date"):
        moment(text)


def test_a_clustering_that_is_told_by_hand_needs_the_images_there_are(tmp_path: Path) -> None:
    told = Told(tmp_path / "table")
    told.shard(["a0"])
    with pytest.raises(AssertionError):
        told.publish({"a1": 0}, parent=None)
