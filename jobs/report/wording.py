"""Numbers, durations and reasons as a reader wants them: the filters of the templates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime

DASH = "–"

# What each reason of pipeline.tables.schema.Reason means to the owner of the images.
REASONS = {
    "unreadable_shard": "the shard could not be opened or read",
    "empty_shard": "the shard holds no sample",
    "truncated_shard": "the shard ends in the middle of a file",
    "damaged_header": "a damaged part of a shard was skipped",
    "not_a_tar": "the file is not a tar archive",
    "no_image": "the sample has no image file",
    "duplicate_key": "the key occurred earlier in the same shard",
    "empty_image": "the image file is empty",
    "corrupt_image": "the image could not be decoded",
    "truncated_image": "the image ends early",
    "image_too_large": "the image declares too many pixels",
    "unsupported_image": "the image format is not supported",
    "kills_decoder": "decoding the image ended the decoder's process",
    "non_finite_embedding": "the backbone returned NaN or infinity",
    "unsafe_member": "the name in the archive is unsafe",
}


def count(value: float) -> str:
    """1797 as 1,797."""
    return f"{value:,.0f}"


def counted(value: int, noun: str, plural: str | None = None) -> str:
    """1 image, 2 images."""
    return f"{count(value)} {noun if value == 1 else plural or noun + 's'}"


def number(value: float | None) -> str:
    """Three decimals for a score, fewer for a large value; a dash for none."""
    if value is None or math.isnan(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    digits = 3 if abs(value) < 100 else 1 if abs(value) < 100_000 else 0
    text = f"{value:,.{digits}f}"
    return text.replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """A log ratio or a difference, whose sign is the message."""
    if value is None or not math.isfinite(value):
        return number(value)
    return f"{value:+,.{digits}f}".replace("-", "−")


def percent(share: float | None, digits: int = 1) -> str:
    """A share that is shown as 0% or 100% is exactly that."""
    if share is None or math.isnan(share):
        return DASH
    text, smallest = f"{100 * share:.{digits}f}", 10.0**-digits
    if 0 < share < 1 and float(text) in (0, 100):
        return f"<{smallest:g}%" if share < 0.5 else f">{100 - smallest:g}%"
    return f"{text.removesuffix('.0')}%"


def duration(seconds: float) -> str:
    """The two largest units."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def moment(when: datetime) -> str:
    """Date and time to the minute, with the time zone when it is known."""
    return f"{when.day} {when:%B %Y, %H:%M %Z}".strip()


def byte_range(start: int | None, end: int | None) -> str:
    """First to last byte, as in a range request."""
    if start is None:
        return DASH
    if end is None or end <= start:
        return f"at {count(start)}"
    return f"{count(start)}{DASH}{count(end - 1)}"


def cluster_list(clusters: Iterable[int]) -> str:
    """Cluster ids in a row; noise by name."""
    return ", ".join("noise" if cluster < 0 else str(cluster) for cluster in clusters)


FILTERS = {
    function.__name__: function
    for function in (count, counted, number, signed, percent, duration, moment, cluster_list)
}
