"""Every kind of image and every kind of damage: the pixels by hand, or the exact reason."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor

from pipeline.ingest.decode import DecodeConfig, Undecodable, decode
from pipeline.ingest.headers import exif_orientation
from pipeline.tables.schema import Reason

Encode = Callable[..., bytes]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about metadata in damaged files

MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"]


def pixels(image: Image.Image) -> Tensor:
    """What a plain RGB image is as a tensor."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def reason(image: bytes, short_side: int | None = None, **limits: int) -> Reason:
    with pytest.raises(Undecodable) as caught:
        decode(image, DecodeConfig(**limits), short_side)
    assert caught.value.detail
    return caught.value.reason


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG from filtered rows; colour 0 is grey, 2 RGB, 3 palette, 4 grey with alpha, 6 RGBA."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


# What sound images give.


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_lossless_formats_give_the_pixels(picture: Image.Image, encode: Encode, format: str) -> None:  # noqa: A002
    options = {"lossless": True} if format == "WEBP" else {}
    image = decode(encode(picture, format, **options))
    assert image.shape == (3, 13, 17)
    assert image.dtype == torch.uint8
    assert torch.equal(image, pixels(picture))
    assert torch.equal(
        decode(encode(picture, format, **options), short_side=1), pixels(picture)
    )  # only JPEG is reduced


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}], ids=str)
def test_jpeg_agrees_with_pillow(picture: Image.Image, encode: Encode, mode: str, options: dict[str, object]) -> None:
    jpeg = encode(picture.convert(mode), "JPEG", **options)
    difference = decode(jpeg).int() - pixels(Image.open(io.BytesIO(jpeg))).int()
    assert difference.abs().max() <= 2


def test_cmyk_without_adobes_marker_and_with_its_other_colours_agree_with_pillow(
    picture: Image.Image, encode: Encode
) -> None:
    jpeg = encode(picture.convert("CMYK"), "JPEG")
    start = jpeg.index(b"\xff\xee")
    end = start + 2 + struct.unpack_from(">H", jpeg, start + 2)[0]
    for variant in (jpeg[:start] + jpeg[end:], jpeg[: end - 1] + b"\2" + jpeg[end:]):
        assert torch.equal(decode(variant), pixels(Image.open(io.BytesIO(variant))))


def test_the_content_counts_and_not_the_name(picture: Image.Image, encode: Encode) -> None:
    for image in (encode(picture, "PNG") + b"trailing", encode(picture, "JPEG") + b"trailing"):
        assert decode(image).shape == (3, 13, 17)


def test_16_bit_grey_is_scaled_and_not_clipped() -> None:
    values = [0, 128, 129, 257, 32768, 65535]
    rows = b"\0" + struct.pack(">6H", *values)
    expected = [[0, 0, 1, 1, 128, 255]]  # value / 257, rounded
    grey = decode(png(6, 1, 16, 0, rows))
    assert grey.tolist() == [expected] * 3
    pgm = b"P5 6 1 65535\n" + struct.pack(">6H", *values)
    assert decode(pgm).tolist() == [expected] * 3
    tiff = io.BytesIO()
    Image.fromarray(np.array([values], np.uint16)).save(tiff, "TIFF")
    assert decode(tiff.getvalue()).tolist() == [expected] * 3


def test_16_bit_colour_keeps_its_high_bytes() -> None:
    rows = b"\0" + struct.pack(">6H", 0x1234, 0x00FF, 0xFFFF, 0x8000, 0x7FFF, 0x0100)
    assert decode(png(2, 1, 16, 2, rows))[:, 0].T.tolist() == [[0x12, 0x00, 0xFF], [0x80, 0x7F, 0x01]]


