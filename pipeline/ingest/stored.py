"""What a storage says of its files without opening them: how large they are, and when they were last written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow.fs as pafs

from pipeline.tables.storage import open_filesystem

_THREADS = 32  # an object store answers one question in tens of milliseconds, and many at a time
_WORTH_LISTING = 32  # files of a folder from which on one listing of it is cheaper than a question for each
_SPECIAL = "?%"  # in a URL they may mean something else than a letter of a file's name


@dataclass(frozen=True)
class Stored:
    """A file as its storage describes it."""

    size: int | None  # bytes
    modified: int | None  # nanoseconds since 1970 by the storage's clock, which may tick in seconds


def stored(file: str) -> Stored | None:
    """Size and time of a file; None where there is none, or nobody can tell."""
    try:
        filesystem, path = open_filesystem(file)
        return _stored(filesystem.get_file_info(path))
    except Exception:  # every filesystem raises what it likes
        return None


def stored_all(files: Sequence[str]) -> dict[str, Stored]:
    """`stored` of each of many files; those of which nothing is known are absent.

    One listing of a folder that has many of them (an object store lists 1,000 names a request), else 32 at a time.
    """
    folders, single = _by_folder(files)
    found: dict[str, Stored] = {}
    for folder, names in folders.items():
        listed = _listed(folder)
        if listed is None:
            single += names
        else:
            found.update((name, listed[name]) for name in names if name in listed)
    with ThreadPoolExecutor(_THREADS) as threads:
        answers = zip(single, threads.map(stored, single), strict=True)
        found.update((name, answer) for name, answer in answers if answer is not None)
    return found


def _by_folder(files: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Files by folders that are worth listing, and the rest."""
    folders = defaultdict[str, list[str]](list)
    for file in files:
        folders[file.rpartition("/")[0]].append(file)
    single: list[str] = []
    for folder in list(folders):
        names = folders[folder]
        plain = [name for name in names if not any(letter in name for letter in _SPECIAL)]
        if len(plain) < _WORTH_LISTING or not folder or folder.lower().startswith(("http://", "https://")):
            single += folders.pop(folder)
        else:
            single += set(names) - set(plain)
            folders[folder] = plain
    return folders, single


def _listed(folder: str) -> dict[str, Stored] | None:
    """The files of a folder by the names that its files are asked for; None where it cannot be listed."""
    try:
        filesystem, path = open_filesystem(folder)
        entries = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    except Exception:  # every filesystem raises what it likes
        return None
    described = ((f"{folder}/{entry.base_name}", _stored(entry)) for entry in entries)
    return {name: file for name, file in described if file is not None}


def _stored(entry: pafs.FileInfo) -> Stored | None:
    return Stored(entry.size, entry.mtime_ns) if entry.type == pafs.FileType.File else None
