"""Image bytes as small pictures inside the page: data-URIs, which need no network."""

from __future__ import annotations

import base64
import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

TINY_PX = 64  # at most this large: kept pixel by pixel and magnified by the browser without smoothing
_JPEG_QUALITY = 80


@dataclass(frozen=True)
class Thumbnail:
    """A picture ready for `<img src>`."""

    uri: str
    pixelated: bool


def thumbnail(image: bytes | None, side: int) -> Thumbnail | None:
    """The centre square of `image` in at most `side` x `side` pixels; None when it cannot be decoded.

    The centre square is what backbones see. JPEG is decoded at reduced scale, so a photograph costs a few milliseconds.
    """
    if not image:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return _thumbnail(image, side)
    except Exception:  # Pillow's plugins raise almost anything on damaged bytes; one bad image must not cost the report
        return None


def _thumbnail(image: bytes, side: int) -> Thumbnail:
    with Image.open(io.BytesIO(image)) as opened:
        tiny = max(opened.size) <= TINY_PX
        if not tiny:
            opened.draft("RGB", (2 * side, 2 * side))
        picture = _rgb(ImageOps.exif_transpose(opened))
    if tiny:
        return Thumbnail(_uri(picture, "PNG"), pixelated=True)
    square = min(side, *picture.size)
    return Thumbnail(_uri(ImageOps.fit(picture, (square, square)), "JPEG", quality=_JPEG_QUALITY), pixelated=False)


def _rgb(picture: Image.Image) -> Image.Image:
    """RGB or grey of 8 bits; transparency over white."""
    if picture.mode.startswith(("I", "F")):
        return _eight_bits(picture)
    if picture.has_transparency_data:
        page = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(page, picture.convert("RGBA")).convert("RGB")
    return picture if picture.mode in ("L", "RGB") else picture.convert("RGB")


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Grey of more than 8 bits, stretched to its own range: convert("L") would clip it to white."""
    values = np.asarray(picture, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


def _uri(picture: Image.Image, kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, optimize=True, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
