"""Every row once, in batches that know no workers: laws of the order for any shards and settings."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from models.errors import ShoalError
from pipeline.train.config import TrainConfig
from pipeline.train.images.order import Deal, Order, lanes_of, require_lanes

orders = st.builds(
    lambda rows_S, ranged, batch_rows, lanes, shuffle_rows, seed: (
        rows_S,
        [bool(ranged >> shard & 1) for shard in range(len(rows_S))],
        Deal(batch_rows, lanes, shuffle_rows, seed),
    ),
    st.lists(st.integers(0, 120), min_size=1, max_size=8),
    st.integers(0, 255),
    st.integers(1, 64),
    st.integers(1, 9),
    st.integers(0, 200),
    st.integers(0, 5),
)


def order_of(made: tuple[list[int], list[bool], Deal]) -> Order:
    assume(sum(made[0]))
    return Order.of(*made)


def batches_of(order: Order, epoch: int, lanes: range, start: int = 0) -> list[list[int]]:
    """The rows of some lanes in each batch."""
    rows = {lane: order.epoch(lane, epoch).row_n for lane in lanes}
    return [
        [int(row) for lane in lanes for row in rows[lane][slice(*order.span(batch, lane))]]
        for batch in range(start, order.batches)
    ]


@given(orders, st.integers(0, 3))
def test_every_row_takes_part_once_in_batches_equal_up_to_one_row(
    made: tuple[list[int], list[bool], Deal], epoch: int
) -> None:
    order = order_of(made)
    batches = batches_of(order, epoch, range(order.lanes))
    assert sorted(row for batch in batches for row in batch) == list(range(sum(made[0])))
    sizes = [len(batch) for batch in batches]
    assert sizes == [order.total(batch) for batch in range(order.batches)]
    assert max(sizes) - min(sizes) <= 1 and max(sizes) <= made[2].batch_rows


@given(orders, st.integers(1, 9))
def test_parts_of_workers_put_together_are_the_batch(made: tuple[list[int], list[bool], Deal], size: int) -> None:
    order = order_of(made)
    assume(size <= order.lanes)
    lanes = [order.of_worker(rank, size) for rank in range(size)]
    assert [lane for each in lanes for lane in each] == list(range(order.lanes))
    whole = batches_of(order, 1, range(order.lanes))
    parts = [batches_of(order, 1, each) for each in lanes]
    for batch, rows in enumerate(whole):
        assert [row for part in parts for row in part[batch]] == rows
        assert all(part[batch] for part in parts)
        begins = [order.begin(batch, each.start) for each in lanes]
        ends = [begin + len(part[batch]) for begin, part in zip(begins, parts, strict=True)]
        assert begins[0] == 0
        assert ends == [order.begin(batch, each.stop) for each in lanes]


@given(orders, st.integers(0, 3))
def test_a_row_comes_no_further_than_the_jitter_from_where_it_is_read(
    made: tuple[list[int], list[bool], Deal], epoch: int
) -> None:
    order = order_of(made)
    assert order.jitter == made[2].shuffle_rows // order.lanes
    for lane in range(order.lanes):
        turn_n = order.epoch(lane, epoch).turn_n
        assert np.abs(turn_n - np.arange(len(turn_n))).max(initial=0) <= min(order.jitter, len(turn_n))


@given(orders)
def test_a_lane_keeps_its_rows_and_reads_pieces_forwards(made: tuple[list[int], list[bool], Deal]) -> None:
    order = order_of(made)
    sizes = [len(order.lane_rows(lane)) for lane in range(order.lanes)]
    assert max(sizes) - min(sizes) <= 1
    for lane in range(order.lanes):
        read_n = order.epoch(lane, 2).read_n
        assert sorted(read_n) == order.lane_rows(lane).tolist()
        backwards = int((np.diff(read_n) != 1).sum())
        assert backwards < max(1, len(order.pieces[lane]))


def test_shards_that_cannot_be_read_from_the_middle_are_cut_between_lanes_only() -> None:
    deal = Deal(batch_rows=40, lanes=2, shuffle_rows=0, seed=0)
    compressed = Order.of([50, 50, 50, 50], [False] * 4, deal)
    plain = Order.of([50, 50, 50, 50], [True] * 4, deal)
    assert [len(pieces) for pieces in compressed.pieces] == [2, 2]
    assert all(len(pieces) >= 14 for pieces in plain.pieces)


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def rows(seed: int, epoch: int) -> list[list[int]]:
        order = Order.of([300, 200], [True, True], Deal(50, 4, 80, seed))
        return batches_of(order, epoch, range(4))

    assert rows(0, 1) == rows(0, 1)
    different = [rows(0, 0), rows(0, 1), rows(0, 2), rows(1, 0)]
    assert all(one != other for one, other in pairwise(different))


def test_without_jitter_a_lane_is_read_in_the_order_of_its_pieces() -> None:
    order = Order.of([6], [False], Deal(6, 1, 0, 0))
    assert order.epoch(0, 5).row_n.tolist() == [0, 1, 2, 3, 4, 5]


def test_a_jitter_that_covers_the_lane_is_a_full_permutation() -> None:
    order = Order.of([2000], [False], Deal(100, 1, 2000, 0))
    turn_n = order.epoch(0, 0).turn_n
    places = np.arange(2000)
    # A uniform permutation moves rows by a third of the length on average; a jitter of as much, by a sixth at most.
    assert 0.3 < np.abs(turn_n - places).mean() / 2000 < 0.37
    assert abs(np.corrcoef(turn_n, places)[0, 1]) < 0.1


def test_there_are_half_as_many_lanes_as_the_smallest_batch_has_rows() -> None:
    for rows, batch_rows, wanted, lanes in (
        (60, 16, 16, 7),  # 4 batches of 15
        (150, 15, 16, 7),
        (150, 15, 7, 7),
        (1000, 32, 16, 15),  # 32 batches, the smallest of 31
        (1024, 32, 16, 16),
        (5, 256, 16, 2),
        (3, 1, 16, 1),
        (1, 256, 16, 1),
    ):
        assert lanes_of(rows, batch_rows, wanted) == lanes
        order = Order.of([rows], [True], Deal(batch_rows, wanted, 0, 0))
        assert order.lanes == lanes
        assert all(last > first for first, last in (order.span(order.batches - 1, lane) for lane in range(lanes)))


def test_more_workers_than_lanes_are_refused_with_the_way_out() -> None:
    def told(rows: int | None, wanted: int, **loop: int) -> str:
        with pytest.raises(ShoalError) as error:
            require_lanes(rows, wanted, TrainConfig(**loop))  # type: ignore[arg-type]
        return str(error.value).partition("; set ")[2]

    assert (
        told(100, 2, workers=3, batch_size=20)
        == "train.loop.workers to at most 2, or train.images.lanes to at least 3."
    )
    assert (
        told(100, 16, workers=3, batch_size=4)
        == "train.loop.workers to at most 2, or train.loop.batch_size to at least 7."
    )
    assert told(5, 16, workers=3, batch_size=4) == "train.loop.workers to at most 1."
    both = (
        "train.loop.workers to at most 1, or train.images.lanes to at least 4 and train.loop.batch_size to at least 16."
    )
    assert told(None, 1, workers=4, batch_size=8, accumulate=2) == both
    with pytest.raises(ValueError, match="3 workers cannot share 2 lanes"):
        Order.of([100], [True], Deal(10, 2, 0, 0)).of_worker(0, 3)


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 200), st.integers(1, 40), st.integers(1, 3))
def test_what_is_advised_is_accepted(rows: int, wanted: int, batch: int, workers: int, accumulate: int) -> None:
    config = TrainConfig(batch_size=batch * accumulate, workers=workers, accumulate=accumulate)
    try:
        require_lanes(rows, wanted, config)
    except ShoalError as error:
        found = {key: int(value) for key, value in re.findall(r"train\.\w+\.(\w+) to at \w+ (\d+)", str(error))}
        require_lanes(rows, wanted, config.model_copy(update={"workers": found.pop("workers")}))
        if found:
            lanes = found.pop("lanes", wanted)
            require_lanes(rows, lanes, config.model_copy(update=found))
        else:
            assert rows < 2 * workers
    else:
        assert workers <= lanes_of(rows, batch, wanted)
