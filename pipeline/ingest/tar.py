"""A tar archive as a stream of members and gaps: what is damaged is reported, and reading goes on behind it.

Python's tarfile stops without a word at a damaged header, and so does what is built on it. Here every byte belongs to
a member, to padding, to the end marker or to a reported gap.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from pipeline.tables.schema import Reason

BLOCK = 512
MAX_EXTENDED_BYTES = 2**20  # of a long name or of pax records; more than this is damage, not a name
SKIP_BYTES = 2**20
MAX_PADDING_BYTES = 2**20 + 2 * BLOCK  # the end marker, filled up to the largest record anybody sets

_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_DATA = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
# Mode, owners, size (1), time, checksum (2), type; behind names, devices and no prefix: as nearly all writers put them.
_PLAIN_NUMBERS = re.compile(
    rb"(?:[0-7]{7}[ \0]|[0-7]{6} \0){3}([0-7]{11})[ \0][0-7]{11}[ \0]([0-7]{6})(?:\0 | \0)0"
    rb".{172}(?:[0-7]{7}\0|\0{8}){2}\0",
    re.DOTALL,
)
_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=")


class Readable(Protocol):
    """What is asked of a stream: bytes in order, fewer than asked for only at its end."""

    def read(self, size: int, /) -> bytes:  # noqa: D102
        ...


@dataclass(frozen=True)
class Member:
    """A regular file; `data` is None when it is larger than the reader's limit."""

    name: str
    offset: int  # of the first byte of data, in the uncompressed archive
    size: int
    data: bytes | None


@dataclass(frozen=True)
class Other:
    """A folder, link, device or pipe: never followed, only counted."""

    name: str


@dataclass(frozen=True)
class Gap:
    """Bytes [start, end) without a readable member; `name` when the header of the one that is lost could be read."""

    start: int
    end: int
    reason: Reason
    detail: str
    name: str | None = None


@dataclass(frozen=True)
class _Header:
    start: int  # of the first block that belongs to the member, extended headers included
    name: str
    type: bytes
    size: int
    shortened: bool = False  # `name` may be what was left of a longer one, kept in an extended header
    sparse: bool = False


class _DamagedError(ValueError):
    """An extended header that does not hold what its type says."""


