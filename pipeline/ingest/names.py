"""How the name of a file in a shard becomes a sample's key and the kind of its content."""

from __future__ import annotations

import re

# What means an image; which of them can be decoded is decode.py's business.
IMAGE_EXTENSIONS = frozenset(
    {"jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm"}
    | {"avif", "heic", "heif", "jp2", "jxl"}
)
LABEL_SUFFIXES = frozenset({"cls", "json"})
SHARD_EXTENSIONS = (".tar", ".tar.gz", ".tgz")

_WEBDATASET_META = re.compile(r"__[^/]*__($|/)")


def split_name(name: str) -> tuple[str, str] | None:
    """Key and lower-case suffix, divided at the first dot of the last path component as WebDataset divides them.

    None for what is no part of a sample: hidden files, names without a dot, WebDataset's own `__…__` entries.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    if not stem or not suffix or _WEBDATASET_META.match(name):
        return None
    return folder + slash + stem, suffix.lower()


def is_image(name: str) -> bool:
    """Whether the last extension is an image's, in any case."""
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def is_shard(name: str) -> bool:
    """Whether a file name is that of a shard, in any case."""
    return name.lower().endswith(SHARD_EXTENSIONS)


def is_unsafe(name: str) -> bool:
    """Whether unpacking a member of this name would write outside the target folder."""
    return name.startswith("/") or ".." in name.split("/")
