"""What an index finds, what it refuses, and what it does not read twice."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from image_shards import image_bytes, tar_bytes
from object_store import ObjectStore

from models.errors import ShoalError
from pipeline.cluster.rows import row_hashes
from pipeline.ingest.decode import DecodeConfig
from pipeline.ingest.locate import read_range
from pipeline.ingest.shards import list_shards
from pipeline.tables.place import place
from pipeline.tables.storage import open_filesystem
from pipeline.train.images.index import ImageIndex, index_shards, load_index


def same(one: ImageIndex, other: ImageIndex) -> bool:
    pairs = zip((one.row_N, one.offset_N, one.size_N), (other.row_N, other.offset_N, other.size_N), strict=True)
    return one.shards == other.shards and one.digest == other.digest and all(np.array_equal(*pair) for pair in pairs)


def accessed(shard: str) -> None:
    """Make a file unreadable in content but unchanged by its looks: who reads it now, notices."""
    before = Path(shard).stat()
    Path(shard).write_bytes(bytes(before.st_size))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_images_are_found_where_they_are_and_bad_ones_counted(shards: list[str], tmp_path: Path) -> None:
    index = index_shards(shards, tmp_path / "index", threads=2)
    assert [shard.rows for shard in index.shards] == [23, 40, 17]
    assert [shard.ranged for shard in index.shards] == [True, True, False]
    assert index.rejects == {"empty_image": 1, "truncated_image": 1, "unsupported_image": 1}
    keys = [f"{number:04d}" for number in range(80)]
    names = [shard.shard for shard in index.shards for _ in range(shard.rows)]
    assert index.row_N.tolist() == row_hashes(pa.table({"shard": names, "key": keys})).tolist()
    for row in (0, 22, 23, 79):
        found = read_range(names[row], int(index.offset_N[row]), int(index.size_N[row]))
        assert found == image_bytes(row, ("png", "jpeg")[row % 2])
    listed = index.reject_table().to_pylist()
    assert {(each["key"], each["reason"]) for each in listed} == {
        ("broken", "truncated_image"),
        ("empty", "empty_image"),
        ("words", "unsupported_image"),
    }
    assert all(each["shard"] == shards[0] and each["detail"] for each in listed)
    assert same(index, load_index(str(tmp_path / "index")))


def test_nothing_is_read_again_where_nothing_has_changed(shards: list[str], tmp_path: Path) -> None:
    index = index_shards(shards, tmp_path / "index")
    for shard in shards:
        accessed(shard)
    told: list[str] = []
    assert same(index, index_shards(shards, tmp_path / "index", on_progress=lambda *step: told.append(step[0])))
    assert told == []


def test_only_what_is_new_or_changed_is_read(shards: list[str], tmp_path: Path) -> None:
    first = index_shards(shards, tmp_path / "index")
    accessed(shards[0])
    Path(shards[1]).write_bytes(tar_bytes({"new.png": image_bytes(99)}))
    more = tmp_path / "shards" / "d.tar"
    more.write_bytes(tar_bytes({"other.png": image_bytes(100)}))
    index = index_shards([*shards, str(more)], tmp_path / "index")
    assert [shard.rows for shard in index.shards] == [23, 1, 17, 1]
    assert index.shards[0] == first.shards[0]
    assert index.rejects == first.rejects
    assert index.row_N[:23].tolist() == first.row_N[:23].tolist()
    assert index.row_N[24:41].tolist() == first.row_N[63:].tolist()
    assert index.digest != first.digest
    assert [shard.rows for shard in index_shards(shards[:2], tmp_path / "index").shards] == [23, 1]


def test_a_limit_that_changed_is_a_reason_to_read_all(shards: list[str], tmp_path: Path) -> None:
    index_shards(shards, tmp_path / "index")
    with pytest.raises(ShoalError, match=r"3 shards hold 0 usable images.*80 image_too_large"):
        index_shards(shards, tmp_path / "index", DecodeConfig(max_pixels=300))


def test_an_index_that_was_interrupted_goes_on_where_it_was(shards: list[str], tmp_path: Path) -> None:
    def interrupt(step: str, done: int, total: int | None) -> None:
        assert (step, total) == ("index images", 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index_shards(shards, tmp_path / "index", on_progress=interrupt)
    assert not (tmp_path / "index" / "index.parquet").exists()
    accessed(shards[0])
    index = index_shards(shards, tmp_path / "index")
    assert [shard.rows for shard in index.shards] == [23, 40, 17]
    assert [each.name for each in (tmp_path / "index").iterdir()] == ["index.parquet"]


def test_the_digest_knows_bytes_and_no_folders(shards: list[str], tmp_path: Path) -> None:
    index = index_shards(shards, tmp_path / "index")
    (tmp_path / "shards").rename(tmp_path / "moved")
    moved = index_shards(list_shards([str(tmp_path / "moved")]), tmp_path / "other")
    assert moved.digest == index.digest
    assert moved.row_N.tolist() == index.row_N.tolist()


def test_what_cannot_be_indexed_is_told(shards: list[str], tmp_path: Path) -> None:
    with pytest.raises(ShoalError, match="0 shards"):
        index_shards([], tmp_path / "index")
    gone = str(tmp_path / "gone.tar")
    with pytest.raises(ShoalError, match=r"gone\.tar cannot be read .*shards that were read are kept"):
        index_shards([*shards, gone], tmp_path / "index")
    with pytest.raises(ShoalError, match="holds no index"):
        load_index(tmp_path / "nowhere")


def test_a_damaged_index_is_made_again(shards: list[str], tmp_path: Path) -> None:
    index = index_shards(shards, tmp_path / "index")
    file = tmp_path / "index" / "index.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    assert same(index, index_shards(shards, tmp_path / "index"))


def test_shards_and_index_may_be_in_an_object_store(shards: list[str], tmp_path: Path, bucket: ObjectStore) -> None:
    urls = []
    for shard in shards:
        urls.append(f"{bucket.url}/shards/{Path(shard).name}")
        filesystem, path = open_filesystem(urls[-1])
        with filesystem.open_output_stream(path, compression=None) as sink:
            sink.write(Path(shard).read_bytes())
    folder = place(f"{bucket.url}/run/index")
    index = index_shards(urls, folder)
    assert index.digest == index_shards(shards, tmp_path / "index").digest
    reads = bucket.count(r"GET /[^/]+/shards/\w")
    assert same(index, index_shards(urls, folder))
    assert bucket.count(r"GET /[^/]+/shards/\w") == reads


def test_the_order_of_folders_is_not_that_of_images(shards: list[str], tmp_path: Path) -> None:
    index = index_shards(shards, tmp_path / "index")
    moved = []
    for folder, shard in zip("zyx", shards, strict=True):
        (tmp_path / folder).mkdir()
        moved.append(str(Path(shard).rename(tmp_path / folder / Path(shard).name)))
    found = index_shards(sorted(moved), tmp_path / "index")
    assert [Path(each.shard).name for each in found.shards] == [Path(each.shard).name for each in index.shards]
    assert found.digest == index.digest and found.row_N.tolist() == index.row_N.tolist()
    accessed(moved[0])
    assert same(found, index_shards(sorted(moved), tmp_path / "index"))
