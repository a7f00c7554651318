"""`shoal diff TABLE G1 G2`: which images moved from one generation to another, and what became of the clusters."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

from jobs.brief import LIMIT, Brief, legible
from jobs.cluster import choose
from jobs.config import RunConfig
from jobs.figures import Row, Value
from jobs.report.wording import cluster_list
from jobs.steps import Step
from models.clusterer import NOISE
from pipeline.history.diff import Diff, diff
from pipeline.history.lineage import BORN, MERGED, SPLIT, Node, published
from pipeline.history.moved import check_output, moved_file
from pipeline.progress import Progress
from pipeline.tables.clusterings import DIED
from pipeline.tables.collection import Collection
from pipeline.tables.place import Place, place

_SHOWN = 20  # rows of each table on a screen
_UNRELATED = "fits of their own: a cluster of one has nothing to do with that of the same number in the other"


@dataclass(frozen=True)
class DiffGenerations:
    """Compare two generations, in either direction; nothing is changed but the file of moved images."""

    table: str
    before: int
    after: int
    name: str | None
    output: str | Place | None
    config: RunConfig

    def plan(self) -> list[Step]:
        """Says what would be compared."""
        table, name = self._chosen()
        for number in (self.before, self.after):
            published(table.clustering(name), number)
        what = f"generations {self.before} and {self.after} of {name}"
        return [Step("diff", what if self.output is None else f"{what}, moved images to {self.output}")]

    def run(self, on_progress: Progress) -> Brief:
        """Raises ShoalError if a generation never was or has ended, or the file cannot be written."""
        began = time.perf_counter()
        table, name = self._chosen()
        with nullcontext() if self.output is None else moved_file(place(self.output).absolute()) as on_moved:
            found = diff(table, name, self.before, self.after, on_moved=on_moved, on_progress=on_progress)
        return _figures(name, found, self.output, time.perf_counter() - began)

    def _chosen(self) -> tuple[Collection, str]:
        if self.output is not None:
            check_output(place(self.output).absolute())
        table = Collection.open(self.table)
        return table, choose(table, self.name, self.config)


def _figures(name: str, found: Diff, output: str | Place | None, seconds: float) -> Brief:
    values: dict[str, Value] = {
        "clustering": name,
        "before": found.before.generation,
        "after": found.after.generation,
        "stayed": found.stayed,
        "moved": found.moved,
        "arrived": found.arrived,
        "gone": found.gone,
        "clusters_before": len(found.sizes_before.keys() - {NOISE}),
        "clusters_after": len(found.sizes_after.keys() - {NOISE}),
        **{event: len(found.of(event)) for event in (BORN, SPLIT, MERGED, DIED)},
        "files_read": found.files_read,
        "files_shared": found.files_shared,
    }
    if found.passing:
        values["born_and_gone_in_between"] = cluster_list(found.passing)
    if not found.related:
        values["note"] = _UNRELATED
    if output is not None:
        values["output"] = str(output)
    complete = _tables(found)
    if any(len(rows) > _SHOWN for rows in complete.values()):
        values["listed"] = f"{_SHOWN} lines of each list; --json has {LIMIT:,}, --output every image that moved"
    return Brief("diff", values | {"seconds": seconds}, _cut(complete), complete=complete)


def _tables(found: Diff) -> dict[str, list[dict[str, Any]]]:
    fates = [asdict(fate) for fate in found.fates]
    flows = [
        {**asdict(flow), "share_of_before": flow.images / max(found.sizes_before.get(flow.before, 0), flow.images)}
        for flow in found.flows[:LIMIT]
    ]
    return {
        "clusters": [{**fate, "parents": list(fate["parents"])} for fate in fates],
        "on_the_way": [node_row(node) for node in found.between],
        "largest_flows": flows,
        "moved_images": found.examples.to_pylist(),
    }


def node_row(node: Node) -> dict[str, Any]:
    """An event of one generation, for JSON."""
    return {**asdict(node), "parents": list(node.parents)}


def _cut(tables: dict[str, list[dict[str, Any]]]) -> dict[str, Sequence[Row]]:
    return {name: [readable(row) for row in rows[:_SHOWN]] for name, rows in tables.items()}


def readable(row: dict[str, Any]) -> Row:
    """A row as a screen shows it: ids are names, not amounts."""
    return {name: _readable(name, value) for name, value in row.items()}


def _readable(name: str, value: Any) -> Value:
    if isinstance(value, list):
        return cluster_list(value)
    if name in ("cluster", "before", "after") and value is not None:
        return cluster_list([value])
    return legible(value) if isinstance(value, str) else value