def test_transparency_lies_on_white() -> None:
    rgba = png(3, 1, 8, 6, b"\0" + bytes([10, 20, 30, 255, 10, 20, 30, 0, 0, 0, 0, 51]))
    assert decode(rgba)[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255], [204, 204, 204]]
    grey = png(2, 1, 8, 4, b"\0" + bytes([7, 255, 7, 0]))
    assert decode(grey)[:, 0].T.tolist() == [[7, 7, 7], [255, 255, 255]]
    palette = chunk(b"PLTE", bytes([1, 2, 3, 4, 5, 6]))
    assert decode(png(2, 1, 8, 3, b"\0\0\1", palette))[:, 0].T.tolist() == [[1, 2, 3], [4, 5, 6]]
    alpha = chunk(b"tRNS", bytes([255, 0]))
    assert decode(png(2, 1, 8, 3, b"\0\0\1", palette, alpha))[:, 0].T.tolist() == [[1, 2, 3], [255, 255, 255]]
    key = chunk(b"tRNS", struct.pack(">H", 7))
    assert decode(png(2, 1, 8, 0, b"\0\7\x08", key))[:, 0].T.tolist() == [[255, 255, 255], [8, 8, 8]]


def test_one_bit_images_are_black_and_white() -> None:
    assert decode(b"P1 2 1\n1 0").tolist() == [[[0, 255]]] * 3
    assert decode(png(2, 1, 1, 0, b"\0\x40")).tolist() == [[[0, 255]]] * 3


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(encode: Encode, format: str) -> None:  # noqa: A002
    red, blue = Image.new("RGB", (4, 3), "red"), Image.new("RGB", (4, 3), "blue")
    options = {"lossless": True} if format == "WEBP" else {}
    image = encode(red, format, save_all=True, append_images=[blue], **options)
    assert Image.open(io.BytesIO(image)).n_frames == 2
    assert torch.equal(decode(image), pixels(red))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(picture: Image.Image, encode: Encode, format: str, orientation: int) -> None:  # noqa: A002
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    image = encode(picture, format, exif=exif, **options)
    upright = pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(image))))
    decoded = decode(image)
    assert decoded.shape == ((3, 13, 17) if orientation < 5 else (3, 17, 13))
    assert (decoded.int() - upright.int()).abs().max() <= (2 if format == "JPEG" else 0)
    grey = encode(picture.convert("L"), format, exif=exif, **options)
    assert torch.equal(decode(grey), pixels(ImageOps.exif_transpose(Image.open(io.BytesIO(grey)))))


