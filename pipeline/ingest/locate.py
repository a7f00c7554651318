"""One image out of a shard, by the byte range that the samples table keeps."""

from __future__ import annotations

from models.errors import ShoalError
from pipeline.ingest.stream import CHUNK_BYTES, GZIP_MAGIC, ShardStream, open_raw
from pipeline.tables.storage import open_filesystem, patiently
from pipeline.tables.stores import one_line


def read_range(shard: str, offset: int, size: int) -> bytes:
    """`size` bytes at `offset` of a shard, of its uncompressed stream when it is compressed.

    Of an uncompressed shard only these bytes are read (and two at its start); a compressed one, or one on a web server
    that knows no ranges, is read up to them. Raises ShoalError when the shard is gone or has become too short.
    """
    try:
        data = patiently(lambda: _read_there(shard, offset, size))
        if data is None:
            data = _read_through(shard, offset, size)
    except Exception as error:  # every filesystem raises what it likes
        raise ShoalError(
            f"{shard} cannot be read ({one_line(error)}); put it back under that name, or extract again."
        ) from error
    if len(data) < size:
        raise ShoalError(
            f"{shard} should have {size} bytes at byte {offset} but has {len(data)}; it was changed, extract it again."
        )
    return data


def _read_there(shard: str, offset: int, size: int) -> bytes | None:
    """None when the shard is compressed, or lies where nothing but its beginning can be read."""
    filesystem, path = open_filesystem(shard)
    with filesystem.open_input_file(path) as file:
        if file.read(len(GZIP_MAGIC)) == GZIP_MAGIC:
            return None
        try:
            file.seek(offset)
            data: bytes = file.read(size)
        except ValueError:  # fsspec, for a server without range requests
            return None
        return data


def _read_through(shard: str, offset: int, size: int) -> bytes:
    with open_raw(shard) as raw:
        stream = ShardStream(raw)
        while offset > 0 and (skipped := len(stream.read(min(offset, CHUNK_BYTES)))):
            offset -= skipped
        return stream.read(size)
