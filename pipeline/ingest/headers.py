"""What the headers of image files say, read before any decoder may trust them."""

from __future__ import annotations

import struct
import zlib

from pipeline.tables.schema import Reason

JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class Undecodable(ValueError):  # noqa: N818 - it names the image, and becomes a row, not an error
    """Why an image is a reject."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[Undecodable], tuple[Reason, str]]:
        return Undecodable, (self.reason, self.detail)


def jpeg_size(image: bytes) -> tuple[int, int]:
    """Width and height from the frame header, found by the rules that libjpeg follows (ISO 10918-1, annex B)."""
    at = 2
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
            if at + 7 > len(image):
                raise Undecodable(Reason.truncated_image, "ends in its frame header")
            height, width = struct.unpack_from(">HH", image, at + 3)
            return width, height
        at += struct.unpack_from(">H", image, at)[0]


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
