"""Tables in an object store: exactly once, whatever becomes of a request, and no more requests than needed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
from object_store import DROPPED, REFUSED, UNANSWERED, ObjectStore

from pipeline.tables.place import children, place
from pipeline.tables.samples import SamplesTable, TableProperties
from pipeline.tables.schema import SHARDS, TableError
from pipeline.tables.shards import ShardRecord, ShardsTable

Rows = Callable[..., pa.Table]
FIRST_COMMIT = rf"PUT .*_delta_log/{1:020d}\.json"


@pytest.fixture
def remote(bucket: ObjectStore, properties: TableProperties) -> SamplesTable:
    return SamplesTable.create(f"{bucket.url}/a table/samples", properties)


def test_rows_come_back_as_they_were_written(remote: SamplesTable, rows: Rows, reject: Rows) -> None:
    written = rows("s3://b/a.tar", range(5))
    file = remote.write(written)
    assert remote.done_shards() == set()
    assert remote.commit([file, remote.write(reject("s3://b/a.tar", "bad"), "rejected")]) == 1
    again = SamplesTable.open(remote.path)
    assert again.done_shards() == {"s3://b/a.tar"}
    assert again.properties == remote.properties
    (found,) = again.files()
    assert found.bytes == file.size
    assert again.read(found).select(written.column_names).to_pylist() == written.to_pylist()
    assert again.rejects()["key"].to_pylist() == ["bad"]
    again.discard([file])
    with pytest.raises(TableError, match="cannot be read"):
        again.read(found)


def test_a_table_that_is_not_there_is_a_sentence(bucket: ObjectStore) -> None:
    with pytest.raises(TableError, match=r"no Delta table at s3://.*/missing; check the path"):
        SamplesTable.open(f"{bucket.url}/missing")
    assert ShardsTable(f"{bucket.url}/missing").records() == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", [REFUSED, DROPPED])
def test_requests_that_fail_twice_and_then_work_are_not_noticed(
    bucket: ObjectStore, remote: SamplesTable, rows: Rows, kind: str
) -> None:
    for line in (r"PUT .*\.parquet", FIRST_COMMIT, r"GET .*\.parquet"):
        bucket.fail(line, kind)
    remote.commit([remote.write(rows("a", range(4)))])
    again = SamplesTable.open(remote.path)
    (file,) = again.files()
    assert again.read(file).num_rows == 4
    assert len(bucket.failed) == 6


def test_a_commit_whose_answer_is_lost_is_one_commit(bucket: ObjectStore, remote: SamplesTable, rows: Rows) -> None:
    bucket.fail(FIRST_COMMIT, UNANSWERED, times=1)
    assert remote.commit([remote.write(rows("a", range(4)))], ("extract", 0)) == 1
    assert len(bucket.failed) == 1
    assert remote.commit([remote.write(rows("b", range(4)))], ("extract", 1)) == 2
    assert (remote.version, remote.count(), remote.done_shards()) == (2, 8, {"a", "b"})


def _commit_at_once(bucket: ObjectStore, path: str, parts: list[pa.Table]) -> list[str]:
    """Commit from as many writers, whose first attempts meet; "" or the error of each."""
    tables = [SamplesTable.open(path) for _ in parts]
    files = [table.write(part) for table, part in zip(tables, parts, strict=True)]
    bucket.race(FIRST_COMMIT, len(parts))

    def commit(number: int) -> str:
        try:
            tables[number].commit([files[number]], (f"writer-{number}", 0))
        except TableError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(parts)) as threads:
        outcome = list(threads.map(commit, range(len(parts))))
    assert not any(meeting.left for meeting in bucket.meetings), "the writers did not meet"
    return outcome


def test_of_two_writers_who_race_for_a_shard_one_wins(bucket: ObjectStore, remote: SamplesTable, rows: Rows) -> None:
    outcome = _commit_at_once(bucket, remote.path, [rows("a", range(3)), rows("a", range(3))])
    assert sorted(map(bool, outcome)) == [False, True]
    assert "lost a race: 1 of 1 shards" in max(outcome)
    assert (remote.version, remote.count()) == (1, 3)


def test_writers_who_race_with_different_shards_all_win(bucket: ObjectStore, remote: SamplesTable, rows: Rows) -> None:
    assert _commit_at_once(bucket, remote.path, [rows(shard, range(3)) for shard in "abc"]) == ["", "", ""]
    assert (remote.version, remote.done_shards(), remote.count()) == (3, {"a", "b", "c"}, 9)


def test_a_commit_asks_the_store_no_more_when_there_were_more_before(
    bucket: ObjectStore, remote: SamplesTable, rows: Rows
) -> None:
    asked = []
    for number in range(8):
        file = remote.write(rows(f"shard {number}", range(1)))
        before = bucket.count("")
        remote.commit([file], ("extract", number))
        asked.append(bucket.count("") - before)
    assert asked[0] > 1
    assert len(set(asked[2:])) == 1


def test_the_shards_table_lives_there_too(bucket: ObjectStore) -> None:
    table, records = ShardsTable(f"{bucket.url}/shards"), {}
    for number in range(4):
        record = ShardRecord(f"s3://b/{number % 3:02d}.tar", number, "sha256:0", 1, 0, number)
        table.upsert(pa.Table.from_pylist([vars(record)], schema=SHARDS))
        records[record.shard] = record
    again = ShardsTable(table.path)
    assert (again.records(), again.count(), again.version) == (records, 3, 4)


def _upsert(path: str, shard: str) -> ShardRecord:
    record = ShardRecord(shard, 1, "sha256:0", 1, 0, 0)
    ShardsTable(path).upsert(pa.Table.from_pylist([vars(record)], schema=SHARDS))
    return record


def _data_files(path: str) -> int:
    return sum(each.name.endswith(".parquet") for each in children(place(path)))


def test_writers_of_the_shards_table_who_race_leave_no_file_behind(bucket: ObjectStore) -> None:
    path = f"{bucket.url}/shards"
    first = _upsert(path, "a")
    bucket.race(rf"PUT .*_delta_log/{2:020d}\.json", 2)
    with ThreadPoolExecutor(2) as threads:
        records = list(threads.map(lambda shard: _upsert(path, shard), "bc"))
    assert not any(meeting.left for meeting in bucket.meetings), "the writers did not meet"
    assert ShardsTable(path).records() == dict(zip("abc", [first, *records], strict=True))
    assert bucket.count(r"^PUT .*\.parquet") == 4
    assert _data_files(path) == 3


def test_a_row_whose_commit_got_no_answer_stays(bucket: ObjectStore) -> None:
    path = f"{bucket.url}/shards"
    bucket.fail(FIRST_COMMIT, UNANSWERED, times=1)
    record = _upsert(path, "a")
    assert len(bucket.failed) == 1
    assert ShardsTable(path).records() == {"a": record}
