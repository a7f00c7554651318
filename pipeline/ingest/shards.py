"""Which shards there are, and every sample and reject of one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import braceexpand  # what WebDataset expands shard lists with
import pyarrow.fs

from models.errors import ShoalError
from pipeline.ingest.grouping import Grouping, Reject, Sample
from pipeline.ingest.names import is_shard
from pipeline.ingest.stored import Stored, stored
from pipeline.ingest.stream import ShardStream, open_raw
from pipeline.ingest.tar import Gap, read_members
from pipeline.tables.schema import Reason
from pipeline.tables.storage import is_object_store, open_filesystem
from pipeline.tables.stores import Address, one_line

__all__ = ["MAX_MEMBER_BYTES", "Reject", "Sample", "ShardReader", "ShardSummary", "list_shards", "read_samples"]

MAX_MEMBER_BYTES = 2**28
_AT_THE_END = (Reason.truncated_shard, Reason.not_a_tar, Reason.empty_shard)


@dataclass(frozen=True)
class ShardSummary:
    """A shard as it was read."""

    shard: str
    size: int  # stored bytes
    checksum: str  # "sha256:…" of the stored bytes; "" when the storage did not give all of them, or of two files
    samples: int
    rejects: int
    ignored: int  # members nothing is made of, see Grouping
    modified: int | None = None  # ns since 1970, as the storage said before the first byte was read


class ShardReader:
    """Iterates over the samples and rejects of a shard; `summary` is there when an iteration is over."""

    def __init__(self, shard: str, max_member_bytes: int) -> None:
        self.shard = shard
        self._max_member_bytes = max_member_bytes
        self._summary: ShardSummary | None = None
        self._stream: ShardStream | None = None
        self._stored_bytes: int | None = None

    @property
    def fraction(self) -> float:
        """The part of the stored bytes that was read so far; 0 while nobody knows how many there are."""
        if self._stream is None or not self._stored_bytes:
            return 0.0
        return min(1.0, self._stream.size / self._stored_bytes)

    @property
    def summary(self) -> ShardSummary:
        """Raises ValueError before the end of the shard."""
        if self._summary is None:
            raise ValueError(f"{self.shard} has not been read to its end yet")
        return self._summary

    def __iter__(self) -> Iterator[Sample | Reject]:
        before = _look_up(self.shard)  # first: what changes from now on will have another time
        self._stored_bytes = None if before is None else before.size
        with ExitStack() as stack:
            try:
                raw = stack.enter_context(open_raw(self.shard))
            except Exception as error:  # every filesystem raises what it likes, and none of it may stop a run
                yield self._reject(Reason.unreadable_shard, one_line(error))
                self._summary = ShardSummary(self.shard, 0, "", 0, 1, 0)
                return
            stream, grouping = ShardStream(raw), Grouping(self.shard)
            self._stream = stream
            samples = rejects = 0
            for item in self._read(stream, grouping):
                samples += isinstance(item, Sample)
                rejects += isinstance(item, Reject)
                yield item
            if not samples + rejects:
                rejects = 1
                yield self._reject(Reason.empty_shard, f"no samples in {stream.size} bytes")
            modified = None if before is None else before.modified
            # Bytes of two files are no shard: without a checksum it counts as one that cannot be read now.
            checksum = stream.checksum if before == _look_up(self.shard) else ""
            self._summary = ShardSummary(
                self.shard, stream.size, checksum, samples, rejects, grouping.ignored, modified
            )

    def _read(self, stream: ShardStream, grouping: Grouping) -> Iterator[Sample | Reject]:
        failure_told = False
        for item in read_members(stream, self._max_member_bytes):
            if isinstance(item, Gap) and item.reason in _AT_THE_END and stream.failure is not None:
                reason, detail = stream.failure
                yield from grouping.add(replace(item, reason=reason, detail=f"{item.detail}; {detail}"))
                failure_told = True
            else:
                yield from grouping.add(item)
        stream.drain()
        if stream.failure is not None and not failure_told:
            yield self._reject(*stream.failure)
        yield from grouping.finish()

    def _reject(self, reason: Reason, detail: str) -> Reject:
        return Reject("", self.shard, None, None, None, reason, detail)


def read_samples(shard: str, max_member_bytes: int = MAX_MEMBER_BYTES) -> ShardReader:
    """All samples of a shard in the order of the archive, and a Reject for whatever is none.

    Raises nothing: a shard that cannot be opened, breaks off or is no tar gives rejects, at least one. Each member that
    is undamaged comes out, also behind damage. Of a compressed shard, offsets count the uncompressed bytes.

    Memory: two chunks of 4 MiB, one member of at most `max_member_bytes`, and the keys of the shard. Time: linear.
    """
    return ShardReader(shard, max_member_bytes)


def _look_up(shard: str) -> Stored | None:
    """Not of web servers: a request more, for a time that few of them tell."""
    return None if shard.lower().startswith(("http://", "https://")) else stored(shard)


def list_shards(inputs: Sequence[str]) -> list[str]:
    """The shards behind folders, files, URLs and brace patterns (`part-{000..127}.tar`), sorted and each once.

    Local names become absolute paths, so that a shard has one name whoever asks; URLs stay as they are, except that a
    folder in an object store is listed. Raises ShoalError for what does not exist, is no shard, or holds none.
    """
    if not inputs:
        raise ShoalError("No shards were given; name folders of *.tar files, single shards, URLs or brace patterns.")
    return sorted({shard for given in inputs for name in _expand(given) for shard in _behind(name, given)})


def _expand(given: str) -> list[str]:
    if Path(given).exists():
        return [given]  # braces can be part of a name
    try:
        return list(braceexpand.braceexpand(given))
    except ValueError as error:
        raise ShoalError(f"{given} has unbalanced braces; write a pattern like part-{{000..127}}.tar.") from error


def _behind(name: str, given: str) -> list[str]:
    scheme = name.partition("://")[0].lower() if "://" in name else "file"
    if scheme in ("http", "https"):
        return [name]
    if scheme != "file":
        return [name] if is_shard(_without_options(name)) else _list_folder(name)
    path = os.path.normpath(open_filesystem(name)[1])
    if Path(path).is_dir():
        return _list_folder(path)
    if not Path(path).exists():
        origin = "" if name == given else f" (one of {given})"
        raise ShoalError(f"{path}{origin} does not exist; name an existing shard, or a folder of shards.")
    if not is_shard(path):
        raise ShoalError(f"{path} is no shard: a shard's name ends in .tar, .tar.gz or .tgz.")
    return [path]


def _list_folder(folder: str) -> list[str]:
    try:
        filesystem, path = open_filesystem(folder)
        entries = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
    except Exception as error:  # every filesystem raises what it likes
        raise ShoalError(f"{folder} cannot be listed: {one_line(error)}; check its name and your rights.") from error
    files = [entry.base_name for entry in entries if entry.type == pyarrow.fs.FileType.File]
    bare = _without_options(folder)
    options = folder.removeprefix(bare)
    shards = [f"{bare.rstrip('/')}/{name}{options}" for name in files if is_shard(name) and not name.startswith(".")]
    if not shards:
        raise ShoalError(
            f"{folder} holds no *.tar, *.tar.gz or *.tgz among its {len(files)} files; "
            "name a folder of shards, or pack a folder of images with `shoal shards`."
        )
    return shards


def _without_options(url: str) -> str:
    """A URL of an object store may end in options such as `?region=…`."""
    return url.removesuffix(Address.of(url).query) if is_object_store(url) else url
