"""Image bytes to an RGB tensor; what cannot be decoded says why.

JPEG goes through torchvision, which rejects every truncation, or through Pillow where it is to be decoded at a reduced
size, which torchvision cannot. Everything else goes through Pillow, because torchvision crashes the process on damaged
PNGs. Either way the size in the header is checked before memory is taken for pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import Field
from torch import Tensor

from models.config import Config
from pipeline.ingest.headers import (
    JPEG_MAGIC,
    ORIENTATION_TAG,
    PNG_MAGIC,
    JpegHeader,
    Undecodable,
    check_png,
    check_riff,
    has_end,
    read_jpeg_header,
)
from pipeline.tables.schema import Reason

__all__ = ["DecodeConfig", "Undecodable", "decode"]


_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
_FLIPS = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}  # EXIF orientation to mirrored axes
_SPARE = 2  # how many times the size asked for is left after reducing


class DecodeConfig(Config):
    """What an image may cost."""

    # Each pixel takes 3 bytes once decoded, and on the way there 3 to 9 (JPEG), 10 to 14 (PNG) or 18 (lossless WebP).
    max_pixels: int = Field(default=2**26, ge=1)
    # Of the encoded file, as a limit for read_samples: a larger one is never held in memory.
    max_image_bytes: int = Field(default=2**28, ge=1)
    reduce_jpeg: bool = Field(
        default=True, description="decode a JPEG at 1/2, 1/4 or 1/8 where that leaves twice the size the backbone takes"
    )


def decode(image: bytes, config: DecodeConfig | None = None, short_side: int | None = None) -> Tensor:
    """The image as a uint8 tensor (3, H, W) of any strides, RGB, upright; the first frame of an animation.

    The format is read from the bytes, not from a name. EXIF orientation is applied. What is transparent lies on white;
    16-bit channels are scaled to 8, not clipped; colour profiles are ignored. JPEG, PNG, GIF, WebP, BMP, TIFF and
    PPM can be decoded.

    With `short_side` (and `config.reduce_jpeg`) a JPEG whose short side is at least 4, 8 or 16 times that many pixels
    is decoded at 1/2, 1/4 or 1/8, by a smaller inverse DCT. Nothing else is reduced. `max_pixels` counts the pixels in
    the header all the same, because the memory for a progressive JPEG grows with those.

    Raises Undecodable and nothing else. PNGs are held to their checksums; damage in the pixels of other formats that
    leaves the structure whole cannot be seen. Safe in threads: no global state of Pillow is touched.
    """
    config = config or DecodeConfig()
    try:
        return _decode(image, config, short_side)
    except Undecodable:
        raise
    except Exception as error:  # Pillow's parsers raise a dozen types for damaged files, torchvision RuntimeError
        detail = _sentence(error)
        raise Undecodable(_reason(error, detail), detail) from error


def _decode(image: bytes, config: DecodeConfig, short_side: int | None) -> Tensor:
    if not image:
        raise Undecodable(Reason.empty_image, "0 bytes")
    if image.startswith(JPEG_MAGIC):
        return _decode_jpeg(image, config, short_side)
    opener = _opener(image)
    if opener is PngImageFile:
        check_png(image)
    elif opener is WebPImageFile:
        check_riff(image)
    with opener(io.BytesIO(image)) as picture:
        _check_size(*picture.size, config)
        picture.load()
        return _upright(_tensor(_opaque(picture)), _orientation(picture))


def _decode_jpeg(image: bytes, config: DecodeConfig, short_side: int | None) -> Tensor:
    from torchvision.io import ImageReadMode, decode_jpeg  # noqa: PLC0415  takes seconds, and settings need it not

    header = read_jpeg_header(image)
    _check_size(header.width, header.height, config)
    factor = _factor(header, short_side) if config.reduce_jpeg else 1
    reduced_3HW = _decode_reduced(image, header, factor) if factor > 1 else None
    if reduced_3HW is not None:
        return _upright(reduced_3HW, header.orientation)
    whole_3HW: Tensor = decode_jpeg(torch.frombuffer(bytearray(image), dtype=torch.uint8), mode=ImageReadMode.RGB)
    return _upright(whole_3HW, header.orientation)


def _factor(header: JpegHeader, short_side: int | None) -> int:
    """The largest of 8, 4, 2 that leaves `_SPARE` times the pixels asked for; 1 when none does.

    At twice that, EfficientNet-Lite0's embeddings of photos are 3 to 6 % from those of the whole image where `factor`
    divides the sides, and up to 9 % where it does not; at just the size asked for, 8 to 16 %. For comparison: saving at
    quality 90 instead of 95 moves them by 2 to 5 %, bfloat16 by 3 %.
    """
    if short_side is None or not header.reducible:
        return 1
    room = min(header.width, header.height) // (_SPARE * short_side)
    return max((factor for factor in (2, 4, 8) if factor <= room), default=1)


def _decode_reduced(image: bytes, header: JpegHeader, factor: int) -> Tensor | None:
    """None for what is damaged: then the verdict is that on the whole image.

    Pillow alone would let a file pass that ends between its last pixel and its end marker.
    """
    if not has_end(image, header.frame):
        return None
    try:
        with JpegImageFile(io.BytesIO(image)) as picture:
            if picture.size != (header.width, header.height):  # of a second frame header, which was not checked
                return None
            picture.draft(None, (header.width // factor, header.height // factor))
            picture.load()
            reduced_3HW = _tensor(picture)
    except Exception:  # Pillow's parser raises many types
        return None
    # A last row or column of which half or less is image would stretch it: 0.4 of 256 pixels at 1/8.
    return reduced_3HW[:, : _nearest(header.height, factor), : _nearest(header.width, factor)]


def _nearest(size: int, factor: int) -> int:
    """`size` / `factor`, rounded to the nearest."""
    return (size + factor // 2 - 1) // factor


def _opener(image: bytes) -> Callable[[io.BytesIO], ImageFile]:
    """Pillow's reader, by signature. Called directly: Image.open would add a warning of its own for large images."""
    readers: list[tuple[bool, Callable[[io.BytesIO], ImageFile]]] = [
        (image.startswith(PNG_MAGIC), PngImageFile),
        (image.startswith((b"GIF87a", b"GIF89a")), GifImageFile),
        (image.startswith(b"RIFF") and image[8:12] == b"WEBP", WebPImageFile),
        (image.startswith((b"II*\0", b"MM\0*")), TiffImageFile),
        (image.startswith(b"BM"), BmpImageFile),
        (image[:1] == b"P" and image[1:2] in b"123456" and image[2:3].isspace(), PpmImageFile),
    ]
    for matches, reader in readers:
        if matches:
            return reader
    raise Undecodable(
        Reason.unsupported_image,
        f"begins with {image[:8]!r}, which is not JPEG, PNG, GIF, WebP, BMP, TIFF or PPM",
    )