def test_damaged_exif_costs_no_sound_image(picture: Image.Image, encode: Encode) -> None:
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True})):  # noqa: A001
        image = encode(picture, format, exif=b"Exif\0\0II*\0\xff\xff\xff\xff", **options)
        assert torch.equal(decode(image), pixels(picture))
    assert decode(encode(picture, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")).shape == (3, 13, 17)


def test_threads_decode_as_one_does(picture: Image.Image, encode: Encode) -> None:
    formats = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]
    images = [encode(picture.rotate(angle), format) for format in formats for angle in range(0, 360, 30)]  # noqa: A001
    sides = [None, 2] * (len(images) // 2)
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(lambda image, side: decode(image, short_side=side), images, sides))
    alone = [decode(image, short_side=side) for image, side in zip(images, sides, strict=True)]
    assert all(torch.equal(one, other) for one, other in zip(together, alone, strict=True))


# What is decoded at a reduced size.


def halves(image: Tensor, factor: int) -> Tensor:
    """Means over squares of `factor` pixels."""
    return torch.nn.functional.avg_pool2d(image.float(), factor)


@pytest.mark.parametrize(
    ("short_side", "factor"), [(None, 1), (49, 1), (33, 1), (32, 2), (17, 2), (16, 4), (9, 4), (8, 8), (1, 8)]
)
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_keeps_twice_the_size_asked_for(
    encode: Encode, short_side: int | None, factor: int, options: dict[str, object], mode: str
) -> None:
    y_HW, x_HW = np.mgrid[0:128, 0:192]
    smooth = Image.fromarray(np.stack([x_HW, y_HW * 2, 255 - x_HW], axis=-1).astype(np.uint8)).convert(mode)
    jpeg = encode(smooth, "JPEG", quality=95, **options)
    whole, reduced = decode(jpeg), decode(jpeg, short_side=short_side)
    assert reduced.shape == (3, 128 // factor, 192 // factor)
    assert (halves(whole, factor) - reduced.float()).abs().max() <= 4  # 255 levels over 192 pixels
    assert torch.equal(decode(jpeg, DecodeConfig(reduce_jpeg=False), short_side), whole)


@pytest.mark.parametrize(
    ("size", "factor", "left"),
    [(32, 2, 16), (33, 2, 16), (64, 4, 16), (66, 4, 16), (67, 4, 17), (128, 8, 16), (132, 8, 16), (133, 8, 17)],
)
def test_an_edge_that_is_half_padding_or_more_is_cut(encode: Encode, size: int, factor: int, left: int) -> None:
    assert decode(encode(Image.new("RGB", (size, 200)), "JPEG"), short_side=size // (2 * factor)).shape == (
        3,
        -(-200 // factor),
        left,
    )
    assert decode(encode(Image.new("L", (200, size)), "JPEG"), short_side=size // (2 * factor)).shape[1] == left


def test_a_cmyk_jpeg_stays_whole(picture: Image.Image, encode: Encode) -> None:
    jpeg = encode(picture.convert("CMYK"), "JPEG")
    assert torch.equal(decode(jpeg, short_side=1), decode(jpeg))


@pytest.mark.parametrize("orientation", range(10))
def test_a_reduced_jpeg_is_as_upright_as_the_whole_one(encode: Encode, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 250]]], np.uint8)
    jpeg = encode(Image.fromarray(quarters.repeat(32, axis=0).repeat(48, axis=1)), "JPEG", exif=exif, subsampling=0)
    whole, reduced = decode(jpeg), decode(jpeg, short_side=8)
    assert reduced.shape[1:] == tuple(size // 4 for size in whole.shape[1:])
    assert (halves(whole, 4) - reduced.float()).abs().max() <= 4


def test_the_limit_counts_the_pixels_of_the_whole_jpeg(encode: Encode) -> None:
    jpeg = encode(Image.new("RGB", (64, 64)), "JPEG")
    assert decode(jpeg, DecodeConfig(max_pixels=64 * 64), short_side=4).shape == (3, 8, 8)
    assert reason(jpeg, short_side=4, max_pixels=64 * 64 - 1) == Reason.image_too_large


def test_what_only_pillow_cannot_read_is_decoded_whole(picture: Image.Image, encode: Encode) -> None:
    jpeg = encode(picture, "JPEG")
    odd = jpeg[:2] + b"\xff\xe0\0\6JFIF" + jpeg[2:]
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(odd))
    assert torch.equal(decode(odd, short_side=1), decode(jpeg))


def test_a_segment_that_leads_behind_the_end_is_no_end(picture: Image.Image, encode: Encode) -> None:
    jpeg = encode(picture, "JPEG")
    Image.open(io.BytesIO(jpeg[:-2] + b"\xff\xeb\xff\xff\xff\xd9")).load()  # Pillow takes such a file for whole
    for tail in (b"\xff\xeb\xff\xff\xff\xd9", b"\xff\xeb", b"\xff\xeb\0", b"\xff\0\xd9", b"\xff\xd0", b"\xff"):
        assert reason(jpeg[:-2] + tail, short_side=2) == reason(jpeg[:-2] + tail) == Reason.truncated_image
    for tail in (b"\xff\xfe\0\5\xff\xd9?\xff\xd9", b"\xff\xff\xff\xd9", b"\xff\xd0\xff\xd9 and more"):
        assert decode(jpeg[:-2] + tail, short_side=2).shape == (3, 6, 8)


# EXIF.


def exif_block(order: str, *entries: tuple[int, int]) -> bytes:
    """A TIFF header and a directory of SHORT values."""
    head = struct.pack(order + "2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(entries))
    return head + b"".join(struct.pack(order + "HHIHxx", tag, 3, 1, value) for tag, value in entries) + bytes(4)


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_is_found_by_its_tag_in_either_byte_order(order: str) -> None:
    assert exif_orientation(exif_block(order, (0x0100, 9), (0x0112, 6), (0x0113, 2))) == 6
    assert exif_orientation(exif_block(order, (0x0100, 6))) == 1


def test_damaged_exif_means_upright() -> None:
    block = exif_block("<", (0x0112, 6))
    assert [exif_orientation(block[:end]) for end in range(len(block))] == [1] * 20 + [6] * (len(block) - 20)
    assert exif_orientation(b"IM" + block[2:]) == exif_orientation(block[:4] + b"\xff" * 4) == 1


def test_exif_counts_behind_other_metadata_too(picture: Image.Image, encode: Encode) -> None:
    """torchvision itself looks at the first such segment only, whatever it holds."""
    exif = b"Exif\0\0" + exif_block(">", (0x0112, 6))
    metadata = b"http://ns.adobe.com/xap/1.0/\0<x/>"
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data for data in (metadata, exif))
    jpeg = encode(picture, "JPEG")
    assert torch.equal(decode(jpeg[:2] + segments + jpeg[2:]), decode(jpeg).mT.flip(-1))


# What damage gives.


def test_an_empty_image() -> None:
    assert reason(b"") == Reason.empty_image


@pytest.mark.parametrize(
    "image",
    [b"<html>", b"\0", b"GIF", b"RIFF\0\0\0\0WAVEfmt ", b"\0\0\0\x20ftypavif", b"P7\n", b"Pf\n1 1\n-1\n\0\0\0\0"],
)
def test_other_formats(image: bytes) -> None:
    assert reason(image) == Reason.unsupported_image


def test_values_without_a_range(encode: Encode) -> None:
    for values in (np.zeros((2, 2), np.float32), np.zeros((2, 2), np.int32)):
        assert reason(encode(Image.fromarray(values), "TIFF")) == Reason.unsupported_image


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}], ids=str)
@pytest.mark.parametrize("short_side", [None, 2])
def test_every_truncation_of_a_jpeg(
    picture: Image.Image, encode: Encode, mode: str, options: dict[str, object], short_side: int | None
) -> None:
    jpeg = encode(picture.convert(mode), "JPEG", **options)
    reasons = [reason(jpeg[:end], short_side) for end in range(3, len(jpeg))]
    assert set(reasons) == {Reason.truncated_image}


