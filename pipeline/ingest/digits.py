"""Scikit-learn's handwritten digits as samples: real images that every installation has."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipeline.ingest.write import NewSample

COUNT = 1_797
_SOURCE = "sklearn.datasets.load_digits (UCI optical recognition of handwritten digits)"


def digits() -> Iterator[NewSample]:
    """All 1,797 digits as 8 × 8 grey PNGs with the digit as label, in the order of the data set."""
    from sklearn.datasets import load_digits  # noqa: PLC0415  slow to import, and only the demo needs it

    data = load_digits()
    for index, (ink_88, digit) in enumerate(zip(data.images, data.target, strict=True)):
        meta = {"index": index, "source": _SOURCE}
        yield NewSample(f"digit-{index:04d}", "png", _png(ink_88), str(digit), meta)


def _png(ink_88: np.ndarray) -> bytes:
    """Ink of 0 to 16 as an 8-bit grey PNG of 0 to 255."""
    buffer = io.BytesIO()
    Image.fromarray(np.round(ink_88 * (255 / 16)).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