def _check_size(width: int, height: int, config: DecodeConfig) -> None:
    if width * height > config.max_pixels:
        raise Undecodable(
            Reason.image_too_large, f"{width} × {height} pixels are more than max_pixels = {config.max_pixels}"
        )


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture in mode L or RGB."""
    if picture.mode in _DEEP_GREY or (picture.mode == "I" and picture.format == "PPM"):
        # Pillow's own conversion clips at 255. PPM files with more than 8 bits come as "I" in 0..65535.
        deep_HW = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((deep_HW * 255 + 32767) // 65535).astype(np.uint8))
    if picture.mode in ("I", "F", "LAB"):
        raise Undecodable(
            Reason.unsupported_image, f"mode {picture.mode} has no defined range; convert it to 8 or 16 bit"
        )
    if picture.has_transparency_data:
        # What lies below full transparency is arbitrary, so it must not reach the embedding.
        layer = picture.convert("RGBA")
        ground = Image.new("RGB", picture.size, "white")
        ground.paste(layer, mask=layer.getchannel("A"))
        return ground
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def _tensor(picture: Image.Image) -> Tensor:
    """A view (3, H, W) of pixels that lie together, of grey levels a single one."""
    pixels = torch.from_numpy(np.array(picture))
    return pixels.expand(3, -1, -1) if picture.mode == "L" else pixels.permute(2, 0, 1)


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF in a sound image
        return 1


def _upright(image_3HW: Tensor, orientation: int) -> Tensor:
    if 5 <= orientation <= 8:
        image_3HW = image_3HW.mT
    return image_3HW.flip(_FLIPS[orientation]) if orientation in _FLIPS else image_3HW


def _sentence(error: Exception) -> str:
    """The first line of an error, without the source file that torchvision puts before it."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return text.rpartition(".cpp:")[2].partition(", ")[2] if ".cpp:" in text else text


def _reason(error: Exception, detail: str) -> Reason:
    if isinstance(error, Image.DecompressionBombError | MemoryError):
        return Reason.image_too_large
    if isinstance(error, EOFError) or "truncated" in detail.lower():
        return Reason.truncated_image
    if detail.startswith(("Unsupported JPEG", "Unsupported color")):  # 12 bits, lossless, hierarchical
        return Reason.unsupported_image
    return Reason.corrupt_image
