"""The shards table: one row per shard, the newest."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import TempPathFactory

from pipeline.tables.schema import SHARDS
from pipeline.tables.shards import ShardRecord, ShardsTable


def _rows(*records: ShardRecord) -> pa.Table:
    return pa.Table.from_pylist([vars(record) for record in records], schema=SHARDS)


def _record(shard: str, size: int) -> ShardRecord:
    return ShardRecord(shard, size, f"sha256:{size}", samples=2, rejects=1)


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
