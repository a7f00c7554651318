"""What became of samples that are in a table as rejects: how many, why, and where the first of them are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from jobs.figures import Row, Value
from jobs.report.wording import byte_range
from pipeline.tables.collection import Collection
from pipeline.tables.schema import REJECTED

FIRST = 5


def reject_values(images: int, rejects: int) -> Mapping[str, Value]:
    """Counts, and the share of all samples that was rejected."""
    return {"images": images, "rejects": rejects, "reject_fraction": fraction(images, rejects)}


def fraction(images: int, rejects: int) -> float:
    """Of nothing at all nothing was rejected."""
    return rejects / max(1, images + rejects)


def reject_tables(table: Collection) -> dict[str, Sequence[Row]]:
    """Rejects by reason, most frequent first, and the first few with their places."""
    if not table.samples.count(REJECTED):
        return {}
    rows = table.samples.rejects()
    counts = Counter(rows["reason"].to_pylist())
    first = rows.slice(0, FIRST).to_pylist()
    return {
        "rejects_by_reason": [{"reason": reason, "samples": count} for reason, count in counts.most_common()],
        "first_rejects": [
            {
                "shard": row["shard"],
                "key": row["key"],
                "bytes": byte_range(row["offset"], None if row["size"] is None else row["offset"] + row["size"]),
                "reason": row["reason"],
                "detail": row["detail"],
            }
            for row in first
        ],
    }


def shortfall(images: int, rejects: int, allowed: float, where: str = "the table") -> str:
    """The sentence for too many rejects, which are all listed `where`; empty if they are few enough."""
    if fraction(images, rejects) <= allowed:
        return ""
    return (
        f"{rejects:,} of {images + rejects:,} samples were rejected ({fraction(images, rejects):.1%}, more than the "
        f"{allowed:.1%} of --max-reject-fraction); results are kept, and {where} names every reject and its reason."
    )
