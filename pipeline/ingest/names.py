"""How the name of a file in a shard becomes a sample's key and the kind of its content."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

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

    None for what is no part of a sample: names without a dot, WebDataset's own `__…__` entries, and hidden files
    (of `d/._a.jpg`, which macOS adds to archives, WebDataset would make a sample `d/`).
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


def label_of(path: str) -> str | None:
    """The first folder on a relative path, as text that any table can hold."""
    folder, slash, _ = path.partition("/")
    return _printable(folder) if slash else None


def unique_keys(paths: Iterable[str]) -> list[str]:
    """A key for each relative path of an image, one that `split_name` gives back whatever extension follows it.

    Folders and Unicode stay. Dots in the stem become "_", because WebDataset would end the key there; so do control
    characters, and leading "_" go from a top folder like `__MACOSX__`, which WebDataset skips. When this, or
    the loss of the extension, makes two keys equal, later paths get "-1", "-2", …: the same paths in the same order
    give the same keys. Memory: all keys.
    """
    keys: dict[str, None] = {}
    for path in paths:
        pure = PurePosixPath(_printable(path))
        stem = str(pure.with_name(pure.stem.replace(".", "_")))
        while _WEBDATASET_META.match(stem):
            stem = stem[1:]
        key, number = stem, 0
        while key in keys:
            number += 1
            key = f"{stem}-{number}"
        keys[key] = None
    return list(keys)


def _printable(path: str) -> str:
    """UTF-8 without control characters; bytes that are not UTF-8 are spelled out."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join("_" if ord(character) < 32 or ord(character) == 127 else character for character in text)