@pytest.mark.parametrize("mode", MODES)
def test_every_truncation_of_a_png(picture: Image.Image, encode: Encode, mode: str) -> None:
    deep = Image.fromarray(np.arange(13 * 17, dtype=np.uint16).reshape(13, 17) * 256)
    image = encode(deep if mode == "I;16" else picture.convert(mode), "PNG")
    assert {reason(image[:end]) for end in range(8, len(image))} == {Reason.truncated_image}


@pytest.mark.parametrize(
    ("format", "spare"),  # bytes at the end that the first frame does not need: padding, and GIF's trailer
    [("WEBP", 0), ("PPM", 0), ("TIFF", 0), ("BMP", 1), ("GIF", 2)],
)
def test_every_truncation_of_other_formats(picture: Image.Image, encode: Encode, format: str, spare: int) -> None:  # noqa: A002
    image = encode(picture, format)
    reasons = [reason(image[:end]) for end in range(15, len(image) - spare)]
    assert set(reasons) <= {Reason.truncated_image, Reason.corrupt_image}
    assert reasons[-1] == Reason.truncated_image
    for end in range(len(image) - spare, len(image)):
        assert torch.equal(decode(image[:end]), decode(image))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_every_truncation_of_a_compressed_tiff(picture: Image.Image, encode: Encode, compression: str) -> None:
    image = encode(picture, "TIFF", compression=compression)
    reasons = {reason(image[:end]) for end in range(8, len(image), 5)}
    assert reasons <= {Reason.truncated_image, Reason.corrupt_image}


def test_every_flipped_byte_of_a_png_is_noticed(picture: Image.Image, encode: Encode) -> None:
    """Pillow alone lets damage in the pixels pass."""
    image = encode(picture, "PNG")
    for at in range(8, len(image)):
        damaged = image[:at] + bytes([image[at] ^ 0x55]) + image[at + 1 :]
        assert reason(damaged) in (Reason.corrupt_image, Reason.truncated_image)


def test_pngs_that_crash_other_decoders() -> None:
    rows = b"\0\1\2\3" * 3
    good = png(1, 3, 8, 2, rows)
    assert decode(good).shape == (3, 3, 1)
    bad_checksum = good[:-5] + bytes([good[-5] ^ 1]) + good[-4:]
    assert reason(bad_checksum) == Reason.corrupt_image
    at = good.index(b"IDAT") - 4
    bad_stream = good[:at] + chunk(b"IDAT", b"x" * 30) + chunk(b"IEND", b"")
    assert reason(bad_stream) == Reason.corrupt_image
    short = good[:at] + chunk(b"IDAT", zlib.compress(rows[:5])) + chunk(b"IEND", b"")
    assert reason(short) == Reason.truncated_image
    no_data = good[:at] + chunk(b"IEND", b"")
    assert reason(no_data) in (Reason.corrupt_image, Reason.truncated_image)


