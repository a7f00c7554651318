"""Images into WebDataset shards: the same images give the same bytes, and what is finished is not written again."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pydantic import Field
from webdataset import TarWriter

from models.config import Config
from models.errors import ShoalError
from pipeline.ingest.folder import FolderScan, ImageFile, scan_folder
from pipeline.ingest.names import IMAGE_EXTENSIONS, is_shard, is_unsafe, label_of, split_name, unique_keys
from pipeline.progress import Progress, silent

JOURNAL = "shards.jsonl"  # one line per finished shard: its name, size and what it was made of
_OWN_NAME = re.compile(r"shard-\d{6,}\.tar")  # a journal may come from a stranger: it names nothing else


class ShardConfig(Config):
    """When a shard is full: with the image that reaches either limit."""

    images_per_shard: int = Field(default=10_000, ge=1)
    bytes_per_shard: int = Field(default=2**30, ge=1)  # of images


class NewSample(NamedTuple):
    """A sample to be written. `extension` has no dot; `meta` becomes the .json member, `label` the .cls member."""

    key: str
    extension: str
    image: bytes
    label: str | None = None
    meta: Mapping[str, object] = MappingProxyType({})


def write_shards(
    source: Path | FolderScan, output: Path, config: ShardConfig | None = None, on_progress: Progress = silent
) -> list[Path]:
    """Pack a folder of images, or the scan of one, into `output/shard-000000.tar` and so on; returns all of them.

    A sample is the unchanged bytes of the file, a .cls member with the name of the first-level folder when there is
    one, and a .json member with the original path. Keys are those of `unique_keys`. A shard appears when it is
    complete; one that is there already from unchanged files is kept, so a run that was killed goes on where it was.

    Raises ShoalError for a folder without images, an image that cannot be read, an output with shards from elsewhere.
    Memory: one image, and some 500 bytes for each in the folder. Time: one pass over all bytes.
    """
    scan = source if isinstance(source, FolderScan) else scan_folder(source)
    config = config or ShardConfig()
    finished = _claim(output)
    shards: list[Path] = []
    done, total = 0, len(scan.images)
    for plan in _plans(scan.images, config):
        path = _shard_path(output, len(shards))
        fingerprint = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
        if not _is_finished(path, finished, fingerprint):
            samples = (_new_sample(scan.folder, key, image) for key, image in plan)
            _write_shard(path, _counted(samples, done, total, on_progress), fingerprint)
        shards.append(path)
        done += len(plan)
        on_progress("shards", done, total)
    _remove_leftovers(output, finished, shards)
    return shards


def write_samples(
    samples: Iterable[NewSample], output: Path, config: ShardConfig | None = None, on_progress: Progress = silent
) -> list[Path]:
    """Pack samples that come from elsewhere, in their order. The same samples give the same bytes.

    Raises ShoalError for a key that is there twice or that WebDataset would read as another one, for an extension that
    is no image's, and for an output with shards from elsewhere. Memory: one image, and all keys.
    """
    config = config or ShardConfig()
    finished = _claim(output)
    shards: list[Path] = []
    incoming = _counted(_checked(samples), 0, None, on_progress)
    for first in incoming:
        path = _shard_path(output, len(shards))
        _write_shard(path, _until_full(first, incoming, config), fingerprint="")
        shards.append(path)
    if not shards:
        raise ShoalError(f"There are no samples to write to {output}.")
    _remove_leftovers(output, finished, shards)
    return shards


def _plans(images: Iterable[ImageFile], config: ShardConfig) -> Iterator[list[tuple[str, ImageFile]]]:
    """Which images go into which shard, and under which key."""
    images = list(images)
    plan: list[tuple[str, ImageFile]] = []
    size = 0
    for key, image in zip(unique_keys(image.path for image in images), images, strict=True):
        plan.append((key, image))
        size += image.size
        if len(plan) >= config.images_per_shard or size >= config.bytes_per_shard:
            yield plan
            plan, size = [], 0
    if plan:
        yield plan


def _until_full(first: NewSample, rest: Iterator[NewSample], config: ShardConfig) -> Iterator[NewSample]:
    count, size = 1, len(first.image)
    yield first
    while count < config.images_per_shard and size < config.bytes_per_shard:
        sample = next(rest, None)
        if sample is None:
            return
        count, size = count + 1, size + len(sample.image)
        yield sample


def _counted(samples: Iterable[NewSample], done: int, total: int | None, on_progress: Progress) -> Iterator[NewSample]:
    for count, sample in enumerate(samples, start=done + 1):
        yield sample
        on_progress("shards", count, total)


def _checked(samples: Iterable[NewSample]) -> Iterator[NewSample]:
    keys: set[str] = set()
    for sample in samples:
        name = f"{sample.key}.{sample.extension}"
        if split_name(name) != (sample.key, sample.extension) or is_unsafe(name):
            raise ShoalError(
                f"{name!r} cannot be a member of a shard; use a relative key without dots in its last part."
            )
        if sample.extension not in IMAGE_EXTENSIONS:
            raise ShoalError(f"{name!r} has no image extension; expected one of {', '.join(sorted(IMAGE_EXTENSIONS))}.")
        if sample.key in keys:
            raise ShoalError(f"The key {sample.key!r} is there twice; give every sample a key of its own.")
        keys.add(sample.key)
        yield sample


def _new_sample(folder: Path, key: str, image: ImageFile) -> NewSample:
    file = folder / image.path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ShoalError(f"{file} cannot be read ({error.strerror}); make it readable or remove it.") from error
    return NewSample(key, file.suffix[1:].lower(), content, label_of(image.path), {"path": image.path})


def _write_shard(path: Path, samples: Iterable[NewSample], fingerprint: str) -> None:
    """The journal comes before the name, which is nobody's until then: stopped anywhere, the next run can go on."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)  # and "x": what lies there may be a link to something else
    with part.open("xb") as file:
        with TarWriter(file, user="", group="", mtime=0, encoder=False) as tar:
            for sample in samples:
                tar.write({"__key__": sample.key, **_members(sample)})
        file.flush()
        os.fsync(file.fileno())
    path.unlink(missing_ok=True)
    line = {"shard": path.name, "size": part.stat().st_size, "fingerprint": fingerprint}
    with path.with_name(JOURNAL).open("a") as journal:
        journal.write("\n" + json.dumps(line))  # the line break is in front: a torn last line spoils only itself
        journal.flush()
        os.fsync(journal.fileno())
    part.replace(path)


