"""The shards table: one row per shard, the newest."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, Schema
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import TempPathFactory

from pipeline.tables.delta import COMMIT_ATTEMPTS, Change, Delta, Layout
from pipeline.tables.schema import SHARDS, TableError
from pipeline.tables.shards import CROWD, LAYOUT, ShardRecord, ShardsTable


def _rows(*records: ShardRecord) -> pa.Table:
    return pa.Table.from_pylist([vars(record) for record in records], schema=SHARDS)


def _record(shard: str, size: int) -> ShardRecord:
    return ShardRecord(shard, size, f"sha256:{size}", samples=2, rejects=1, modified=10**18 + size)


def test_before_the_first_shard_it_is_empty(tmp_path: Path) -> None:
    table = ShardsTable(tmp_path / "shards")
    assert (table.read().num_rows, table.records(), table.count(), table.version) == (0, {}, 0, None)
    assert not (tmp_path / "shards").exists()


def test_a_shard_that_was_read_again_replaces_its_row(tmp_path: Path) -> None:
    table = ShardsTable(tmp_path / "shards")
    table.upsert(_rows(_record("a", 1), _record("c", 1)))
    table.upsert(_rows(_record("b", 2)))
    assert table.upsert(_rows(_record("c", 3), _record("d", 3))) == 3
    expected = [_record("a", 1), _record("b", 2), _record("c", 3), _record("d", 3)]
    assert list(table.records().values()) == expected
    assert table.count() == 4


def test_no_rows_are_no_commit(tmp_path: Path) -> None:
    table = ShardsTable(tmp_path / "shards")
    assert table.upsert(_rows()) == 0
    assert table.count() == 0


@settings(max_examples=10)
@given(batches=st.lists(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 99)), max_size=5))
def test_it_is_a_dictionary_that_is_updated(tmp_path_factory: TempPathFactory, batches: list[dict[str, int]]) -> None:
    table = ShardsTable(tmp_path_factory.mktemp("t") / "shards")
    expected: dict[str, int] = {}
    for batch in batches:
        table.upsert(_rows(*(_record(shard, size) for shard, size in batch.items())))
        expected.update(batch)
    assert {shard: record.size for shard, record in table.records().items()} == expected
    assert table.read()["shard"].to_pylist() == sorted(expected)


@settings(max_examples=10)
@given(turns=st.lists(st.tuples(st.integers(0, 1), st.sampled_from("abcdefgh")), max_size=12))
def test_two_writers_that_remember_share_one_dictionary(
    tmp_path_factory: TempPathFactory, turns: list[tuple[int, str]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "shards"
    writers, expected = [ShardsTable(path), ShardsTable(path)], {}
    for number, (writer, shard) in enumerate(turns):
        writers[writer].upsert(_rows(_record(shard, number)))
        expected[shard] = number
    assert {shard: record.size for shard, record in ShardsTable(path).records().items()} == expected


def test_files_of_one_size_become_one_and_no_row_is_lost(tmp_path: Path) -> None:
    table, most = ShardsTable(tmp_path / "shards"), 0
    for number in range(3 * CROWD + 2):
        table.upsert(_rows(_record(f"{number * 37 % 100:03d}", number)))
        most = max(most, len(Delta(table.path, LAYOUT).files()))
    assert most == CROWD + 2  # two that were merged before, and a crowd
    expected = {f"{number * 37 % 100:03d}": number for number in range(3 * CROWD + 2)}
    assert {shard: record.size for shard, record in table.records().items()} == expected
    assert table.count() == len(expected)


@pytest.fixture
def old_table(tmp_path: Path) -> ShardsTable:
    """Made before `modified` was recorded: shards a and b."""
    old = pa.schema([each for each in SHARDS if each.name != "modified"])
    delta = Delta(tmp_path / "shards", Layout(old, statistics=("shard",)))
    delta.create()
    row = {"shard": "a", "size": 1, "checksum": "x", "samples": 2, "rejects": 0}
    rows = [pa.Table.from_pylist([{**row, "shard": shard}], schema=old) for shard in "ab"]
    first, second = (Change([delta.write(each)]) for each in rows)
    delta.commit(lambda present: first)
    delta.commit(lambda present: second)
    return ShardsTable(tmp_path / "shards")


def test_a_table_from_before_a_column_reads_as_null_and_is_left_alone(old_table: ShardsTable) -> None:
    assert old_table.records() == {shard: ShardRecord(shard, 1, "x", 2, 0, None) for shard in "ab"}
    assert old_table.read().schema == SHARDS
    assert (old_table.version, old_table.count()) == (2, 2)


def test_a_table_from_before_a_column_is_extended_once_when_it_is_written(old_table: ShardsTable) -> None:
    assert old_table.upsert(_rows(_record("b", 5))) == 4  # the column, and the row
    assert ShardsTable(old_table.path).upsert(_rows(_record("c", 6))) == 5
    assert old_table.records() == {
        "a": ShardRecord("a", 1, "x", 2, 0, None),
        "b": _record("b", 5),
        "c": _record("c", 6),
    }
    assert DeltaTable(old_table.path).schema() == Schema.from_arrow(SHARDS)


def test_of_two_that_extend_a_table_at_once_both_go_on(old_table: ShardsTable) -> None:
    first, second = Delta(old_table.path, LAYOUT), Delta(old_table.path, LAYOUT)
    assert first.version == second.version == 2
    first.extend()
    second.extend()
    assert second.version == 3


class _Overtaken(Delta):
    """Others always commit between its look at the log and what it does then."""

    def __init__(self, rival: Delta) -> None:
        super().__init__(rival.path, LAYOUT)
        self._rival = rival

    def _handle_at(self, version: int | None) -> DeltaTable:
        handle = super()._handle_at(version)
        self._rival.commit(lambda present: Change([]))
        return handle


def test_one_that_cannot_extend_a_table_for_others_says_so(old_table: ShardsTable) -> None:
    with pytest.raises(TableError, match=f"lost a race {COMMIT_ATTEMPTS} times"):
        _Overtaken(Delta(old_table.path, LAYOUT)).extend()
    assert old_table.version == 2 + COMMIT_ATTEMPTS
    assert "modified" not in [each.name for each in DeltaTable(old_table.path).schema().fields]
