from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import ShoalError
from pipeline.removal.targets import Targets, read_targets

KEYS = st.text(st.sampled_from("ab:,é\x00"), min_size=1, max_size=3)
WANTED = st.lists(st.tuples(st.none() | st.sampled_from(["s", "t::u"]), KEYS), max_size=12)


def test_a_key_goes_everywhere_or_in_its_shard() -> None:
    targets = Targets.of([(None, "a"), ("s", "b"), ("s", "b"), ("t", "c")])
    assert targets.are_in("s", ["a", "b", "c", "d"]).tolist() == [True, True, False, False]
    assert targets.are_in("u", ["a", "b"]).tolist() == [True, False]
    assert len(targets) == 3
    with pytest.raises(ShoalError, match="empty"):
        Targets.of([("s", "")])


@given(wanted=WANTED, more=WANTED, keys=st.lists(KEYS, min_size=1), shard=st.sampled_from(["s", "t::u", "v"]))
def test_ranges_unions_and_json_agree_with_the_keys_themselves(
    wanted: list[tuple[str | None, str]], more: list[tuple[str | None, str]], keys: list[str], shard: str
) -> None:
    targets = Targets.of(wanted)
    going = targets.are_in(shard, keys)
    assert targets.may_be_in(shard, min(keys), max(keys)) or not going.any()
    for key, goes in zip(keys, going.tolist(), strict=True):
        assert targets.may_be_in(shard, key, key) == goes == ((None, key) in wanted or (shard, key) in wanted)
    assert (targets | Targets.of(more)).are_in(shard, keys).tolist() == Targets.of(wanted + more).are_in(
        shard, keys
    ).tolist()
    assert Targets.from_json(targets.as_json()) == targets
    assert Targets.of(targets) == targets


def test_what_is_missing_was_found_nowhere_or_not_in_its_shard() -> None:
    asked = Targets.of([(None, "a"), (None, "b"), ("s", "c"), ("t", "a")])
    assert asked.missing_from(Targets.of([("s", "a"), ("t", "c")])) == [(None, "b"), ("s", "c"), ("t", "a")]


def test_a_shard_may_be_called_by_its_file_name_if_no_other_has_it() -> None:
    shards = {"/data/a.tar", "s3://b/c.tar", "/data/c.tar"}
    assert set(Targets.of([("a.tar", "k"), ("/data/c.tar", "k"), ("gone.tar", "k")]).resolved(shards)) == {
        ("/data/a.tar", "k"),
        ("/data/c.tar", "k"),
        ("gone.tar", "k"),
    }
    with pytest.raises(ShoalError, match=r"2 shards are called c\.tar: /data/c\.tar, s3://b/c\.tar"):
        Targets.of([("c.tar", "k")]).resolved(shards)


def test_lists_are_text_csv_or_parquet(tmp_path: Path) -> None:
    text, csv, parquet = (tmp_path / name for name in ("list.txt", "list.csv", "list.parquet"))
    text.write_bytes("\ufeff007\r\n\n spaced \nü::x".encode())
    assert read_targets(text) == [(None, "007"), (None, " spaced "), (None, "ü::x")]
    assert read_targets(text, "s")[0] == ("s", "007")
    csv.write_text('shard,note,key\n/a.tar,x,007\n,,"line\nbreak"\n')
    assert read_targets(csv) == [("/a.tar", "007"), (None, "line\nbreak")]
    assert read_targets(csv, "s")[1] == ("s", "line\nbreak")
    pq.write_table(pa.table({"key": [7, 8]}), parquet)
    assert read_targets(parquet) == [(None, "7"), (None, "8")]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"\xff\xfe", "UTF-8"),
        ("a.csv", b"name\nx\n", "expected `key`"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.csv", b"key,key\nx,y\n", "several columns"),
        ("a.csv", b"key,shard,shard\nx,y,y\n", "several columns"),
    ],
)
def test_a_list_of_another_kind_is_a_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ShoalError, match=sentence):
        read_targets(tmp_path / name)
