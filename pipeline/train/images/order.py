"""Which images come in which batch: pure functions of (shards, settings, seed, epoch), and of no worker.

All rows of all shards, shards in an order drawn once, are cut into L equal lanes. Each epoch a lane is read piece by
piece in a new order, and jittered: a row comes out at most J places from where it is read. A batch takes as many rows
of each lane, up to one, and has them in the order of lanes; so workers, which have consecutive lanes, hold consecutive
parts of the batch, and read nobody else's shards.

Shapes: N rows, S shards, L lanes, n rows of a lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from models.errors import ShoalError
from pipeline.train.config import TrainConfig

PIECES = 16  # of a lane at most, unless it has more shards: what an epoch permutes where shards are few


@dataclass(frozen=True)
class LaneEpoch:
    """One epoch of a lane. 16 bytes per row; 24 while it is made."""

    read_n: np.ndarray  # rows in the order in which they are read
    turn_n: np.ndarray  # places in `read_n` in the order in which rows take part: at most J from 0, 1, 2, …

    @property
    def row_n(self) -> np.ndarray:
        """Rows in the order in which they take part."""
        return np.asarray(self.read_n[self.turn_n])


@dataclass(frozen=True)
class Order:
    """The order of all epochs. A few numbers per piece; rows appear in `epoch` only."""

    pieces: tuple[np.ndarray, ...]  # by lane: (pieces, 2), first row and the one after the last
    rows: int
    batches: int
    jitter: int  # J
    seed: int

    @classmethod
    def of(cls, rows_S: Sequence[int], ranged_S: Sequence[bool], deal: Deal) -> Order:
        """The order of shards with so many rows each.

        `ranged_S` says which shards can be read from the middle: the others (compressed ones) are cut only where lanes
        demand it. There are `lanes_of` lanes: as many as wanted where batches are large enough.
        """
        rows = sum(rows_S)
        deal = replace(deal, lanes=lanes_of(rows, deal.batch_rows, deal.lanes))
        pieces = _lanes(np.asarray(rows_S, np.int64), np.asarray(ranged_S, bool), deal)
        return cls(pieces, rows, _batches(rows, deal.batch_rows), deal.shuffle_rows // deal.lanes, deal.seed)

    @property
    def lanes(self) -> int:
        """L."""
        return len(self.pieces)

    def of_worker(self, rank: int, size: int) -> range:
        """Its lanes. Raises ValueError when there are fewer than workers (see `require_lanes`)."""
        if size > self.lanes:
            raise ValueError(f"{size} workers cannot share {self.lanes} lanes")
        return range(self.lanes * rank // size, self.lanes * (rank + 1) // size)

    def total(self, batch: int) -> int:
        """Rows of a batch: equal up to one."""
        return self._begin(batch + 1) - self._begin(batch)

    def begin(self, batch: int, lane: int) -> int:
        """Where in a batch the rows of a lane begin; of the lane after the last, where the batch ends."""
        return self._before(batch + 1, lane) - self._before(batch, lane)

    def span(self, batch: int, lane: int) -> tuple[int, int]:
        """The rows of a lane, counted in the order in which they take part, that a batch takes; at least one.

        Of the first m rows of an epoch floor(m l / L) belong to lanes before l. That is exact at the end of the epoch,
        and between batches of 2 L rows or more it grows by at least one in every lane.
        """
        first, last = (self._before(each, lane + 1) - self._before(each, lane) for each in (batch, batch + 1))
        return first, last

    def lane_rows(self, lane: int) -> np.ndarray:
        """The rows of a lane, sorted."""
        return np.sort(_ranges(self.pieces[lane]))

    def epoch(self, lane: int, epoch: int) -> LaneEpoch:
        """One epoch of a lane: O(n log n). Full permutations where the jitter covers the lane."""
        # Raw uniforms only: what numpy makes of them with `permutation` may change between its versions.
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.seed, 1, epoch, lane))))
        pieces = self.pieces[lane]
        read_n = _ranges(pieces[np.argsort(generator.random(len(pieces)), kind="stable")])
        key_n = generator.random(len(read_n))
        if self.jitter < len(read_n):
            key_n *= self.jitter
            key_n += np.arange(len(read_n))
        return LaneEpoch(read_n, np.argsort(key_n, kind="stable"))

    def _begin(self, batch: int) -> int:
        return self.rows * batch // self.batches

    def _before(self, batch: int, lane: int) -> int:
        """Rows of lanes before `lane` in all batches before `batch`."""
        return self._begin(batch) * lane // self.lanes


@dataclass(frozen=True)
class Deal:
    """What an order is made by."""

    batch_rows: int
    lanes: int  # at most
    shuffle_rows: int
    seed: int


def lanes_of(rows: int, batch_rows: int, wanted: int) -> int:
    """How many lanes there are: `wanted`, or as many as the smallest batch has 2 rows for; at least one."""
    return max(1, min(wanted, rows // _batches(rows, batch_rows) // 2))


def require_lanes(rows: int | None, wanted: int, config: TrainConfig) -> None:
    """Raise ShoalError if there are fewer lanes than workers; None for rows: before anybody knows how many."""
    workers = config.workers
    lanes = lanes_of(config.batch_rows if rows is None else rows, config.batch_rows, wanted)
    if workers <= lanes:
        return
    enough = _batch_for(rows, 2 * workers)
    room = [f"train.images.lanes to at least {workers}"] if wanted < workers else []
    if enough is not None and enough > config.batch_rows:
        room.append(f"train.loop.batch_size to at least {enough * config.accumulate}")
    ways = [f"train.loop.workers to at most {lanes}"] + ([" and ".join(room)] if enough is not None else [])
    told = "" if rows is None else f" of {rows:,} images"
    raise ShoalError(
        f"train.loop.workers is {workers}, and each reads lanes of its own, but batches of {config.batch_rows:,}{told} "
        f"have {lanes} (at most train.images.lanes = {wanted}, and half as many as a batch has rows); "
        f"set {', or '.join(ways)}."
    )


def _batch_for(rows: int | None, least: int) -> int | None:
    """How many rows a batch must have for the smallest of an epoch to have `least`; None if there are too few."""
    if rows is None:
        return least
    most = rows // least  # batches of an epoch
    return -(-rows // most) if most else None


def _batches(rows: int, batch_rows: int) -> int:
    return max(1, -(-rows // batch_rows))


def _lanes(rows_S: np.ndarray, ranged_S: np.ndarray, deal: Deal) -> tuple[np.ndarray, ...]:
    """Pieces of each lane: the line of all shards, in an order by seed, cut into equal lanes. S + 17 L at most."""
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((deal.seed, 0))))
    order_S = np.argsort(generator.random(len(rows_S)), kind="stable")
    first_S = np.cumsum(rows_S) - rows_S
    end_S = np.cumsum(rows_S[order_S])  # on the line
    total = int(rows_S.sum())
    lanes = []
    for lane in range(deal.lanes):
        low, high = (total * each // deal.lanes for each in (lane, lane + 1))
        # Within the jitter rows are shuffled anyway, and small pieces are more requests to an object store.
        longest = max(1, -(-(high - low) // PIECES), deal.shuffle_rows // deal.lanes)
        pieces: list[tuple[int, int]] = []
        for place in range(int(np.searchsorted(end_S, low, side="right")), len(order_S)):
            shard = order_S[place]
            begin = int(end_S[place] - rows_S[shard])
            if begin >= high:
                break
            to_row = int(first_S[shard]) - begin
            first, last = max(begin, low) + to_row, min(int(end_S[place]), high) + to_row
            pieces += _cut(first, last, longest if ranged_S[shard] else last - first)
        lanes.append(np.asarray(pieces, np.int64).reshape(-1, 2))
    return tuple(lanes)


def _cut(first: int, last: int, longest: int) -> list[tuple[int, int]]:
    """Rows `first` to `last` in as few pieces of at most `longest` as possible, equal up to one row."""
    count = -(-(last - first) // longest) if last > first else 0
    edges = [first + (last - first) * each // count for each in range(count + 1)] if count else []
    return list(pairwise(edges))


def _ranges(pieces: np.ndarray) -> np.ndarray:
    """The rows of pieces, one piece after the other."""
    length_P = pieces[:, 1] - pieces[:, 0]
    shift_P = pieces[:, 0] - (np.cumsum(length_P) - length_P)
    return np.asarray(np.arange(int(length_P.sum())) + np.repeat(shift_P, length_P))
