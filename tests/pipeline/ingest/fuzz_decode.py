"""Random damage to images, in a process of its own because it may crash: `python fuzz_decode.py SEED COUNT`."""

from __future__ import annotations

import io
import random
import resource
import struct
import sys
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.ingest.decode import DecodeConfig, Undecodable, decode

LIMITS = DecodeConfig(max_pixels=2**22)
SPARE_BYTES = 2**30  # what decoding may take beyond the imports; a forged header asks for 10 times as much
FORGED = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xea\x60", b"\x60\xea\0\0"]


def originals() -> dict[str, bytes]:
    y_HW, x_HW = np.mgrid[0:33, 0:47]
    picture = Image.fromarray(np.stack([x_HW * 5, y_HW * 7, x_HW * y_HW // 6], axis=-1).astype(np.uint8))
    deep = Image.fromarray((x_HW * y_HW * 40).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    variants = [("PNG", picture.convert(mode), {"exif": exif}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
    variants += [
        ("PNG", deep, {}),
        ("TIFF", deep, {}),
        ("GIF", picture, {}),
        ("BMP", picture, {}),
        ("PPM", picture, {}),
    ]
    variants += [("JPEG", picture, {"exif": exif}), ("JPEG", picture.convert("CMYK"), {"progressive": True})]
    variants += [("WEBP", picture, {"exif": exif}), ("WEBP", picture, {"lossless": True})]
    frames = {"save_all": True, "append_images": [picture.rotate(180)]}
    variants += [(name, picture, frames) for name in ("GIF", "WEBP", "TIFF")]
    codecs = ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    variants += [("TIFF", picture, {"compression": codec}) for codec in codecs]
    variants += [("TIFF", picture.convert("1"), {"compression": "group4"}), ("BMP", picture.convert("P"), {})]
    encoded = {}
    for number, (name, image, options) in enumerate(variants):
        buffer = io.BytesIO()
        image.save(buffer, name, **options)
        encoded[f"{name}-{number}"] = buffer.getvalue()
    return encoded


def damaged(image: bytes, generator: random.Random) -> bytes:
    content = bytearray(image)
    at = generator.randrange(min(len(content), generator.choice([64, 400, 10**6])))
    match generator.choice(["flip", "flip", "cut", "drop", "insert", "forge"]):
        case "flip":
            for _ in range(generator.choice([1, 2, 8])):
                content[(at + generator.randrange(40)) % len(content)] = generator.randrange(256)
        case "cut":
            del content[at:]
        case "drop":
            del content[at : at + generator.randrange(1, 60)]
        case "insert":
            content[at:at] = generator.randbytes(generator.randrange(1, 30))
        case "forge":
            content[at : at + 4] = generator.choice(FORGED)
    return bytes(content)


def with_valid_checksums(image: bytes) -> bytes:
    """So that damage gets behind the first line of defence."""
    content, at = bytearray(image), 8
    if image.startswith(b"RIFF"):
        return image[:4] + struct.pack("<I", max(0, len(image) - 8)) + image[8:]
    while image.startswith(b"\x89PNG") and at + 12 <= len(content):
        end = at + 8 + struct.unpack_from(">I", content, at)[0]
        if end + 4 > len(content):
            break
        struct.pack_into(">I", content, end, zlib.crc32(content[at + 4 : end]))
        at = end + 4
    return bytes(content)


def verdict(image: bytes, short_side: int | None) -> str:
    try:
        pixels = decode(image, LIMITS, short_side)
    except Undecodable as error:
        return error.reason.value
    assert pixels.dtype == torch.uint8
    assert pixels.ndim == 3
    assert pixels.shape[0] == 3
    assert 0 < pixels[0].numel() <= LIMITS.max_pixels
    return "ok"


def main(seed: int, count: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE_BYTES,) * 2)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    generator, outcomes = random.Random(seed), Counter[str]()
    images = originals()
    for name, image in images.items():
        assert decode(image, LIMITS).shape[1:].numel() == 33 * 47, name
    for _ in range(count):
        image = damaged(images[generator.choice(list(images))], generator)
        if generator.random() < 0.7:
            image = with_valid_checksums(image)
        outcome = verdict(image, None)
        if image.startswith(b"\xff\xd8"):
            assert verdict(image, generator.choice([2, 4, 8])) == outcome, image
        outcomes[outcome] += 1
    sys.stdout.write(" ".join(f"{name}={number}" for name, number in sorted(outcomes.items())))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