class _Blocks:
    """A stream that knows how far it was read."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.position = 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.position += len(data)
        return data

    def skip(self, size: int) -> bool:
        """False when the stream ended first."""
        while size > 0:
            skipped = len(self.read(min(size, SKIP_BYTES)))
            if not skipped:
                return False
            size -= skipped
        return True


def read_members(stream: Readable, max_bytes: int) -> Iterator[Member | Other | Gap]:
    """All members in the order of the archive, and a Gap for every stretch that cannot be read.

    A damaged header is followed by a search, block by block, for the next valid one. An archive without its end marker
    ends in a Gap (an empty one when it was cut between two members). Zero blocks between members are a gap as well: an
    erased region and two archives joined end to end look the same. So are sparse files: their bytes are in pieces.

    Nothing is raised but what `stream` raises. Memory: one member of at most `max_bytes`; a larger one is passed over.
    """
    blocks = _Blocks(stream)
    found_any = False
    lost_from: int | None = None
    while True:
        header, gap = _find_header(blocks, lost_from)
        if gap is not None:
            yield gap if found_any or header else _foreign(gap)
        if header is None:
            return
        found_any, lost_from = True, None
        try:
            item = _read_member(blocks, _resolve(blocks, header), max_bytes)
        except _DamagedError:
            lost_from = header.start
            continue
        yield item
        if isinstance(item, Gap) and item.reason == Reason.truncated_shard:
            return


def _find_header(blocks: _Blocks, lost_from: int | None) -> tuple[_Header | None, Gap | None]:
    """The next valid header, or None at the end of the archive; and the gap before it.

    `lost_from` is where a gap began that was noticed only behind its first blocks.
    """
    start = blocks.position if lost_from is None else lost_from
    last_used = blocks.position  # end of the last block that is not zero
    while True:
        at = blocks.position
        block = blocks.read(BLOCK)
        if len(block) < BLOCK:
            break
        header = _parse(block, at)
        # Behind a gap, a name that may have been shortened is not believed: its long form may have been in the gap.
        if header is not None and not (at > start and header.shortened):
            return header, Gap(start, at, Reason.damaged_header, "no valid header") if at > start else None
        if any(block):
            last_used = blocks.position
    if any(block):
        last_used = blocks.position
    if at - start < BLOCK or (lost_from is not None and at == last_used):
        detail = f"the archive ends without an end marker at byte {blocks.position}"
        return None, Gap(start, blocks.position, Reason.truncated_shard, detail)
    if last_used == start:
        padding = blocks.position - start
        if padding <= MAX_PADDING_BYTES:
            return None, None
        detail = f"{padding} zero bytes at the end, as if the file had been reserved and never written"
        return None, Gap(start, blocks.position, Reason.truncated_shard, detail)
    return None, Gap(start, last_used, Reason.damaged_header, "no valid header up to the end of the archive")


def _foreign(gap: Gap) -> Gap:
    """What to say when not one header was valid."""
    if gap.end == 0:
        return replace(gap, reason=Reason.empty_shard, detail="the file has 0 bytes")
    return replace(gap, reason=Reason.not_a_tar, detail=f"not one valid tar header in {gap.end} bytes")


def _parse(block: bytes, at: int) -> _Header | None:
    return _parse_plain(block, at) or _parse_any(block, at)


def _parse_plain(block: bytes, at: int) -> _Header | None:
    """What `_parse_any` makes of the usual header of a file with a short ASCII name, in a quarter of its time."""
    numbers, name = _PLAIN_NUMBERS.match(block, 100), block[:100]
    if numbers is None or not name.isascii() or b"\0" not in name or b"?" in name:
        return None
    if _byte_sum(block) - _byte_sum(block[148:156]) + 8 * ord(" ") != int(numbers[2], 8):
        return None
    name = name.partition(b"\0")[0]
    return None if name.endswith(b"/") else _Header(at, name.decode(), tarfile.REGTYPE, int(numbers[1], 8))


def _byte_sum(block: bytes) -> int:
    """Sum of at most 512 bytes. Adler-32 keeps it, plus one, modulo 65,521 in its lower half; 256 bytes stay below."""
    return (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF) - 2


def _parse_any(block: bytes, at: int) -> _Header | None:
    # Looked at first because summing up every block of a long gap is 50 times as slow.
    if not block[148:156].strip(b" \0").isdigit():
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except (tarfile.TarError, ValueError):
        return None
    if info.size < 0:
        return None
    # pax writers put "?" for what is not ASCII into the short name.
    shortened = info.type in _REGULAR and (b"\0" not in block[:100] or b"?" in block[:100])
    return _Header(at, info.name, info.type, info.size, shortened, info.type == tarfile.GNUTYPE_SPARSE)


def _resolve(blocks: _Blocks, header: _Header) -> _Header:
    """Follow extended headers to the member they describe. Raises _DamagedError, having read the damage."""
    if header.type not in _EXTENDED:
        return header
    start, name, size, sparse = header.start, None, None, False
    while header.type in _EXTENDED:
        if header.size > MAX_EXTENDED_BYTES:
            raise _DamagedError
        data = blocks.read(header.size)
        if len(data) < header.size or not blocks.skip(-header.size % BLOCK):
            raise _DamagedError
        if header.type == tarfile.GNUTYPE_LONGNAME:
            name = _text(data.partition(b"\0")[0])
        elif header.type in _PAX:
            records = _pax_records(data)
            name = _text(records[b"path"]) if b"path" in records else name
            size = _natural(records[b"size"]) if b"size" in records else size
            sparse = sparse or any(keyword.startswith(b"GNU.sparse.") for keyword in records)
        following = _parse(blocks.read(BLOCK), blocks.position - BLOCK)
        if following is None:
            raise _DamagedError
        header = following
    return replace(
        header,
        start=start,
        name=header.name if name is None else name,
        size=header.size if size is None else size,
        sparse=header.sparse or sparse,
    )


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """`length keyword=value` lines, where length counts the whole line. Raises _DamagedError."""
    records, at = {}, 0
    while at < len(data):
        match = _PAX_RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise _DamagedError
        records[match[2]] = data[match.end() : end - 1]
        at = end
    return records


def _natural(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise _DamagedError
    return int(digits)


def _text(name: bytes) -> str:
    """UTF-8, with other bytes spelled out: a name must be storable and different bytes must give different names."""
    return name.decode("utf-8", "backslashreplace")


def _read_member(blocks: _Blocks, header: _Header, max_bytes: int) -> Member | Other | Gap:
    if header.type in _WITHOUT_DATA:
        return Other(header.name)
    offset = blocks.position
    wanted = header.type in _REGULAR and not header.sparse and header.size <= max_bytes
    data = blocks.read(header.size) if wanted else None
    complete = blocks.skip(header.size) if data is None else len(data) == header.size
    if not complete:
        detail = f"the archive ends after {blocks.position - offset} of the member's {header.size} bytes"
        return Gap(header.start, blocks.position, Reason.truncated_shard, detail, header.name)
    blocks.skip(-header.size % BLOCK)
    if header.sparse:
        detail = "stored as a sparse file; pack it again without --sparse"
        return Gap(header.start, blocks.position, Reason.unsupported_image, detail, header.name)
    if header.type not in _REGULAR:
        return Other(header.name)
    return Member(header.name, offset, header.size, data)
