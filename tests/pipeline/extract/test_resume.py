"""Which shards are left to extract, and which were changed behind the table's back."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from object_store import ObjectStore

from pipeline.extract import resume
from pipeline.extract.resume import STEP, Todo, Verify, plan_shards
from pipeline.extract.rows import ok_rows, rejected_rows
from pipeline.ingest.shards import Reject, Sample, list_shards, read_samples
from pipeline.tables.collection import Collection
from pipeline.tables.samples import TableProperties
from pipeline.tables.schema import REJECTED, SHARDS, Reason
from pipeline.tables.shards import ShardRecord
from pipeline.tables.storage import open_filesystem

PROPERTIES = TableProperties(dimension=2, backbone="x", backbone_digest="0", l2_normalised=False, preprocessing={})
BEFORE, LATER = 10**18, 2 * 10**18  # ns since 1970


class World:
    """A table with shards a.tar (a sample) and b.tar (a reject), as they lie on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = Collection.create(folder / "table")
        self.a, self.b = self.store("a.tar", b"aaaa"), self.store("b.tar", b"bbbbbb")
        samples = self.table.create_samples(PROPERTIES)
        row = ok_rows([Sample("k", self.a, 512, 3, None, b"", "png")], np.ones((1, 2), np.float32))
        reject = rejected_rows([Reject("", self.b, 0, 6, None, Reason.not_a_tar, "no header")])
        samples.commit([samples.write(row), samples.write(reject, REJECTED)])
        self.record(*(self.as_read(shard) for shard in (self.a, self.b)))

    def store(self, name: str, content: bytes, modified: int = BEFORE) -> str:
        path = self.folder / name
        path.write_bytes(content)
        os.utime(path, ns=(0, modified))
        return str(path)

    def as_read(self, shard: str) -> ShardRecord:
        content = Path(shard).read_bytes()
        checksum = "sha256:" + hashlib.sha256(content).hexdigest()
        return ShardRecord(shard, len(content), checksum, 1, 0, Path(shard).stat().st_mtime_ns)

    def record(self, *records: ShardRecord) -> None:
        self.table.shards.upsert(pa.Table.from_pylist([asdict(each) for each in records], schema=SHARDS))

    def recorded(self, shard: str) -> ShardRecord:
        return self.table.shards.records()[shard]

    def plan(self, *shards: str, verify: Verify = "auto") -> tuple[Todo, list[tuple[str, int, int | None]]]:
        """The plan, and its progress: how many shards had to be read."""
        progress: list[tuple[str, int, int | None]] = []
        todo = plan_shards(shards, self.table, verify, lambda *told: progress.append(told))
        return todo, progress


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_shards_with_rows_of_either_kind_are_skipped_and_the_rest_is_to_do_once_in_the_order_given(
    world: World,
) -> None:
    c, d = world.store("c.tar", b"c"), world.store("d.tar", b"d")
    todo, read = world.plan(d, world.b, c, world.a, d)
    assert (todo.shards, todo.skipped, todo.changed, todo.total) == ([d, c], [world.b, world.a], [], 4)
    assert read == []


@pytest.mark.parametrize("verify", ["auto", "always", "never"])
def test_a_skipped_shard_of_another_size_has_changed(world: World, verify: Verify) -> None:
    world.store("a.tar", b"longer")
    assert world.plan(world.a, world.b, verify=verify)[0].changed == [world.a]


def test_a_shard_that_was_rewritten_with_the_same_size_has_changed_and_stays_so(world: World) -> None:
    world.store("b.tar", b"BBBBBB", LATER)
    for _ in range(2):
        todo, read = world.plan(world.a, world.b)
        assert (todo.skipped, todo.changed) == ([world.a, world.b], [world.b])
        assert read == [(STEP, 1, 1)]
    assert world.plan(world.b, verify="never")[0].changed == []
    assert world.recorded(world.b).modified == BEFORE


def test_a_shard_that_was_only_touched_is_read_once(world: World) -> None:
    world.store("a.tar", b"aaaa", LATER)
    assert world.plan(world.a, world.b) == (Todo([], [world.a, world.b], []), [(STEP, 1, 1)])
    assert world.recorded(world.a) == world.as_read(world.a)
    assert world.recorded(world.a).modified == LATER
    assert world.plan(world.a, world.b)[1] == []


def test_a_shard_whose_time_was_never_recorded_is_read_once(world: World) -> None:
    world.record(replace(world.as_read(world.a), modified=None), replace(world.as_read(world.b), modified=None))
    world.store("b.tar", b"BBBBBB")
    assert world.plan(world.a, world.b, verify="never") == (Todo([], [world.a, world.b], []), [])
    todo, read = world.plan(world.a, world.b)
    assert (todo.changed, read) == ([world.b], [(STEP, 1, 2), (STEP, 2, 2)])
    todo, read = world.plan(world.a, world.b)
    assert (todo.changed, read) == ([world.b], [(STEP, 1, 1)])


