"""Thumbnails of real image bytes, good and bad."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jobs.report.sheets import Thumbnail, thumbnail


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def opened(made: Thumbnail | None) -> Image.Image:
    assert made is not None
    return Image.open(io.BytesIO(base64.b64decode(made.uri.split(",", 1)[1])))


def photograph(width: int, height: int) -> Image.Image:
    """Red left half, blue right half."""
    pixel_HW3 = np.zeros((height, width, 3), np.uint8)
    pixel_HW3[:, : width // 2, 0] = 255
    pixel_HW3[:, width // 2 :, 2] = 255
    return Image.fromarray(pixel_HW3)


def near(pixel: Any, expected: tuple[int, ...]) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) < 30


def test_a_photograph_becomes_a_small_square_jpeg_of_its_centre() -> None:
    made = thumbnail(encoded(photograph(800, 400), "JPEG"), 96)
    picture = opened(made)
    assert made is not None and made.uri.startswith("data:image/jpeg;base64,") and not made.pixelated
    assert picture.size == (96, 96)
    assert near(picture.getpixel((5, 50)), (255, 0, 0)) and near(picture.getpixel((90, 50)), (0, 0, 255))
    assert len(made.uri) < 4_000


def test_a_tiny_image_keeps_its_pixels() -> None:
    digit = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    made = thumbnail(encoded(digit, "PNG"), 96)
    assert made is not None and made.pixelated and made.uri.startswith("data:image/png;base64,")
    assert np.array_equal(np.asarray(opened(made)), np.asarray(digit))


def test_a_photograph_is_never_enlarged() -> None:
    assert opened(thumbnail(encoded(photograph(70, 80), "JPEG"), 96)).size == (70, 70)


def test_a_strip_one_pixel_high_is_drawn() -> None:
    assert opened(thumbnail(encoded(photograph(500, 1), "PNG"), 96)).size == (1, 1)


def test_the_camera_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise: the left half comes to the top
    picture = opened(thumbnail(encoded(photograph(200, 200), "JPEG", exif=exif), 96))
    assert near(picture.getpixel((50, 5)), (255, 0, 0)) and near(picture.getpixel((50, 90)), (0, 0, 255))


def test_transparency_is_drawn_over_white() -> None:
    clear = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    assert near(opened(thumbnail(encoded(clear, "PNG"), 96)).getpixel((50, 50)), (255, 255, 255))
    palette = Image.new("P", (100, 100), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    assert near(opened(thumbnail(encoded(palette, "PNG", transparency=1), 96)).getpixel((50, 50)), (255, 255, 255))


def test_sixteen_bit_grey_is_not_clipped_to_white() -> None:
    ramp = np.linspace(0, 65_535, 100 * 100).reshape(100, 100).astype(np.uint16)
    picture = np.asarray(opened(thumbnail(encoded(Image.fromarray(ramp), "PNG"), 96)))
    assert picture.min() < 10 and picture.max() > 245 and 110 < picture.mean() < 145


@pytest.mark.parametrize(
    ("mode", "kind"), [("CMYK", "JPEG"), ("1", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("RGB", "BMP")]
)
def test_other_modes_are_shown(mode: str, kind: str) -> None:
    assert opened(thumbnail(encoded(photograph(100, 100).convert(mode), kind), 96)).size == (96, 96)


def test_the_first_frame_of_an_animation_is_shown() -> None:
    frames = [Image.new("RGB", (100, 100), colour) for colour in ("red", "blue")]
    made = thumbnail(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 96)
    assert near(opened(made).convert("RGB").getpixel((50, 50)), (255, 0, 0))


def test_what_cannot_be_decoded_has_no_thumbnail() -> None:
    whole = encoded(photograph(300, 300), "JPEG")
    assert [thumbnail(bad, 96) for bad in (None, b"", b"no image", whole[:60], whole[: len(whole) // 2])] == [None] * 5


def test_a_forged_size_is_refused_before_memory_is_taken() -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    assert thumbnail(b"\x89PNG\r\n\x1a\n" + chunk, 96) is None
