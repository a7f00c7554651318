"""What changed from one generation of a clustering to another: which images moved, and what became of the clusters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from models import identity
from models.clusterer import NOISE
from pipeline.history.compare import Part, compared
from pipeline.history.lineage import KEPT, Lineage, Node, chosen
from pipeline.progress import Progress, silent
from pipeline.tables.clusterings import DIED, Clustering, Generation
from pipeline.tables.collection import Collection

EXAMPLES = 10_000  # images that moved, kept at hand


@dataclass(frozen=True)
class Fate:
    """What became of a cluster: born, split, merged or died. A cluster that is not there has no rows."""

    cluster: int
    event: str
    parents: tuple[int, ...]  # clusters of the generation before
    size_before: int
    size_after: int
    log_hastings: float | None = None  # where a test decided


@dataclass(frozen=True)
class Flow:
    """Images that went from one cluster to another; NOISE is no cluster."""

    before: int
    after: int
    images: int


@dataclass(frozen=True)
class Diff:
    """From `before` to `after`. Each image of either is one of `stayed`, `moved`, `arrived` and `gone`."""

    before: Generation
    after: Generation
    related: bool  # false: fits of their own, whose ids have nothing in common
    stayed: int
    moved: int
    arrived: int  # images that only `after` has
    gone: int
    sizes_before: dict[int, int]
    sizes_after: dict[int, int]
    fates: tuple[Fate, ...]  # of clusters that were not merely kept; none where the generations are not related
    between: tuple[Node, ...]  # the events of all generations on the way, where `before` is an ancestor but no parent
    flows: tuple[Flow, ...]  # largest first
    arrived_in: dict[int, int]  # images by cluster
    gone_from: dict[int, int]
    examples: pa.Table  # shard, key, before, after of the images that moved, of EXAMPLES at most
    files_read: int
    files_shared: int  # not opened: both generations have them

    def of(self, event: str) -> list[Fate]:
        """The clusters that were born, split, merged or died."""
        return [fate for fate in self.fates if fate.event == event]

    @property
    def passing(self) -> list[int]:
        """Clusters that were born and are gone in between, ascending."""
        ends = self.sizes_before.keys() | self.sizes_after.keys()
        return sorted({node.cluster for node in self.between} - ends)


def diff(
    table: Collection,
    name: str,
    before: int,
    after: int,
    *,
    on_moved: Callable[[pa.Table], None] | None = None,
    on_progress: Progress = silent,
) -> Diff:
    """Compare two generations of a clustering, in either direction.

    `on_moved` is given every image that moved, as tables of shard, key, before and after. Files of assignments that
    both generations have are not opened; of the others, a few at a time are in memory. Raises ShoalError if a
    generation never was or has ended.
    """
    clustering = table.clustering(name)
    lineage = Lineage(clustering)
    pair = chosen(lineage.generations, before, name), chosen(lineage.generations, after, name)
    sums = _Sums(on_moved)
    work = compared(table.samples, clustering, pair, sums.wants_rows, on_progress)
    for part in work.parts:
        sums.add(part)
    sizes = _sizes(clustering, pair[0], work.rows[0]), _sizes(clustering, pair[1], work.rows[1])
    related, between = lineage.related(before, after), _between(lineage, before, after)
    whole = sums.total
    return Diff(
        before=pair[0],
        after=pair[1],
        related=related,
        stayed=work.rows_shared + sum(whole.stayed.values()),
        moved=sum(whole.moved.values()),
        arrived=sum(whole.arrived.values()),
        gone=sum(whole.gone.values()),
        sizes_before=sizes[0],
        sizes_after=sizes[1],
        fates=tuple(_with_ratios(_fates(clustering, pair, sizes, whole), between)) if related else (),
        between=between,
        flows=tuple(sorted((Flow(*ends, images) for ends, images in whole.moved.items()), key=_largest)),
        arrived_in=dict(whole.arrived),
        gone_from=dict(whole.gone),
        examples=sums.examples,
        files_read=work.files_read,
        files_shared=work.files_shared,
    )


class _Sums:
    """Parts added up, and the first rows of them."""

    def __init__(self, on_moved: Callable[[pa.Table], None] | None) -> None:
        self.total = Part()
        self._on_moved = on_moved
        self._wanted = EXAMPLES
        self._kept: list[pa.Table] = []

    def wants_rows(self) -> bool:
        """Whether anybody still asks which images moved."""
        return self._on_moved is not None or self._wanted > 0

    def add(self, part: Part) -> None:
        """Parts come in the order of files, so that the same images are examples each time."""
        self.total.add(part)
        self._kept.append(part.rows[: self._wanted])
        self._wanted -= self._kept[-1].num_rows
        if self._on_moved is not None and part.rows.num_rows:
            self._on_moved(part.rows)

    @property
    def examples(self) -> pa.Table:
        """In the order of files."""
        return pa.concat_tables([self.total.rows, *self._kept])


def _largest(flow: Flow) -> tuple[int, int, int]:
    return -flow.images, flow.before, flow.after


def _sizes(clustering: Clustering, generation: Generation, rows: int) -> dict[int, int]:
    """Rows of each cluster as published; those in none are noise."""
    found = clustering.clusters(generation).select(["cluster", "size"]).to_pylist()
    sizes = {row["cluster"]: row["size"] for row in found if row["cluster"] != NOISE}
    noise = rows - sum(sizes.values())
    return sizes if noise <= 0 else {**sizes, NOISE: noise}


def _fates(
    clustering: Clustering,
    pair: tuple[Generation, Generation],
    sizes: tuple[dict[int, int], dict[int, int]],
    part: Part,
) -> list[Fate]:
    """As they were recorded where one generation is the parent of the other, else as the overlap of rows says."""
    if pair[1].parent != pair[0].generation:
        return _overlapping(sizes, part)
    recorded = clustering.events(pair[1]).to_pylist()
    return [
        Fate(
            cluster=row["cluster"],
            event=row["event"],
            parents=tuple(row["parents"] or ()),
            size_before=sizes[0].get(row["cluster"], 0),
            size_after=0 if row["event"] == DIED else row["size"],
            log_hastings=row["log_hastings"],
        )
        for row in recorded
        if row["event"] != KEPT and row["cluster"] != NOISE
    ]


def _overlapping(sizes: tuple[dict[int, int], dict[int, int]], part: Part) -> list[Fate]:
    """Events from the rows that clusters share. Only those that exchanged rows, or are in one generation, are asked."""
    crossing = {each for ends in part.moved for each in ends} | (sizes[0].keys() ^ sizes[1].keys())
    old, new = (sorted((crossing & side.keys()) - {NOISE}) for side in sizes)
    still = {cluster: size - part.gone[cluster] for cluster, size in sizes[0].items()}
    if not old and not new:
        return []
    count_OC = np.zeros((len(old), len(new)), np.int64)
    row_of, column_of = ({cluster: index for index, cluster in enumerate(ids)} for ids in (old, new))
    leaving: Counter[int] = Counter()
    for (before, after), images in part.moved.items():  # once: there may be a million
        leaving[before] += images
        if before in row_of and after in column_of:
            count_OC[row_of[before], column_of[after]] = images
    for cluster in row_of.keys() & column_of.keys():
        # What is in files that were not opened stayed: the published size tells how much.
        count_OC[row_of[cluster], column_of[cluster]] = max(still[cluster] - leaving[cluster], 0)
    size_O, size_C = _int64(still[cluster] for cluster in old), _int64(sizes[1][cluster] for cluster in new)
    found = identity.events(_int64(old), _int64(new), count_OC, size_O, size_C)
    return [
        Fate(each.cluster, each.event, tuple(each.parents), *(side.get(each.cluster, 0) for side in sizes))
        for each in found
        if each.event != KEPT
    ]


def _with_ratios(fates: list[Fate], between: tuple[Node, ...]) -> list[Fate]:
    """With the ratio of the newest event on the way that did the same to a cluster, where it had one."""
    ratios = {(node.cluster, node.event): node.log_hastings for node in between if node.log_hastings is not None}
    return [replace(fate, log_hastings=ratios.get((fate.cluster, fate.event), fate.log_hastings)) for fate in fates]


def _int64(values: Iterable[int]) -> np.ndarray:
    return np.array(list(values), np.int64)


def _between(lineage: Lineage, before: int, after: int) -> tuple[Node, ...]:
    line = [after, *lineage.ancestors(after)]
    if before == after or before not in line or line[1] == before:
        return ()
    return tuple(node for number in reversed(line[: line.index(before)]) for node in lineage.changes[number])