def _members(sample: NewSample) -> dict[str, bytes]:
    members = {sample.extension: sample.image}
    if sample.label is not None:
        members["cls"] = sample.label.encode()
    if sample.meta:
        members["json"] = json.dumps(dict(sample.meta), sort_keys=True).encode()
    return members


def _claim(output: Path) -> dict[str, dict[str, object]]:
    """Make the folder, and return what its journal says of finished shards.

    Raises ShoalError for shards not in it, and for a link that was not ours before.
    """
    journal = output / JOURNAL
    for each in (output, journal):
        if each.is_symlink() and (each == journal or not journal.is_file()):
            raise ShoalError(f"{each} is a symbolic link to {each.readlink()}; give a folder that is none.")
    output.mkdir(parents=True, exist_ok=True)
    finished: dict[str, dict[str, object]] = {}
    for line in journal.read_bytes().splitlines() if journal.exists() else []:
        try:
            entry = json.loads(line)
            name = str(entry["shard"])
        except (ValueError, KeyError, TypeError, RecursionError):
            continue  # torn by a crash: that shard is written again
        if _OWN_NAME.fullmatch(name):
            finished[name] = entry
    foreign = sorted(
        file.name
        for file in output.iterdir()
        if is_shard(file.name) and file.name not in finished and file.name[0] != "."
    )
    if foreign:
        raise ShoalError(f"{output} already holds {foreign[0]}, which was not written here; choose another folder.")
    return finished


def _shard_path(output: Path, index: int) -> Path:
    return output / f"shard-{index:06d}.tar"


def _is_finished(path: Path, finished: dict[str, dict[str, object]], fingerprint: str) -> bool:
    entry = finished.get(path.name)
    return (
        entry is not None
        and entry.get("fingerprint") == fingerprint
        and path.exists()
        and path.stat().st_size == entry.get("size")
    )


def _remove_leftovers(output: Path, finished: dict[str, dict[str, object]], shards: list[Path]) -> None:
    """Shards of an earlier run that had more of them, and what a killed run had begun."""
    names = finished.keys() - {shard.name for shard in shards}
    for path in [output / name for name in names] + list(output.glob(".shard-*.tar.part")):
        path.unlink(missing_ok=True)