def jpeg_header(width: int, height: int) -> bytes:
    frame = struct.pack(">BHHB", 8, height, width, 3) + b"\1\x11\0\2\x11\1\3\x11\1"
    return b"\xff\xd8\xff\xe0\0\4ab\xff\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame + b"\xff\xda"


@pytest.mark.parametrize(
    "image",
    [
        png(60_000, 60_000, 8, 2, b"\0"),
        jpeg_header(60_000, 60_000),
        struct.pack("<6sHHxxxsxxxxHHx", b"GIF89a", 60_000, 60_000, b",", 60_000, 60_000) + b"\x08\1\0\0;",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        b"P6 60000 60000 255\n",
        b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<II", 10, 0) + b"\xff\x3f\0\xff\x3f\0",
    ],
    ids=["png", "jpeg", "gif", "bmp", "ppm", "webp"],
)
def test_a_forged_size_is_refused_from_the_header(image: bytes) -> None:
    assert reason(image) == Reason.image_too_large


def test_the_limit_counts_pixels(picture: Image.Image, encode: Encode) -> None:
    for format in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"):  # noqa: A001
        image = encode(picture, format)
        assert decode(image, DecodeConfig(max_pixels=13 * 17)).shape == (3, 13, 17)
        assert reason(image, max_pixels=13 * 17 - 1) == Reason.image_too_large


def test_no_second_frame_header_forges_a_size(
    picture: Image.Image, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow believes the last one."""
    jpeg = encode(picture, "JPEG")
    at = jpeg.index(b"\xff\xc0")
    second = jpeg[at : at + 5] + struct.pack(">HH", 60_000, 60_000) + jpeg[at + 9 : at + 19]
    forged = jpeg[:at] + jpeg[at : at + 19] + second + jpeg[at + 19 :]
    assert JpegImageFile(io.BytesIO(forged)).size == (60_000, 60_000)
    monkeypatch.setattr(JpegImageFile, "draft", lambda *_: pytest.fail("Pillow goes on with the forged size"))
    assert reason(forged, short_side=2) == reason(forged) == Reason.corrupt_image


def test_a_jpeg_without_a_frame_header() -> None:
    assert reason(b"\xff\xd8\xff\xe0\0\4ab\xff\xda\0\2") == Reason.corrupt_image
    assert reason(b"\xff\xd8\xff\xe0\0\4ab\xff\xd9") == Reason.corrupt_image
    assert reason(b"\xff\xd8\xff\xe0\0\4ab") == Reason.truncated_image


@pytest.mark.parametrize(("at", "value"), [(4, 12), (1, 0xC3), (1, 0xC5)], ids=["12-bit", "lossless", "differential"])
def test_jpegs_beyond_the_usual_processes_are_not_called_corrupt(
    picture: Image.Image, encode: Encode, at: int, value: int
) -> None:
    jpeg = bytearray(encode(picture, "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + at] = value
    assert reason(bytes(jpeg)) == Reason.unsupported_image


def test_details_are_one_line_without_where_a_library_was_built(picture: Image.Image, encode: Encode) -> None:
    with pytest.raises(Undecodable) as caught:
        decode(encode(picture, "JPEG")[:-2])
    assert caught.value.detail == "Image is incomplete or truncated"


def test_a_verdict_survives_the_way_between_processes() -> None:
    verdict = pickle.loads(pickle.dumps(Undecodable(Reason.corrupt_image, "why")))  # noqa: S301
    assert (verdict.reason, verdict.detail, str(verdict)) == (Reason.corrupt_image, "why", "corrupt_image: why")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its own size from /proc")
def test_random_damage_neither_crashes_nor_fills_memory() -> None:
    script = Path(__file__).with_name("fuzz_decode.py")
    run = subprocess.run(
        [sys.executable, "-X", "faulthandler", script, "0", "1500"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    counts = dict(item.split("=") for item in run.stdout.split())
    assert sum(map(int, counts.values())) == 1500
    assert {"ok", "corrupt_image", "truncated_image", "image_too_large", "unsupported_image"} <= counts.keys()