def test_a_shard_that_was_rewritten_within_a_tick_of_the_clock_is_noticed_by_reading_always(world: World) -> None:
    world.store("a.tar", b"AAAA", BEFORE)
    assert world.plan(world.a)[0].changed == []
    todo, read = world.plan(world.a, world.b, verify="always")
    assert (todo.changed, len(read)) == ([world.a], 2)


def test_always_reading_commits_nothing_when_nothing_is_new(world: World) -> None:
    version = world.table.shards.version
    assert world.plan(world.a, world.b, verify="always")[0].changed == []
    assert world.table.shards.version == version


def test_a_skipped_shard_that_nobody_can_find_or_read_is_not_called_changed(world: World) -> None:
    Path(world.a).unlink()
    Path(world.b).unlink()
    Path(world.b).mkdir()
    for verify in ("auto", "always"):
        todo, read = world.plan(world.a, world.b, verify=verify)
        assert (todo.skipped, todo.changed, read) == ([world.a, world.b], [], [])


def test_a_shard_without_a_record_is_skipped_like_any_other(world: World) -> None:
    samples = world.table.samples
    c = world.store("c.tar", b"c")
    samples.commit([samples.write(rejected_rows([Reject("", c, 0, 1, None, Reason.not_a_tar, "")]), REJECTED)])
    assert world.plan(c, world.a) == (Todo([], [c, world.a], []), [])


def test_a_table_that_never_recorded_a_shard_is_planned_from_its_samples(world: World, tmp_path: Path) -> None:
    other = Collection.create(tmp_path / "other")
    samples = other.create_samples(PROPERTIES)
    samples.commit([samples.write(rejected_rows([Reject("", world.a, 0, 1, None, Reason.not_a_tar, "")]), REJECTED)])
    assert plan_shards([world.a, world.b], other, "always") == Todo([world.b], [world.a], [])


def test_a_record_without_a_checksum_of_bytes_has_only_its_size(world: World) -> None:
    world.record(replace(world.as_read(world.a), checksum="etag", modified=1), ShardRecord(world.b, None, None, 1, 0))
    assert world.plan(world.a, world.b, verify="always") == (Todo([], [world.a, world.b], []), [])


def _many(world: World, count: int) -> Sequence[str]:
    """Shards that were touched since, but for every third, which has other bytes."""
    shards = [world.store(f"{number:03d}.tar", b"x" * 9) for number in range(count)]
    samples = world.table.samples
    rejects = [rejected_rows([Reject("", shard, 0, 1, None, Reason.not_a_tar, "")]) for shard in shards]
    samples.commit([samples.write(each, REJECTED) for each in rejects])
    world.record(*map(world.as_read, shards))
    for number, shard in enumerate(shards):
        world.store(Path(shard).name, (b"x" if number % 3 else b"y") * 9, LATER)
    return shards


def test_many_shards_are_read_at_once_and_recorded_in_groups(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "_RECORDED", 16)
    shards = _many(world, 50)
    version = world.table.shards.version or 0
    todo, read = world.plan(*shards)
    assert todo.changed == list(shards[::3])
    assert read == [(STEP, number, 50) for number in range(1, 51)]
    assert world.table.shards.version == version + 4
    assert len(world.plan(*shards)[1]) == len(shards[::3])


def test_shards_in_an_object_store_are_listed_and_only_those_that_were_touched_are_read(
    bucket: ObjectStore, tmp_path: Path
) -> None:
    filesystem, root = open_filesystem(bucket.url)
    for number in range(40):
        with filesystem.open_output_stream(f"{root}/shards/{number:02d}.tar") as stream:
            stream.write(b"x" * 9)
    shards = list_shards([f"{bucket.url}/shards"])
    assert len(shards) == 40
    assert list_shards([f"{bucket.url}/shards?region=eu-west-1"]) == [f"{shard}?region=eu-west-1" for shard in shards]
    world = World(tmp_path)
    samples = world.table.samples
    rejects = [rejected_rows([Reject("", shard, 0, 1, None, Reason.not_a_tar, "")]) for shard in shards]
    samples.commit([samples.write(each, REJECTED) for each in rejects])
    summaries = []
    for shard in shards:
        reader = read_samples(shard)
        assert [row.reason for row in reader if isinstance(row, Reject)] == [Reason.not_a_tar]
        summaries.append(reader.summary)
    world.record(*(ShardRecord(each.shard, each.size, each.checksum, 0, 1, each.modified) for each in summaries))
    assert all(each.modified for each in summaries)
    asked = bucket.count("")
    assert world.plan(*shards) == (Todo([], shards, []), [])
    assert bucket.count("") == asked + 1
    with filesystem.open_output_stream(f"{root}/shards/07.tar") as stream:
        stream.write(b"y" * 9)
    world.record(replace(world.recorded(shards[7]), modified=1), replace(world.recorded(shards[9]), modified=1))
    todo, read = world.plan(*shards)
    assert (todo.changed, len(read)) == ([shards[7]], 2)
