"""The bytes of a shard in order: counted, hashed, gunzipped, and readable up to the point where they end or break."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from pipeline.ingest.tar import Readable
from pipeline.tables.schema import Reason
from pipeline.tables.storage import open_filesystem
from pipeline.tables.stores import one_line

CHUNK_BYTES = 2**22  # one request to an object store each
WEB_SILENCE_S = 60.0  # after which a web server is given up
GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = 31  # zlib's code for "expect a gzip header and check the CRC"


class ShardStream:
    """Reads never raise: `failure` says why a stream ended before its time. Memory: two chunks.

    A stream that starts like gzip is gunzipped, whatever its name.
    """

    def __init__(self, raw: Readable) -> None:
        self._raw = raw
        self._digest = hashlib.sha256()
        self._buffer = b""
        self._used = 0
        self.size = 0  # bytes of the stored file read so far, as `checksum` counts them
        self.failure: tuple[Reason, str] | None = None
        self._interrupted = False
        first = self._read_raw()
        self._chunks = self._inflate(first) if first.startswith(GZIP_MAGIC) else self._copy(first)

    @property
    def checksum(self) -> str:
        """SHA-256 of the stored bytes read so far; "" when the storage failed, since they are then not the file."""
        return "" if self._interrupted else "sha256:" + self._digest.hexdigest()

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer at the end."""
        parts = []
        while size > 0:
            if self._used == len(self._buffer):
                self._buffer, self._used = next(self._chunks, b""), 0
                if not self._buffer:
                    break
            part = self._buffer[self._used : self._used + size]
            self._used += len(part)
            size -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def drain(self) -> None:
        """Read on to the end of the stored file, so that `size` and `checksum` are those of all of it."""
        while self.read(CHUNK_BYTES):
            pass
        while self._read_raw():
            pass

    def _read_raw(self) -> bytes:
        try:
            chunk = self._raw.read(CHUNK_BYTES)
        except Exception as error:  # every filesystem raises what it likes
            self._interrupted = True
            self.failure = (Reason.unreadable_shard, f"reading stopped at byte {self.size}: {one_line(error)}")
            return b""
        self.size += len(chunk)
        self._digest.update(chunk)
        return chunk

    def _copy(self, chunk: bytes) -> Iterator[bytes]:
        while chunk:
            yield chunk
            chunk = self._read_raw()

    def _inflate(self, chunk: bytes) -> Iterator[bytes]:
        inflater = zlib.decompressobj(_GZIP_WINDOW)
        while True:
            before = inflater.copy()
            try:
                out = inflater.decompress(chunk, CHUNK_BYTES)
            except zlib.error as error:
                self.failure = (Reason.unreadable_shard, f"gzip damage before byte {self.size}: {error}")
                yield _salvage(before, chunk)
                return
            if out:
                yield out
            if inflater.eof:  # another gzip member may follow, zeros are padding
                chunk = inflater.unused_data.lstrip(b"\0") or self._read_raw().lstrip(b"\0")
                if not chunk:
                    return
                inflater = zlib.decompressobj(_GZIP_WINDOW)
            elif len(out) == CHUNK_BYTES or inflater.unconsumed_tail:
                chunk = inflater.unconsumed_tail
            else:
                chunk = self._read_raw()
                if not chunk:
                    break
        if self.failure is None:
            self.failure = (Reason.truncated_shard, f"the gzip stream breaks off at byte {self.size}")


def _salvage(inflater: zlib._Decompress, chunk: bytes) -> bytes:
    """What can be inflated of a chunk that holds an error: everything up to the byte that shows it."""
    parts, step = [], max(1, len(chunk) // 64)
    for at in range(0, len(chunk), step):
        before, piece = inflater.copy(), chunk[at : at + step]
        try:
            parts.append(inflater.decompress(piece))
        except zlib.error:
            if len(piece) > 1:
                parts.append(_salvage(before, piece))
            break
    return b"".join(parts)


@contextmanager
def open_raw(shard: str) -> Iterator[Readable]:
    """The stored bytes of a shard in order, not decompressed. Raises whatever the storage raises."""
    if shard.lower().startswith(("http://", "https://")):
        with _open_web(shard) as raw:
            yield raw
    else:
        filesystem, path = open_filesystem(shard)
        with filesystem.open_input_stream(path, compression=None) as raw:
            yield raw


def _open_web(url: str) -> BinaryIO:
    """One request for all of a file: not every web server can send parts."""
    import aiohttp  # noqa: PLC0415 - slow to import, and only needed here
    import fsspec  # noqa: PLC0415

    # By default a download is cut off after 5 minutes, and a shard takes as long as its images take to be embedded.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=WEB_SILENCE_S, sock_read=WEB_SILENCE_S)
    stream: BinaryIO = fsspec.filesystem("http", client_kwargs={"timeout": timeout}).open(url, "rb", block_size=0)
    return stream
