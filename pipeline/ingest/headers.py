"""What the headers of image files say, read before any decoder may trust them."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

from pipeline.tables.schema import Reason

JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
ORIENTATION_TAG = 0x0112  # of EXIF
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # without those that have no content and may be among the data


class Undecodable(ValueError):  # noqa: N818 - it names the image, and becomes a row, not an error
    """Why an image is a reject."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Undecodable], tuple[Reason, str]]:
        return Undecodable, (self.reason, self.detail)


@dataclass(frozen=True)
class JpegHeader:
    """What a JPEG says of itself before its pixels."""

    width: int
    height: int
    reducible: bool  # the usual processes: DCT, Huffman codes, 8 bits, 1 or 3 colours
    orientation: int  # EXIF's; 1 without
    frame: int  # where the frame header begins, behind its marker


def read_jpeg_header(image: bytes) -> JpegHeader:
    """Everything up to the frame header, found by the rules that libjpeg follows (ISO 10918-1, annex B)."""
    at, orientation = 2, None
    while True:
        at = image.find(b"\xff", at)
        while 0 <= at < len(image) and image[at] == 0xFF:
            at += 1
        if not 0 < at < len(image):
            raise Undecodable(Reason.truncated_image, "ends before its frame header")
        marker, at = image[at], at + 1
        if marker in (0, 1) or 0xD0 <= marker <= 0xD7:  # stuffing and markers without content
            continue
        if marker in (0xD8, 0xD9, 0xDA):
            raise Undecodable(Reason.corrupt_image, "has no frame header before its data")
        if at + 2 > len(image):
            raise Undecodable(Reason.truncated_image, "ends before its frame header")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if at + 8 > len(image):
                raise Undecodable(Reason.truncated_image, "ends in its frame header")
            depth, height, width, colours = struct.unpack_from(">BHHB", image, at + 2)
            reducible = marker <= 0xC2 and depth == 8 and colours in (1, 3)
            return JpegHeader(width, height, reducible, orientation or 1, at)
        length = struct.unpack_from(">H", image, at)[0]
        if marker == 0xE1 and orientation is None and image.startswith(b"Exif\0\0", at + 2):
            orientation = exif_orientation(image[at + 8 : at + length])
        at += length


def exif_orientation(exif: bytes) -> int:
    """The orientation in the first directory (EXIF 2.32, 4.6.2), whatever its value; 1 without, also for damage."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 1
    try:
        start = struct.unpack_from(order + "I", exif, 4)[0]
        entries = struct.unpack_from(order + "H", exif, start)[0]
        for at in range(start + 2, start + 2 + 12 * entries, 12):
            tag, value = struct.unpack_from(order + "H6xH", exif, at)
            if tag == ORIENTATION_TAG:
                return int(value)
    except struct.error:
        pass
    return 1


def has_end(image: bytes, at: int) -> bool:
    """Whether the markers of a JPEG from `at` on, the beginning of one, lead to its end marker."""
    while match := _MARKER.search(image, at):
        if match[0] == b"\xff\xd9":
            return True
        at = match.end()
        if at + 2 > len(image):
            break
        at += struct.unpack_from(">H", image, at)[0]
    return False


def check_png(image: bytes) -> None:
    """Walk all chunks and compare their checksums: Pillow leaves out those of the pixels (PNG specification, 5.3)."""
    at, kind = len(PNG_MAGIC), b""
    while kind != b"IEND":
        if at + 12 > len(image):
            raise Undecodable(Reason.truncated_image, "ends before its IEND chunk")
        length, kind = struct.unpack_from(">I4s", image, at)
        end = at + 8 + length
        if end + 4 > len(image):
            raise Undecodable(Reason.truncated_image, f"ends in its {kind!r} chunk")
        if zlib.crc32(memoryview(image)[at + 4 : end]) != struct.unpack_from(">I", image, end)[0]:
            raise Undecodable(Reason.corrupt_image, f"its {kind!r} chunk at byte {at} has a wrong checksum")
        at = end + 4


def check_riff(image: bytes) -> None:
    """Raise Undecodable for a RIFF file that is shorter than it says."""
    expected = 8 + struct.unpack_from("<I", image, 4)[0]
    if expected > len(image):
        raise Undecodable(Reason.truncated_image, f"has {len(image)} of {expected} bytes")
