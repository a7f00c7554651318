"""Which shards are in the table already, and which of those are no longer what was read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Literal

import pyarrow as pa

from pipeline.ingest.stored import Stored, stored_all
from pipeline.ingest.stream import CHUNK_BYTES, open_raw
from pipeline.progress import Progress, silent
from pipeline.tables.collection import Collection
from pipeline.tables.schema import SHARDS
from pipeline.tables.shards import ShardRecord, ShardsTable

Verify = Literal["auto", "always", "never"]
STEP = "verify"
READERS = 8  # shards that are read at a time, each with one chunk in memory
_RECORDED = 512  # shards between two commits of what was found; a run that is stopped need not read these again
_SHA256 = "sha256:"


@dataclass(frozen=True)
class Todo:
    """The shards of one call, without repetitions."""

    shards: list[str]
    skipped: list[str]  # have rows in the table
    changed: list[str]  # of the skipped: are something else now than what was read

    @property
    def total(self) -> int:
        """All shards of the call."""
        return len(self.shards) + len(self.skipped)


def plan_shards(
    shards: Sequence[str], table: Collection, verify: Verify = "auto", on_progress: Progress = silent
) -> Todo:
    """Compare `shards` with the log and with the shards table, which says what they were when they were read.

    A skipped shard has changed if its size differs, or its SHA-256, for which it has to be read: with `verify` "auto"
    where its storage gives another time of writing than when it was read last (or knew none then), with "always" in any
    case, with "never" not at all. The time of a shard that was read and is unchanged is recorded, so that it is not
    read again. Unchanged is also what cannot be found now, what the table has no record of, and, except for "always",
    what was rewritten with the same size while its time stayed the same.

    Costs a listing per folder, or a request per shard where few share one. Raises TableError for a damaged table.
    """
    done = table.samples.done_shards()
    unique = list(dict.fromkeys(shards))
    skipped = [shard for shard in unique if shard in done]
    changed = _changed(skipped, table, verify, on_progress)
    return Todo(
        [shard for shard in unique if shard not in done], skipped, [shard for shard in skipped if shard in changed]
    )


def _changed(skipped: Sequence[str], table: Collection, verify: Verify, on_progress: Progress) -> set[str]:
    records = table.shards.records() if skipped else {}
    found = stored_all([shard for shard in skipped if shard in records])
    resized = {shard for shard, now in found.items() if _has_other_size(records[shard], now)}
    doubtful = [
        replace(records[shard], modified=found[shard].modified)
        for shard in skipped
        if shard in found and shard not in resized and _is_doubtful(records[shard], found[shard], verify)
    ]
    return resized | _rewritten(doubtful, records, table.shards, on_progress)


def _has_other_size(record: ShardRecord, now: Stored) -> bool:
    return None not in (record.size, now.size) and record.size != now.size


def _is_doubtful(record: ShardRecord, now: Stored, verify: Verify) -> bool:
    """Whether only reading tells; without a checksum to compare with, not even that does."""
    if verify == "never" or not (record.checksum or "").startswith(_SHA256):
        return False
    return verify == "always" or now.modified not in (None, record.modified)


def _rewritten(
    doubtful: Sequence[ShardRecord], records: Mapping[str, ShardRecord], table: ShardsTable, on_progress: Progress
) -> set[str]:
    """Shards of which other bytes are stored than recorded; of those that are the same, the new time is recorded."""
    rewritten: set[str] = set()
    checksums = _checksums(doubtful, on_progress)
    while group := list(islice(checksums, _RECORDED)):
        rewritten |= {now.shard for now, checksum in group if checksum not in (None, now.checksum)}
        news = [now for now, checksum in group if checksum == now.checksum and now != records[now.shard]]
        if news:
            table.upsert(pa.Table.from_pylist([asdict(now) for now in news], schema=SHARDS))
    return rewritten


def _checksums(records: Sequence[ShardRecord], on_progress: Progress) -> Iterator[tuple[ShardRecord, str | None]]:
    threads = ThreadPoolExecutor(READERS)
    try:
        read = threads.map(_checksum, (record.shard for record in records))
        for number, (record, checksum) in enumerate(zip(records, read, strict=True), start=1):
            on_progress(STEP, number, len(records))
            yield record, checksum
    finally:
        threads.shutdown(cancel_futures=True)  # who is interrupted does not wait for all


def _checksum(shard: str) -> str | None:
    """SHA-256 of the stored bytes; None where they cannot be read now, which says nothing about them."""
    digest = hashlib.sha256()
    try:
        with open_raw(shard) as raw:
            while chunk := raw.read(CHUNK_BYTES):
                digest.update(chunk)
    except Exception:  # every filesystem raises what it likes
        return None
    return _SHA256 + digest.hexdigest()
