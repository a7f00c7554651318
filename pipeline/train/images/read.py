"""Encoded images out of shards, in the order in which they take part, by few and large reads.

Shapes: n rows of a lane.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from models.errors import ShoalError
from pipeline.extract.ahead import one_ahead
from pipeline.ingest.decode import DecodeConfig, Undecodable, decode
from pipeline.ingest.stored import stored
from pipeline.ingest.stream import CHUNK_BYTES, ShardStream, open_raw
from pipeline.tables.storage import open_filesystem, patiently
from pipeline.tables.stores import one_line
from pipeline.train.images.index import ImageIndex
from pipeline.train.images.index_table import IndexedShard
from pipeline.train.images.order import LaneEpoch

_GAP_BYTES = 2**20  # of a shard; what lies between two images is read over rather than asked for anew


@dataclass(frozen=True)
class Encoded:
    """The bytes of one image."""

    row: int
    image: bytes


def in_turn(index: ImageIndex, lane: LaneEpoch, wanted_n: np.ndarray, thread: Executor) -> Iterator[Encoded]:
    """The images of a lane that are `wanted_n` (by when they take part), as they take part.

    They are read in the order of the shards, a block of 4 MiB ahead of their use, in `thread`, and held until their
    turn comes: the lane's jitter in images, and two blocks.
    """
    turn_n = lane.turn_n[wanted_n]
    place_n = np.sort(turn_n)
    blocks = one_ahead(read_blocks(index, lane.read_n[place_n]), thread)
    coming = zip(place_n.tolist(), (image for block in blocks for image in block), strict=True)
    held: dict[int, Encoded] = {}
    for place in turn_n.tolist():
        while place not in held:
            at, image = next(coming)
            held[at] = image
        yield held.pop(place)


def read_blocks(index: ImageIndex, row_n: np.ndarray) -> Iterator[list[Encoded]]:
    """The images of rows in the given order, in lists that were read at once: some 4 MiB, one request to a store.

    A shard that cannot be read from the middle is read from its start wherever the order goes back in it.
    Raises ShoalError when a shard is gone or not the one that was indexed, OSError when the storage fails.
    """
    for shard, run_n in _runs(index, row_n):
        with _told(shard):
            yield from (_ranged if shard.ranged else _streamed)(index, shard, run_n)


def streaming_advice(index: ImageIndex, lanes: int) -> str | None:
    """What to say where shards are fewer than the lanes that read each from its start; None where nothing is amiss."""
    streamed = [shard for shard in index.shards if not shard.ranged]
    share = sum(shard.rows for shard in streamed) / max(1, len(index))  # of the lanes
    if len(streamed) >= lanes * share:
        return None
    return (
        f"{len(streamed)} shards are compressed, or on a web server, and can be read from their start only, but "
        f"{lanes * share:.0f} of {lanes} lanes (train.images.lanes) read them, each for itself; store them as plain "
        ".tar files on a disk or in an object store, or cut them into more shards, or set train.images.lanes lower."
    )


def decoded(index: ImageIndex, encoded: Encoded, decoding: DecodeConfig, short_side: int) -> Tensor:
    """The image, uint8 (3, H, W), at a reduced size where `decode` can. Raises ShoalError when it is another by now."""
    try:
        return decode(encoded.image, decoding, short_side)
    except Undecodable as error:
        shard = index.shards[int(np.searchsorted(index.end_S, encoded.row, side="right"))]
        offset = index.offset_N[encoded.row]
        raise _changed(shard, f"the image at byte {offset} cannot be decoded any more ({error})") from error


def _runs(index: ImageIndex, row_n: np.ndarray) -> Iterator[tuple[IndexedShard, np.ndarray]]:
    """Consecutive rows of one shard whose offsets grow."""
    if not len(row_n):
        return
    shard_n = np.searchsorted(index.end_S, row_n, side="right")
    breaks = np.flatnonzero((np.diff(shard_n) != 0) | (np.diff(index.offset_N[row_n]) <= 0)) + 1
    for begin, end in pairwise((0, *breaks.tolist(), len(row_n))):
        yield index.shards[shard_n[begin]], row_n[begin:end]


def _ranged(index: ImageIndex, shard: IndexedShard, row_n: np.ndarray) -> Iterator[list[Encoded]]:
    filesystem, path = open_filesystem(shard.shard)
    with filesystem.open_input_file(path) as file:
        _require_size(shard, file.size())
        for block_n in _blocks(index, row_n):
            begin_n, size_n = index.offset_N[block_n], index.size_N[block_n]
            data = _read_at(file, int(begin_n[0]), int(begin_n[-1] + size_n[-1]))
            if len(data) < begin_n[-1] + size_n[-1] - begin_n[0]:
                raise _changed(shard, f"it ends before byte {begin_n[-1] + size_n[-1]}")
            slices = zip(block_n.tolist(), (begin_n - begin_n[0]).tolist(), size_n.tolist(), strict=True)
            yield [Encoded(row, data[begin : begin + size]) for row, begin, size in slices]


def _read_at(file: Any, begin: int, end: int) -> bytes:
    return patiently(lambda: bytes(file.read_at(end - begin, begin)))


def _blocks(index: ImageIndex, row_n: np.ndarray) -> Iterator[np.ndarray]:
    """Rows that are read at once: no more than a chunk, unless one image is, and without large gaps."""
    begin_n = index.offset_N[row_n]
    end_n = begin_n + index.size_N[row_n]
    first = 0
    for place in range(1, len(row_n)):
        if end_n[place] - begin_n[first] > CHUNK_BYTES or begin_n[place] - end_n[place - 1] > _GAP_BYTES:
            yield row_n[first:place]
            first = place
    yield row_n[first:]


def _streamed(index: ImageIndex, shard: IndexedShard, row_n: np.ndarray) -> Iterator[list[Encoded]]:
    now = None if shard.on_web else stored(shard.shard)
    if now is not None and now.size is not None:
        _require_size(shard, now.size)
    with open_raw(shard.shard) as raw:
        stream, at = ShardStream(raw), 0
        for block_n in _blocks(index, row_n):
            images = []
            for row in block_n.tolist():
                begin, size = int(index.offset_N[row]), int(index.size_N[row])
                _skip(stream, begin - at)
                images.append(Encoded(row, stream.read(size)))
                at = begin + size
                if len(images[-1].image) < size:
                    raise _changed(shard, f"it ends before byte {at}")
            yield images


def _skip(stream: ShardStream, count: int) -> None:
    while count > 0 and (skipped := len(stream.read(min(count, CHUNK_BYTES)))):
        count -= skipped


def _require_size(shard: IndexedShard, size: int) -> None:
    if size != shard.size:
        raise _changed(shard, f"it has {size} bytes and had {shard.size}")


@contextmanager
def _told(shard: IndexedShard) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise _changed(shard, "it is gone") from error
    except ShoalError:
        raise
    except Exception as error:  # every filesystem raises what it likes; a new attempt may find it in order
        raise OSError(errno.EIO, f"cannot be read ({one_line(error)})", shard.shard) from error


def _changed(shard: IndexedShard, what: str) -> ShoalError:
    return ShoalError(
        f"{shard.shard} is not as it was indexed: {what}; put back what was indexed, or begin anew with another "
        "--output."  # only there is one on a web server indexed again
    )
