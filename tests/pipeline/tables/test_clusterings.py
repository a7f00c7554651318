"""A generation exists when its row does, whatever else was written before or after."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipeline.tables.clusterings import Clustering, Generation, Publication
from pipeline.tables.collection import Collection
from pipeline.tables.delta import WrittenFile
from pipeline.tables.samples import SampleFile, SamplesTable
from pipeline.tables.schema import ASSIGNMENTS, CLUSTERS, GENERATIONS, MOVES, TableError

Rows = Callable[..., pa.Table]


@pytest.fixture
def clustering(collection: Collection) -> Clustering:
    return collection.clustering("dpm")


@pytest.fixture
def filled(samples: SamplesTable, rows: Rows) -> SamplesTable:
    """Two files of shard a and one of shard b."""
    parts = [rows("a", range(3)), rows("a", range(3, 5)), rows("b", range(2))]
    samples.commit([samples.write(part) for part in parts])
    return samples


def _assignments(samples: SamplesTable, file: SampleFile, cluster: int) -> pa.Table:
    read = samples.read(file, ["key", "shard"])
    values = {"cluster": cluster, "component": 0, "probability": 0.5, "runner_up": None, "score": -1.0}
    return pa.Table.from_pylist([{**row, **values} for row in read.to_pylist()], schema=ASSIGNMENTS)


def _clusters(generation: int, *ids: int) -> pa.Table:
    rows = [{"generation": generation, "cluster": i, "size": 2, "parents": [], "event": "born"} for i in ids]
    return pa.Table.from_pylist(rows, schema=CLUSTERS)


def _moves(generation: int, *ratios: float) -> pa.Table:
    rows = [
        {
            "generation": generation,
            "sweep": i,
            "kind": "split",
            "clusters": [0, 1],
            "log_ratio": ratio,
            "accepted": True,
        }
        for i, ratio in enumerate(ratios)
    ]
    return pa.Table.from_pylist(rows, schema=MOVES)


def _publication(samples: SamplesTable, parent: int | None = None) -> Publication:
    return Publication(
        samples_version=samples.version, artifact="d" * 64, config_digest="c" * 64, parent=parent, decision="refit"
    )


def _publish(
    clustering: Clustering, samples: SamplesTable, cluster: int, shards: str = "ab", parent: int | None = None
) -> Generation:
    number = clustering.begin()
    files = [
        clustering.write_assignments(_assignments(samples, file, cluster), file)
        for file in samples.files()
        if file.shard in shards
    ]
    record = _publication(samples, parent)
    return clustering.publish(number, files, _clusters(number, cluster), _moves(number, 0.5), record)


def _all_clusters(clustering: Clustering, samples: SamplesTable, generation: Generation) -> list[int]:
    files = samples.files(version=generation.samples_version)
    return [n for file in files for n in clustering.read_assignments(generation, file)["cluster"].to_pylist()]


def test_before_the_first_generation_there_is_none(clustering: Clustering, collection: Collection) -> None:
    assert clustering.latest() is None
    assert clustering.generations() == []
    assert clustering.begin() == clustering.begin() == 1
    assert clustering.latest() is None
    assert collection.clusterings() == []


def test_a_generation_comes_back_as_it_was_published(
    clustering: Clustering, filled: SamplesTable, collection: Collection
) -> None:
    published = _publish(clustering, filled, 7)
    assert published.generation == 1
    assert published.samples_version == filled.version
    again = collection.clustering("dpm")
    assert again.latest() == published == again.generation(1)
    assert _all_clusters(again, filled, published) == [7] * 7
    for file in filled.files():
        expected = _assignments(filled, file, 7)
        assert again.read_assignments(published, file).equals(expected)
    assert again.clusters(published).equals(_clusters(1, 7))
    assert again.moves(published).equals(_moves(1, 0.5))
    assert collection.clusterings() == ["dpm"]


def test_an_earlier_generation_stays_readable(clustering: Clustering, filled: SamplesTable) -> None:
    first, second = _publish(clustering, filled, 7), _publish(clustering, filled, 8)
    assert [each.generation for each in clustering.generations()] == [1, 2]
    assert clustering.latest() == second
    assert _all_clusters(clustering, filled, first) == [7] * 7
    assert _all_clusters(clustering, filled, second) == [8] * 7
    assert clustering.clusters(first)["cluster"].to_pylist() == [7]
    assert clustering.clusters(second)["cluster"].to_pylist() == [8]
    assert clustering.counts(second) == {"assignments": 7, "clusters": 1, "moves": 1}


def test_a_child_carries_over_what_it_does_not_assign_again(
    clustering: Clustering, filled: SamplesTable, rows: Rows
) -> None:
    parent = _publish(clustering, filled, 7)
    filled.commit([filled.write(rows("c", range(2)))])
    with pytest.raises(TableError, match="Generation 1 of clustering dpm has no assignments for shard c"):
        clustering.read_assignments(parent, filled.files()[-1])
    child = _publish(clustering, filled, 9, shards="bc", parent=1)
    assert _all_clusters(clustering, filled, child) == [7] * 5 + [9] * 4
    assert _all_clusters(clustering, filled, parent) == [7] * 7


def test_a_fresh_fit_carries_nothing_over(clustering: Clustering, filled: SamplesTable) -> None:
    _publish(clustering, filled, 7)
    fresh = _publish(clustering, filled, 8, shards="b")
    assert clustering.counts(fresh)["assignments"] == 2


def test_a_publication_that_broke_off_is_not_seen_and_can_be_repeated(
    clustering: Clustering, filled: SamplesTable
) -> None:
    first = _publish(clustering, filled, 7)
    number = clustering.begin()
    files = [clustering.write_assignments(_assignments(filled, file, 8), file) for file in filled.files()]
    impossible = _publication(filled).model_copy(update={"samples_version": 2**70})  # fails at the last row, in Arrow
    with pytest.raises((pa.ArrowInvalid, OverflowError)):
        clustering.publish(number, files, _clusters(number, 8), _moves(number, 0.5), impossible)
    assert pq.read_table(clustering.path + "/clusters", columns=["cluster"])["cluster"].to_pylist().count(8) == 1
    assert clustering.latest() == first
    assert _all_clusters(clustering, filled, first) == [7] * 7
    assert clustering.clusters(first)["cluster"].to_pylist() == [7]
    second = _publish(clustering, filled, 9, shards="a", parent=1)
    assert second.generation == number == 2
    assert _all_clusters(clustering, filled, second) == [9] * 5 + [7] * 2
    assert clustering.clusters(second)["cluster"].to_pylist() == [9]
    assert clustering.moves(second).num_rows == 1


def test_of_two_writers_of_a_generation_the_second_loses(clustering: Clustering, filled: SamplesTable) -> None:
    number = clustering.begin()
    rival = Clustering(clustering.path)
    won = _publish(rival, filled, 7)
    with pytest.raises(TableError, match="lost a race: it prepared generation 1 of clustering dpm but the next is 2"):
        clustering.publish(number, [], _clusters(1), _moves(1), _publication(filled))
    assert clustering.latest() == won
    assert _all_clusters(clustering, filled, won) == [7] * 7


def test_a_rival_that_publishes_in_between_wins_alone(clustering: Clustering, filled: SamplesTable) -> None:
    class Slow(list[WrittenFile]):
        """Is asked for its files after the first look at the log; the rival is done by then."""

        def __iter__(self) -> Iterator[WrittenFile]:
            _publish(Clustering(clustering.path), filled, 7)
            return super().__iter__()

    number = clustering.begin()
    files = Slow(clustering.write_assignments(_assignments(filled, file, 8), file) for file in filled.files())
    with pytest.raises(TableError, match="lost a race"):
        clustering.publish(number, files, _clusters(number, 8), _moves(number), _publication(filled))
    (won,) = Clustering(clustering.path).generations()
    assert _all_clusters(clustering, filled, won) == [7] * 7
    assert clustering.clusters(won)["cluster"].to_pylist() == [7]


def test_assignments_of_other_rows_are_refused(clustering: Clustering, filled: SamplesTable) -> None:
    clustering.begin()
    one, two, _ = filled.files()
    with pytest.raises(TableError, match="assign the rows of one file in their order"):
        clustering.write_assignments(_assignments(filled, one, 7), two)
    assert list(Path(clustering.path, "assignments").glob("*.parquet")) == []


def test_rows_of_another_generation_are_refused(clustering: Clustering, filled: SamplesTable) -> None:
    clustering.begin()
    with pytest.raises(TableError, match=r"have generations \[5\]; expected 1 only"):
        clustering.publish(1, [], _clusters(5, 0), _moves(1), _publication(filled))
    assert clustering.latest() is None


def test_a_clustering_without_clusters_moves_or_rows_is_one(clustering: Clustering, samples: SamplesTable) -> None:
    clustering.begin()
    empty = clustering.publish(1, [], _clusters(1), _moves(1), _publication(samples))
    assert clustering.clusters(empty).equals(CLUSTERS.empty_table())
    assert clustering.moves(empty).schema == MOVES
    assert clustering.counts(empty) == {"assignments": 0, "clusters": 0, "moves": 0}


def test_a_missing_generation_is_a_sentence(clustering: Clustering, filled: SamplesTable) -> None:
    with pytest.raises(TableError, match=r"has no generation 3; it has \[\]"):
        clustering.generation(3)
    _publish(clustering, filled, 7)
    with pytest.raises(TableError, match=r"has no generation 3; it has \[1\]"):
        clustering.generation(3)


def test_a_worker_writes_assignments_with_a_pickled_copy(clustering: Clustering, filled: SamplesTable) -> None:
    number = clustering.begin()
    worker = pickle.loads(pickle.dumps(clustering))  # noqa: S301 - our own
    files = [worker.write_assignments(_assignments(filled, file, 5), file) for file in filled.files()]
    published = clustering.publish(number, files, _clusters(number, 5), _moves(number), _publication(filled))
    assert _all_clusters(clustering, filled, published) == [5] * 7


def test_what_is_carried_over_can_be_chosen(clustering: Clustering, filled: SamplesTable) -> None:
    _publish(clustering, filled, 7)
    one, two, three = filled.files()
    number = clustering.begin()
    new = clustering.write_assignments(_assignments(filled, two, 8), two)
    record = _publication(filled, parent=1)
    child = clustering.publish(number, [new], _clusters(number, 8), _moves(number), record, covering=[one, two])
    assert [clustering.read_assignments(child, file)["cluster"][0].as_py() for file in (one, two)] == [7, 8]
    with pytest.raises(TableError, match="no assignments for shard b"):
        clustering.assignment_file(child, three)
    assert clustering.counts(child)["assignments"] == 5


def test_generations_that_share_a_file_name_the_same_path(clustering: Clustering, filled: SamplesTable) -> None:
    first = _publish(clustering, filled, 7)
    second = _publish(clustering, filled, 8, shards="b", parent=1)
    paths = [[clustering.assignment_file(each, file).path for file in filled.files()] for each in (first, second)]
    assert paths[0][:2] == paths[1][:2]
    assert paths[0][2] != paths[1][2]


def test_the_dead_are_events_and_no_clusters(clustering: Clustering, samples: SamplesTable) -> None:
    clustering.begin()
    rows = _clusters(1, 3, 4).to_pylist()
    rows[1] |= {"size": 0, "event": "died", "parents": [4]}
    table = pa.Table.from_pylist(rows, schema=CLUSTERS)
    generation = clustering.publish(1, [], table, _moves(1), _publication(samples))
    assert clustering.clusters(generation)["cluster"].to_pylist() == [3]
    assert clustering.events(generation).equals(table)


def test_lineage_has_the_events_of_all_that_was_published(clustering: Clustering, filled: SamplesTable) -> None:
    assert clustering.lineage().equals(CLUSTERS.empty_table())
    _publish(clustering, filled, 7)
    _publish(clustering, filled, 8)
    number = clustering.begin()
    impossible = _publication(filled).model_copy(update={"samples_version": 2**70})
    with pytest.raises((pa.ArrowInvalid, OverflowError)):
        clustering.publish(number, [], _clusters(number, 9), _moves(number), impossible)
    assert clustering.lineage().equals(pa.concat_tables([_clusters(1, 7), _clusters(2, 8)]))


def test_who_lost_already_commits_nothing(clustering: Clustering, filled: SamplesTable) -> None:
    number = clustering.begin()
    rival = Clustering(clustering.path)
    tables = [Path(clustering.path, name, "_delta_log") for name in ("assignments", "clusters", "moves", "generations")]

    class Slow(list[WrittenFile]):
        """Is asked for its files between the first look at the log and the first commit."""

        def __iter__(self) -> Iterator[WrittenFile]:
            _publish(rival, filled, 7)
            self.logs = [len(list(each.iterdir())) for each in tables]
            return super().__iter__()

    files = Slow(clustering.write_assignments(_assignments(filled, file, 8), file) for file in filled.files())
    with pytest.raises(TableError, match="lost a race"):
        clustering.publish(number, files, _clusters(number, 8), _moves(number), _publication(filled))
    assert [len(list(each.iterdir())) for each in tables] == files.logs


def test_tables_of_an_earlier_shoal_get_the_columns_they_lack(
    collection: Collection, filled: SamplesTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        for module, name, schema in (
            ("clusterings", "CLUSTERS", CLUSTERS),
            ("generations", "GENERATIONS", GENERATIONS),
        ):
            column = schema.get_field_index("medoid_score" if name == "CLUSTERS" else "statistics")
            earlier.setattr(f"pipeline.tables.{module}.{name}", schema.remove(column))
        old = collection.clustering("dpm")
        number = old.begin()
        clusters = _clusters(number, 7).drop_columns(["medoid_score"])
        first = old.publish(number, [], clusters, _moves(number), _publication(filled))
    assert "statistics" not in DeltaTable(f"{old.path}/generations").schema().to_json()
    clustering = collection.clustering("dpm")
    assert clustering.latest() == first
    assert clustering.clusters(first).equals(_clusters(1, 7))
    second = _publish(clustering, filled, 8)
    assert clustering.generations() == [first, second]
    assert clustering.lineage().equals(pa.concat_tables([_clusters(1, 7), _clusters(2, 8)]))


def test_what_was_begun_before_an_interruption_is_not_published(clustering: Clustering) -> None:
    number = clustering.begin()
    Clustering(clustering.path).interrupt()
    record = Publication(samples_version=1, artifact="a", config_digest="c", decision="fit")
    with pytest.raises(TableError, match="lost a race"):
        clustering.publish(number, [], CLUSTERS.empty_table(), MOVES.empty_table(), record)
    assert clustering.latest() is None
    again = clustering.publish(clustering.begin(), [], CLUSTERS.empty_table(), MOVES.empty_table(), record)
    assert again.generation == number == 1
