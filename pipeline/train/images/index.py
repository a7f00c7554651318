"""Where every usable image of a set of shards is: found once, by reading and decoding all of them.

What cannot be decoded becomes a reject with its reason here, and never disturbs training. The index is one Parquet
file, with rejects as rows that have a reason. Shards that are finished are kept one by one until it is written, so that
a run that was killed goes on where it was; a later run reads only shards whose size or time has changed.

Shapes: N images, S shards.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from models.errors import ShoalError
from pipeline.cluster.rows import row_hashes
from pipeline.extract.ahead import map_ahead
from pipeline.extract.rows import rejected
from pipeline.ingest.decode import DecodeConfig, Undecodable, decode
from pipeline.ingest.shards import Reject, Sample, ShardReader, ShardSummary, read_samples
from pipeline.ingest.stored import Stored, stored_all
from pipeline.ingest.stream import GZIP_MAGIC
from pipeline.progress import Progress, silent
from pipeline.tables.place import Place, place, remove_tree, write_whole
from pipeline.tables.schema import Reason
from pipeline.tables.storage import open_filesystem, patiently
from pipeline.train.images.index_table import (
    COLUMNS,
    FORMAT,
    IndexedShard,
    entries_of,
    file_name,
    is_in_order,
    is_on_web,
    joined,
    packed,
    read_table,
    settings_of,
    split,
    with_meta,
)
from pipeline.train.images.threads import threads_beside

STEP = "index images"
FILE, PARTS = "index.parquet", "parts"


@dataclass(frozen=True)
class ImageIndex:
    """All usable images, by shard and offset. 24 bytes per image in memory, and twice that while it is read."""

    folder: Place
    shards: tuple[IndexedShard, ...]
    row_N: np.ndarray  # int64, stable hashes
    offset_N: np.ndarray
    size_N: np.ndarray
    digest: str  # of the shards' bytes, whatever folder they are in

    def __len__(self) -> int:
        return len(self.row_N)

    @property
    def rejects(self) -> dict[str, int]:
        """By reason."""
        counts: Counter[str] = Counter()
        for shard in self.shards:
            counts.update(shard.rejects)
        return dict(sorted(counts.items()))

    @property
    def end_S(self) -> np.ndarray:
        """For each shard the number of rows up to its end."""
        return np.cumsum([shard.rows for shard in self.shards])

    def reject_table(self) -> pa.Table:
        """One line for each reject: shard, key, offset, size, reason, detail."""
        table = read_table(self.folder / FILE)
        if table is None:
            raise _missing(self.folder)
        return table.filter(pc.is_valid(table["reason"])).drop_columns(["row"])


def index_shards(
    shards: Sequence[str],
    folder: Place,
    decoding: DecodeConfig | None = None,
    on_progress: Progress = silent,
    threads: int = 1,
) -> ImageIndex:
    """The index of `shards` (as `list_shards` gives them) in `folder`, made or brought up to date.

    One pass over every shard that is new or changed, `threads` of them at a time; each image is decoded at full size,
    so that what passes here can be decoded with any other setting too. Nothing is read where nothing has changed.
    Shards on web servers count as unchanged.

    Raises ShoalError when there are no shards, one cannot be read, or none holds a usable image.
    """
    if not shards:
        raise ShoalError("There are 0 shards to learn from; name folders of *.tar files, single shards or URLs.")
    decoding = decoding or DecodeConfig()
    settings = {"format": FORMAT, "decode": decoding.model_dump(mode="json", exclude={"reduce_jpeg"})}
    now = stored_all([shard for shard in shards if not is_on_web(shard)])
    whole = read_table(folder / FILE)
    if whole is not None and _is_current(whole, shards, settings, now):
        return _loaded(folder, whole)
    known = {} if whole is None else split(whole)
    work = partial(_index_shard, known=known, now=now, folder=folder, decoding=decoding, settings=settings)
    tables = list(_in_threads(work, shards, threads, on_progress))
    index = joined(tables, settings)
    _require_images(index, shards)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / FILE, packed(index))
    remove_tree(folder / PARTS)
    return _loaded(folder, index)


def load_index(folder: str | Place) -> ImageIndex:
    """The index that is in `folder`. Raises ShoalError when there is none."""
    folder = place(folder)
    table = read_table(folder / FILE)
    if table is None:
        raise _missing(folder)
    return _loaded(folder, table)


def resized(folder: Place, shards: Sequence[str]) -> str | None:
    """One of `shards` that was not indexed in `folder` with the size that it has now, wherever it is; None if none.

    No shard is read. Those of which nothing is known (they are gone, or on the web) count as unchanged.
    """
    table = read_table(folder / FILE)
    if table is None:
        return None
    known = {(file_name(entry.shard), entry.size) for entry in entries_of(table)}
    now = stored_all([shard for shard in shards if not is_on_web(shard)])
    sized = ((shard, found.size) for shard, found in now.items() if found.size is not None)
    return next((shard for shard, size in sized if (file_name(shard), size) not in known), None)


def _in_threads(
    work: Callable[[str, Event], pa.Table], shards: Sequence[str], threads: int, on_progress: Progress
) -> Iterator[pa.Table]:
    stop = Event()
    pool = threads_beside(threads)
    try:
        parts = map_ahead(lambda shard: work(shard, stop), shards, pool, threads)
        for done, part in enumerate(parts, start=1):
            on_progress(STEP, done, len(shards))
            yield part
    finally:
        stop.set()  # or an interrupt would wait for whole shards
        pool.shutdown(cancel_futures=True)


def _index_shard(  # noqa: PLR0913 - what a thread is told
    shard: str,
    stop: Event,
    *,
    known: Mapping[str, pa.Table],
    now: Mapping[str, Stored],
    folder: Place,
    decoding: DecodeConfig,
    settings: Mapping[str, Any],
) -> pa.Table:
    """What is known of a shard, if it is still as it was; else it is read, and what was found is kept."""
    part = folder / PARTS / f"{hashlib.sha256(shard.encode()).hexdigest()[:32]}.parquet"
    for table in (known.get(shard), read_table(part)):
        if table is not None and _is_current(table, [shard], settings, now):
            return table
    table = _read_shard(shard, decoding, settings, stop)
    part.parent.mkdir(parents=True, exist_ok=True)
    write_whole(part, packed(table))
    return table


def _read_shard(shard: str, decoding: DecodeConfig, settings: Mapping[str, Any], stop: Event) -> pa.Table:
    reader = read_samples(shard, decoding.max_image_bytes)
    items = list(_judged(reader, decoding, stop))
    images = [item for item in items if isinstance(item, Sample)]
    rejects = [item for item in items if isinstance(item, Reject)]
    summary = reader.summary
    if not summary.checksum:
        raise ShoalError(_why_unread(shard, rejects))
    found = IndexedShard(
        shard,
        summary.size,
        summary.modified,
        summary.checksum,
        _is_ranged(shard, summary),
        len(images),
        dict(sorted(Counter(reject.reason.value for reject in rejects).items())),
    )
    keys = pa.table({"shard": [shard] * len(images), "key": pa.array([image.key for image in images], pa.string())})
    ordered: list[Sample | Reject] = [*images, *rejects]
    columns = {
        "shard": pa.DictionaryArray.from_arrays(pa.array([0] * len(items), pa.int32()), [shard]),
        "row": pa.concat_arrays([pa.array(row_hashes(keys)), pa.nulls(len(rejects), pa.int64())]),
        "offset": [item.offset for item in ordered],
        "size": [item.size for item in ordered],
        "key": [None] * len(images) + [reject.key for reject in rejects],
        "reason": [None] * len(images) + [reject.reason.value for reject in rejects],
        "detail": [None] * len(images) + [reject.detail for reject in rejects],
    }
    return with_meta(pa.table(columns, schema=COLUMNS), settings, [found])


def _judged(reader: ShardReader, decoding: DecodeConfig, stop: Event) -> Iterator[Sample | Reject]:
    """Samples whose image can be decoded, without their bytes; rejects."""
    for item in reader:
        if stop.is_set():
            raise ShoalError(f"Indexing of {reader.shard} was stopped; run again to go on.")
        if isinstance(item, Reject):
            yield item
            continue
        try:
            decode(item.image, decoding)
        except Undecodable as error:
            yield rejected(item, error.reason, error.detail)
        else:
            yield Sample(item.key, item.shard, item.offset, item.size, None, b"", "")


def _why_unread(shard: str, rejects: Sequence[Reject]) -> str:
    details = [reject.detail for reject in rejects if reject.reason == Reason.unreadable_shard]
    why = (details or ["it was changed while it was read"])[0]
    return f"{shard} cannot be read ({why}); mend it or leave it out, then run again: shards that were read are kept."


def _is_ranged(shard: str, summary: ShardSummary) -> bool:
    if is_on_web(shard) or not summary.samples:
        return False
    filesystem, path = open_filesystem(shard)

    def first_bytes() -> bytes:
        with filesystem.open_input_file(path) as file:
            return bytes(file.read(len(GZIP_MAGIC)))

    return patiently(first_bytes) != GZIP_MAGIC


def _require_images(index: pa.Table, shards: Sequence[str]) -> None:
    if index["reason"].null_count == 0:
        reasons = Counter(index["reason"].to_pylist())
        told = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        raise ShoalError(
            f"The {len(shards)} shards hold 0 usable images ({told or 'no samples'}) but training needs some; "
            "mend the shards, or name others."
        )


def _is_current(table: pa.Table, shards: Sequence[str], settings: Mapping[str, Any], now: Mapping[str, Stored]) -> bool:
    """Whether a table is that of just these shards as they are now."""
    entries = entries_of(table)
    return (
        settings_of(table) == settings
        and sorted(entry.shard for entry in entries) == sorted(shards)
        and is_in_order(entries)
        and all(_is_unchanged(entry, now.get(entry.shard)) for entry in entries)
    )


def _is_unchanged(entry: IndexedShard, now: Stored | None) -> bool:
    if entry.on_web:
        return True  # few web servers tell times, and none needs to be asked for thousands of files
    return now is not None and (now.size, now.modified) == (entry.size, entry.modified)


def _loaded(folder: Place, table: pa.Table) -> ImageIndex:
    entries = entries_of(table)
    images = table.filter(pc.is_null(table["reason"]))
    row_N, offset_N, size_N = (images[name].to_numpy() for name in ("row", "offset", "size"))
    # Without the settings of decoding: which images are usable shows in the rows, and a later shoal may have more.
    content = [[file_name(entry.shard), entry.checksum, entry.rows] for entry in entries]
    digest = hashlib.sha256(json.dumps([FORMAT, content]).encode()).hexdigest()
    return ImageIndex(folder, entries, row_N, offset_N, size_N, digest)


def _missing(folder: Place) -> ShoalError:
    return ShoalError(f"{folder} holds no index of images that can be read; run again from the start to make one.")
