from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.extract.resume import plan_shards
from pipeline.extract.rows import ok_rows, rejected_rows
from pipeline.ingest.shards import Reject, Sample
from pipeline.tables.collection import Collection
from pipeline.tables.samples import TableProperties
from pipeline.tables.schema import REJECTED, SHARDS, Reason

PROPERTIES = TableProperties(dimension=2, backbone="x", backbone_digest="0", l2_normalised=False, preprocessing={})


@pytest.fixture
def table(tmp_path: Path) -> Collection:
    """Has shard a.tar (a sample, 10 bytes when it was read) and b.tar (a reject, 20 bytes)."""
    collection = Collection.create(tmp_path / "table")
    samples = collection.create_samples(PROPERTIES)
    a, b = str(tmp_path / "a.tar"), str(tmp_path / "b.tar")
    row = ok_rows([Sample("k", a, 512, 3, None, b"", "png")], np.ones((1, 2), np.float32))
    reject = rejected_rows([Reject("", b, 0, 20, None, Reason.not_a_tar, "no header")])
    samples.commit([samples.write(row), samples.write(reject, REJECTED)])
    sizes = [{"shard": a, "size": 10, "checksum": "x"}, {"shard": b, "size": 20, "checksum": "y"}]
    collection.shards.upsert(pa.Table.from_pylist(sizes, schema=SHARDS))
    return collection


@pytest.fixture
def shard(tmp_path: Path) -> Callable[[str, int], str]:
    def make(name: str, size: int) -> str:
        (tmp_path / name).write_bytes(bytes(size))
        return str(tmp_path / name)

    return make


def test_shards_with_rows_of_either_kind_are_skipped_and_the_rest_is_to_do_once_in_the_order_given(
    table: Collection, shard: Callable[[str, int], str]
) -> None:
    a, b, c, d = shard("a.tar", 10), shard("b.tar", 20), shard("c.tar", 30), shard("d.tar", 40)
    todo = plan_shards([d, b, c, a, d], table)
    assert (todo.shards, todo.skipped, todo.changed, todo.total) == ([d, c], [b, a], [], 4)


def test_a_skipped_shard_of_another_size_has_changed(table: Collection, shard: Callable[[str, int], str]) -> None:
    a, b = shard("a.tar", 11), shard("b.tar", 20)
    assert plan_shards([a, b], table).changed == [a]


def test_a_skipped_shard_that_nobody_can_find_is_not_called_changed(table: Collection, tmp_path: Path) -> None:
    a = str(tmp_path / "a.tar")
    todo = plan_shards([a], table)
    assert (todo.skipped, todo.changed) == ([a], [])
