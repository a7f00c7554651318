"""Image bytes to an RGB tensor; what cannot be decoded says why.

JPEG goes through torchvision, which rejects every truncation. Everything else goes through Pillow, because torchvision
crashes the process on damaged PNGs. Either way the size in the header is checked before memory is taken for pixels.
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
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile
from pydantic import Field
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from models.config import Config
from pipeline.ingest.headers import JPEG_MAGIC, PNG_MAGIC, Undecodable, check_png, check_riff, jpeg_size
from pipeline.tables.schema import Reason

__all__ = ["DecodeConfig", "Undecodable", "decode"]


_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N")
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {  # EXIF orientation to what puts the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodeConfig(Config):
    """What an image may cost."""

    # Each pixel takes 3 bytes once decoded, and up to 16 on the way there.
    max_pixels: int = Field(default=2**26, ge=1)
    # Of the encoded file, as a limit for read_samples: a larger one is never held in memory.
    max_image_bytes: int = Field(default=2**28, ge=1)


def decode(image: bytes, config: DecodeConfig | None = None) -> Tensor:
    """The image as a contiguous uint8 tensor (3, H, W), RGB, upright; the first frame of an animation.

    The format is read from the bytes, not from a name. EXIF orientation is applied. What is transparent lies on white;
    16-bit channels are scaled to 8, not clipped; colour profiles are ignored. JPEG, PNG, GIF, WebP, BMP, TIFF and
    PPM can be decoded.

    Raises Undecodable and nothing else. PNGs are held to their checksums; damage in the pixels of other formats that
    leaves the structure whole cannot be seen. Safe in threads: no global state of Pillow is touched.
    """
    config = config or DecodeConfig()
    try:
        return _decode(image, config)
    except Undecodable:
        raise
    except Exception as error:  # Pillow's parsers raise a dozen types for damaged files, torchvision RuntimeError
        detail = _sentence(error)
        raise Undecodable(_reason(error, detail), detail) from error


def _decode(image: bytes, config: DecodeConfig) -> Tensor:
    if not image:
        raise Undecodable(Reason.empty_image, "0 bytes")
    if image.startswith(JPEG_MAGIC):
        _check_size(*jpeg_size(image), config)
        encoded = torch.frombuffer(bytearray(image), dtype=torch.uint8)
        pixels: Tensor = decode_jpeg(encoded, mode=ImageReadMode.RGB, apply_exif_orientation=True)
        return pixels.contiguous()
    opener = _opener(image)
    if opener is PngImageFile:
        check_png(image)
    elif opener is WebPImageFile:
        check_riff(image)
    with opener(io.BytesIO(image)) as picture:
        _check_size(*picture.size, config)
        picture.load()
        upright = _upright(_to_rgb(picture), _orientation(picture))
    return torch.from_numpy(np.array(upright)).permute(2, 0, 1).contiguous()


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


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in _DEEP_GREY or (picture.mode == "I" and picture.format == "PPM"):
        # Pillow's own conversion clips at 255. PPM files with more than 8 bits come as "I" in 0..65535.
        deep_HW = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((deep_HW * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
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
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF in a sound image; libjpeg's side ignores it too
        return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture


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
