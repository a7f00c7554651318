"""Generations end: what only they named goes, and nothing else, however often the end breaks off."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from pipeline.tables import ending
from pipeline.tables.clusterings import Clustering, EndedFiles, Generation, Publication
from pipeline.tables.collection import Collection
from pipeline.tables.delta import Delta, WrittenFile
from pipeline.tables.generations import GenerationsTable
from pipeline.tables.samples import SamplesTable
from pipeline.tables.schema import CLUSTERS, GENERATIONS, MOVES, TableError

Rows = Callable[..., pa.Table]
Publish = Callable[..., Generation]
TABLES = ("assignments", "clusters", "moves")


@pytest.fixture
def filled(samples: SamplesTable, rows: Rows) -> SamplesTable:
    """Two files of shard a and one of shard b."""
    samples.commit([samples.write(part) for part in (rows("a", range(3)), rows("a", range(3, 5)), rows("b", range(2)))])
    return samples


@pytest.fixture
def clustering(collection: Collection, filled: SamplesTable) -> Clustering:
    """Without generations."""
    return collection.clustering("dpm")


def _content(clustering: Clustering, samples: SamplesTable) -> dict[int, list[Any]]:
    """All that readers see of each generation, after plain deltalake has read its versions too."""
    found = {}
    for each in clustering.generations():
        files = samples.files(version=each.samples_version)
        found[each.generation] = [
            *(clustering.read_assignments(each, file).to_pylist() for file in files),
            clustering.events(each).to_pylist(),
            clustering.moves(each).to_pylist(),
            each.model_dump(exclude={"clusters_version", "moves_version"}),
        ]
        for name in TABLES:
            _plain(clustering, name, getattr(each, f"{name}_version"))
    return found


def _plain(clustering: Clustering, name: str, version: int | None = None) -> list[dict[str, Any]]:
    uris = DeltaTable(f"{clustering.path}/{name}", version=version).file_uris()
    return [row for uri in sorted(uris) for row in pq.read_table(uri).to_pylist()]


def _on_disk(clustering: Clustering, name: str) -> set[str]:
    return {path.name for path in Path(clustering.path, name).glob("*.parquet")}


def _rows_on_disk(clustering: Clustering) -> dict[str, list[str]]:
    return {
        name: sorted(str(row) for path in _on_disk(clustering, name) for row in _rows_of(clustering, name, path))
        for name in TABLES
    }


def _rows_of(clustering: Clustering, name: str, path: str) -> list[dict[str, Any]]:
    return list(pq.read_table(Path(clustering.path, name, path)).to_pylist())


def test_those_that_remain_are_as_they_were(clustering: Clustering, filled: SamplesTable, publish: Publish) -> None:
    for cluster in (7, 8, 9):
        publish(clustering, cluster)
    before = _content(clustering, filled)
    size = sum(path.stat().st_size for path in Path(clustering.path, "assignments").glob("*.parquet"))
    ended = clustering.end([1, 2])
    assert (ended.generations, ended.files) == ((1, 2), 2 * (3 + 1 + 1))
    assert 0 < size * 2 / 3 < ended.bytes
    after = _content(Clustering(clustering.path), filled)
    assert after == _content(clustering, filled) == {3: before[3]}
    assert {name: len(_on_disk(clustering, name)) for name in TABLES} == {"assignments": 3, "clusters": 2, "moves": 1}
    with pytest.raises(TableError, match=r"has no generation 1; it has \[3\]"):
        clustering.generation(1)
    assert clustering.end([1, 2]) == EndedFiles((), 0, 0)


def test_what_became_of_clusters_is_known_for_ever_and_their_samples_are_not(
    clustering: Clustering, publish: Publish
) -> None:
    for cluster in (7, 8, 9, 10):
        publish(clustering, cluster)
    before = clustering.lineage()
    clustering.end([3])
    clustering.end([1])
    medoids = ["medoid_key", "medoid_shard", "medoid_score"]
    after = clustering.lineage()
    assert after.drop_columns(medoids).equals(before.drop_columns(medoids))
    kept = pc.is_in(before["generation"], value_set=pa.array([2, 4]))
    assert after.filter(kept).equals(before.filter(kept))
    assert {value for name in medoids for value in after.filter(pc.invert(kept))[name].to_pylist()} == {None}
    assert len(_on_disk(clustering, "clusters")) == 3


def test_a_shared_file_goes_with_the_last_that_names_it(
    clustering: Clustering, filled: SamplesTable, publish: Publish
) -> None:
    first = publish(clustering, 7)
    second = publish(clustering, 8, shards="b", parent=1)
    publish(clustering, 9)
    shared, alone = (clustering.assignment_file(first, file).path for file in (filled.files()[0], filled.files()[2]))
    before = _content(clustering, filled)
    clustering.end([1])
    assert shared in _on_disk(clustering, "assignments")
    assert alone not in _on_disk(clustering, "assignments")
    assert _content(clustering, filled) == {2: before[2], 3: before[3]}
    clustering.end([second.generation])
    assert shared not in _on_disk(clustering, "assignments")
    assert _content(clustering, filled) == {3: before[3]}


def test_numbers_are_never_given_again(
    clustering: Clustering, filled: SamplesTable, publish: Publish, collection: Collection
) -> None:
    publish(clustering, 7)
    publish(clustering, 8)
    clustering.end([2])
    assert Clustering(clustering.path).begin() == 3
    clustering.end([1])
    assert (clustering.latest(), collection.clusterings()) == (None, [])
    assert _rows_on_disk(clustering)["assignments"] == []
    assert Clustering(clustering.path).begin() == clustering.begin() == 3
    third = publish(clustering, 9)
    assert (third.generation, clustering.lineage()["cluster"].to_pylist()) == (3, [7, 8, 9])
    assert clustering.end([3]).generations == (3,)
    assert clustering.begin() == 4


def test_a_file_that_no_version_named_is_left_to_its_writer(
    clustering: Clustering, filled: SamplesTable, publish: Publish
) -> None:
    publish(clustering, 7)
    publish(clustering, 8)
    (file, *_) = filled.files()
    assigned = clustering.read_assignments(clustering.generation(1), file)
    written = clustering.write_assignments(assigned, file)
    clustering.end([1])
    assert clustering.read_written(written).equals(assigned)
    assert clustering.end([]) == EndedFiles((), 0, 0)


def test_what_a_publication_left_that_broke_off_goes_with_the_next_end(
    clustering: Clustering, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(clustering, 7)
    before = _rows_on_disk(clustering)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.tables.generations.GenerationsTable.append", _interrupt)
        publish(clustering, 8)
    swept = clustering.retain(1)
    assert (swept.generations, swept.files) == ((), 3 + 1 + 1)
    assert clustering.retain(1) == EndedFiles((), 0, 0)
    assert _rows_on_disk(clustering) == before
    assert [len(_plain(clustering, name)) for name in TABLES] == [7, 1, 1]
    assert publish(clustering, 9).generation == 2


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _break_off(patch: pytest.MonkeyPatch, stop: int) -> list[str]:
    """Break off before the commit or deletion number `stop`, which is after the one before."""
    steps: list[str] = []

    def breaking(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            if len(steps) == stop:
                raise KeyboardInterrupt
            steps.append(name)
            return real(*arguments)

        return call

    patch.setattr(Delta, "commit", breaking("commit", Delta.commit))
    patch.setattr(ending, "delete", breaking("delete", ending.delete))
    return steps


@pytest.mark.parametrize("stops", [(1, 4, 7), pytest.param(range(8), marks=pytest.mark.slow)])
def test_an_end_that_breaks_off_anywhere_is_finished_by_the_next(
    clustering: Clustering, filled: SamplesTable, publish: Publish, tmp_path: Path, stops: Sequence[int]
) -> None:
    publish(clustering, 7)
    publish(clustering, 8, shards="b", parent=1)
    publish(clustering, 9, shards="a", parent=2)
    shutil.copytree(clustering.path, tmp_path / "as it was")
    before = _content(clustering, filled)
    clustering.end([1, 2])
    expected = (_content(clustering, filled), _rows_on_disk(clustering), clustering.lineage().to_pylist())
    for stop in stops:
        shutil.rmtree(clustering.path)
        shutil.copytree(tmp_path / "as it was", clustering.path)
        again = Clustering(clustering.path)
        with pytest.MonkeyPatch.context() as patch:
            steps = _break_off(patch, stop)
            with pytest.raises(KeyboardInterrupt) if stop < 7 else nullcontext():
                again.end([1, 2])
        assert _content(again, filled) == (before if stop < 4 else {3: before[3]})
        again.end([1, 2])
        assert (_content(again, filled), _rows_on_disk(again), again.lineage().to_pylist()) == expected
    assert steps == ["commit"] * 4 + ["delete"] * 3


@pytest.mark.slow
def test_another_end_at_the_same_time_is_none_the_worse(
    clustering: Clustering, filled: SamplesTable, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cluster in (7, 8, 9):
        publish(clustering, cluster)
    before = _content(clustering, filled)
    real, rivals = Delta.commit, [Clustering(clustering.path)]

    def commit(*arguments: Any) -> int:
        if rivals:
            rivals.pop().end([2])
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Delta, "commit", commit)
        clustering.end([1])
    assert _content(clustering, filled) == {3: before[3]}
    assert len(_rows_on_disk(clustering)["assignments"]) == 7


def test_a_publication_while_generations_end_is_not_lost(
    clustering: Clustering, filled: SamplesTable, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cluster in (7, 8):
        publish(clustering, cluster)
    real, rivals = GenerationsTable.keep, [Clustering(clustering.path)]

    def keep(*arguments: Any) -> Any:
        if rivals:
            publish(rivals.pop(), 9)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(GenerationsTable, "keep", keep)
        clustering.end([1])
    third = clustering.generation(3)
    assert sorted(_content(clustering, filled)) == [2, 3]
    assert clustering.clusters(third)["cluster"].to_pylist() == [9]
    assert clustering.lineage()["cluster"].to_pylist() == [7, 8, 9]


@pytest.mark.slow
def test_a_publication_stands_whatever_a_second_writer_left_of_the_same(
    clustering: Clustering, filled: SamplesTable, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(clustering, 7)
    real, calls = GenerationsTable.append, []

    def append(*arguments: Any) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            with pytest.raises(KeyboardInterrupt):
                publish(Clustering(clustering.path), 9)
        elif len(calls) == 2:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(GenerationsTable, "append", append)
        publish(clustering, 8)
    before = _content(clustering, filled)
    assert clustering.clusters(clustering.generation(2))["cluster"].to_pylist() == [8]
    assert clustering.lineage()["cluster"].to_pylist() == [7, 9]  # until somebody looks
    clustering.end([1])
    assert _content(clustering, filled) == {2: before[2]}
    assert clustering.begin() == 3
    assert clustering.lineage()["cluster"].to_pylist() == [7, 8]


def test_who_publishes_while_generations_end_loses(
    clustering: Clustering, filled: SamplesTable, publish: Publish
) -> None:
    publish(clustering, 7)
    publish(clustering, 8)
    before = _content(clustering, filled)
    number = clustering.begin()

    class Slow(list[WrittenFile]):
        """Is asked for its files between the first look at the log and the first commit."""

        def __iter__(self) -> Iterator[WrittenFile]:
            Clustering(clustering.path).end([1])
            return super().__iter__()

    record = Publication(samples_version=1, artifact="d", config_digest="c", parent=1, decision="refit")
    with pytest.raises(TableError, match="lost a race: generations of clustering dpm were ended while it published"):
        clustering.publish(number, Slow(), CLUSTERS.empty_table(), MOVES.empty_table(), record)
    assert _content(clustering, filled) == {2: before[2]}
    with pytest.raises(TableError, match="lost a race"):  # it began before generation 1 ended
        clustering.publish(number, [], CLUSTERS.empty_table(), MOVES.empty_table(), record)
    with pytest.raises(TableError, match=r"has no generation 1; it has \[2\]"):
        clustering.publish(clustering.begin(), [], CLUSTERS.empty_table(), MOVES.empty_table(), record)


def test_the_newest_are_kept(clustering: Clustering, filled: SamplesTable, publish: Publish) -> None:
    assert clustering.retain(1) == EndedFiles((), 0, 0)
    for cluster in (7, 8, 9):
        publish(clustering, cluster)
    assert clustering.retain(3) == EndedFiles((), 0, 0)
    assert clustering.retain(2).generations == (1,)
    assert sorted(_content(clustering, filled)) == [2, 3]
    with pytest.raises(TableError, match="0 generations are to be kept; keep 1 or more"):
        clustering.retain(0)


def test_a_number_that_never_was_is_a_sentence(clustering: Clustering, publish: Publish) -> None:
    publish(clustering, 7)
    for number in (0, 2):
        with pytest.raises(TableError, match=rf"dpm has no generation {number} to end; it has \[1\]"):
            clustering.end([1, number])
    assert clustering.latest() is not None


@pytest.mark.slow
def test_generations_of_an_earlier_shoal_end_too(
    collection: Collection, clustering: Clustering, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as earlier:
        for module, name, schema in (
            ("clusterings", "CLUSTERS", CLUSTERS),
            ("generations", "GENERATIONS", GENERATIONS),
        ):
            column = schema.get_field_index("medoid_score" if name == "CLUSTERS" else "statistics")
            earlier.setattr(f"pipeline.tables.{module}.{name}", schema.remove(column))
        earlier.setattr("pipeline.tables.delta.conform", _conform_anyway)
        old = collection.clustering("dpm")
        publish(old, 7)
        publish(old, 8)
    assert clustering.end([1]).generations == (1,)
    assert [each.generation for each in clustering.generations()] == [2]
    assert clustering.lineage()["cluster"].to_pylist() == [7, 8]


def _conform_anyway(table: pa.Table, schema: pa.Schema) -> pa.Table:
    return table.select(schema.names).cast(schema)


@pytest.mark.slow
def test_a_reader_whose_rows_are_replaced_reads_them_again(
    clustering: Clustering, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(clustering, 7)
    publish(clustering, 8)
    real, rivals = Delta.read_all, [Clustering(clustering.path)]

    def read_all(table: Delta, files: Any) -> pa.Table:
        if rivals:
            rival = rivals.pop()
            rival.end([1])
            rival.published.forget(rival.published.ended())
        return real(table, files)

    with monkeypatch.context() as patch:
        patch.setattr(Delta, "read_all", read_all)
        assert [each.generation for each in clustering.generations()] == [2]
    (file,) = Path(clustering.path, "generations").glob("*.parquet")
    file.unlink()
    with pytest.raises(TableError, match="cannot be read"):
        clustering.generations()
