"""The stream under a shard: compressed or not, whole or broken."""

from __future__ import annotations

import gzip
import hashlib
import io
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.stream import CHUNK_BYTES, ShardStream
from pipeline.tables.schema import Reason

PLAIN = random.Random(0).randbytes(50_000) * 4  # compresses, but not to nothing


class Breaking:
    """Storage that gives so many bytes and then fails."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int, /) -> bytes:
        if chunk := self._data.read(min(size, 1000)):
            return chunk
        raise ConnectionResetError("peer went away\nand more")


def read_all(stream: ShardStream, step: int) -> bytes:
    parts = []
    while part := stream.read(step):
        parts.append(part)
    return b"".join(parts)


@given(data=st.binary(max_size=3000), step=st.integers(1, 700), compressed=st.booleans())
def test_reads_give_the_content_and_the_checksum_of_what_is_stored(data: bytes, step: int, compressed: bool) -> None:
    stored = gzip.compress(data) if compressed else b"-" + data
    stream = ShardStream(io.BytesIO(stored))
    assert read_all(stream, step) == (data if compressed else stored)
    stream.drain()
    assert (stream.size, stream.checksum) == (len(stored), "sha256:" + hashlib.sha256(stored).hexdigest())
    assert stream.failure is None


def test_a_read_across_chunks_is_whole() -> None:
    data = bytes(CHUNK_BYTES) + b"end"
    stream = ShardStream(io.BytesIO(data))
    assert len(stream.read(CHUNK_BYTES - 1)) == CHUNK_BYTES - 1
    assert stream.read(10) == b"\0end"
    assert stream.read(10) == b""


def test_a_small_file_may_inflate_to_many_chunks() -> None:
    size = 3 * CHUNK_BYTES + 5
    stream = ShardStream(io.BytesIO(gzip.compress(bytes(size))))
    assert len(read_all(stream, CHUNK_BYTES)) == size
    assert stream.failure is None


def test_gzip_members_follow_each_other_and_zeros_are_padding() -> None:
    stream = ShardStream(io.BytesIO(gzip.compress(b"one") + gzip.compress(b"two") + bytes(300)))
    assert read_all(stream, 100) == b"onetwo"
    assert stream.failure is None


def test_every_truncation_of_gzip_gives_a_prefix_and_a_failure() -> None:
    stored = gzip.compress(PLAIN[:3000] + PLAIN[:3000])
    lengths = []
    for end in range(2, len(stored), 7):
        stream = ShardStream(io.BytesIO(stored[:end]))
        content = read_all(stream, 512)
        assert (PLAIN[:3000] * 2).startswith(content)
        assert stream.failure == (Reason.truncated_shard, f"the gzip stream breaks off at byte {end}")
        lengths.append(len(content))
    assert lengths == sorted(lengths)
    assert lengths[-1] > 5000


def test_damage_in_gzip_keeps_what_came_before_it() -> None:
    stored = bytearray(gzip.compress(PLAIN))
    middle = len(stored) // 2
    stored[middle : middle + 50] = b"\xff" * 50
    stream = ShardStream(io.BytesIO(bytes(stored)))
    content = read_all(stream, 512)
    intact = next((at for at, (a, b) in enumerate(zip(content, PLAIN, strict=False)) if a != b), len(content))
    assert intact > 20_000
    assert stream.failure is not None
    assert stream.failure[0] == Reason.unreadable_shard
    stream.drain()
    assert stream.size == len(stored)


def test_a_wrong_gzip_checksum_is_noticed_after_all_was_read() -> None:
    stored = bytearray(gzip.compress(PLAIN))
    stored[-8] ^= 1
    stream = ShardStream(io.BytesIO(bytes(stored)))
    assert read_all(stream, 10_000) == PLAIN
    assert stream.failure is not None
    assert "incorrect data check" in stream.failure[1]


@pytest.mark.parametrize("data", [b"x" * 2500, gzip.compress(PLAIN)[:2500]])
def test_failing_storage_ends_the_stream_and_leaves_no_checksum(data: bytes) -> None:
    stream = ShardStream(Breaking(data))
    content = read_all(stream, 512)
    assert (data if data[:1] == b"x" else PLAIN).startswith(content)
    assert len(content) > 2000
    assert stream.failure == (Reason.unreadable_shard, "reading stopped at byte 2500: peer went away")
    assert (stream.size, stream.checksum) == (2500, "")
