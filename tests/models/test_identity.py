"""Ids that survive: overlap tables by hand, and what holds of any."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.clusterer import NOISE
from models.identity import Event, events, matched, overlap, summed

tables = st.tuples(st.integers(0, 6), st.integers(0, 6)).flatmap(
    lambda shape: arrays(np.int64, shape, elements=st.integers(0, 40))
)


def ids(count_OC: list[list[int]], old: list[int], next_id: int = 100) -> list[int]:
    return matched(np.array(count_OC), np.array(old), next_id)[0].tolist()


def told(count_OC: list[list[int]], old: list[int], new: list[int], size_C: list[int] | None = None) -> list[Event]:
    """Events where nothing was removed, and nothing came unless sizes say so."""
    count = np.array(count_OC)
    sizes = count.sum(axis=0) if size_C is None else np.array(size_C)
    return events(np.array(old), np.array(new), count, count.sum(axis=1), sizes)


def test_overlap_counts_rows_in_both_partitions() -> None:
    old_N = np.array([5, 5, 5, 2, 2, NOISE, 7])
    new_N = np.array([1, 1, 0, 0, 0, 0, NOISE])
    old, new, count = overlap(old_N, new_N)
    assert (old.tolist(), new.tolist(), count.tolist()) == ([2, 5], [0, 1], [[2, 0], [1, 2]])


def test_overlap_of_nothing_is_empty() -> None:
    old, new, count = overlap(np.array([NOISE]), np.array([3]))
    assert (old.tolist(), new.tolist(), count.shape) == ([], [], (0, 0))
    assert matched(count, old, 4) == (pytest.approx([]), 4)
    assert summed([])[2].shape == (0, 0)


@given(arrays(np.int64, (30, 2), elements=st.integers(-1, 4)), st.integers(0, 30))
def test_overlaps_of_parts_sum_to_that_of_the_whole(pair_N2: np.ndarray, cut: int) -> None:
    old_N, new_N = pair_N2.T
    parts = [overlap(old_N[:cut], new_N[:cut]), overlap(old_N[cut:], new_N[cut:])]
    for mine, whole in zip(summed(parts), overlap(old_N, new_N), strict=True):
        assert np.array_equal(mine, whole)


@pytest.mark.parametrize(
    ("count_OC", "expected"),
    [
        ([[90, 0], [0, 50]], [1, 2]),
        ([[0, 50], [90, 0]], [2, 1]),
        ([[60, 40, 0], [0, 0, 70]], [1, 100, 2]),  # the larger child of a split
        ([[40, 60, 0], [0, 0, 70]], [100, 1, 2]),
        ([[30], [80]], [2]),  # the larger parent of a merge
        ([[40, 60], [0, 200]], [100, 2]),  # splits, and its larger child merges into a larger cluster
        ([[60, 40], [30, 0]], [1, 100]),  # ... into a smaller one
        ([[990, 10], [0, 0]], [1, 100]),
        ([[10, 990], [0, 2000]], [100, 2]),  # a remnant of an absorbed cluster is nobody
        ([[20, 20, 20, 20, 21], [0, 0, 0, 0, 0]], [100, 101, 102, 103, 1]),  # a fifth of the old is all of the new
        ([[0, 0], [0, 0]], [100, 101]),
        ([[45, 40, 15], [0, 500, 0]], [1, 2, 100]),
    ],
)
def test_ids_by_hand(count_OC: list[list[int]], expected: list[int]) -> None:
    assert ids(count_OC, [1, 2]) == expected


def test_a_pair_needs_a_quarter_of_either_side() -> None:
    # Cluster 1 leaves 20 % of its rows in each of five clusters, and nowhere are those a quarter.
    count_OC = [[20] * 5, *([90 if c == o else 0 for c in range(5)] for o in range(5))]
    assert ids(count_OC, [1, 2, 3, 4, 5, 6]) == [2, 3, 4, 5, 6]
    count_OC = [[20] * 5, [100, 100, 100, 100, 60]]
    assert 1 not in ids(count_OC, [1, 2])[:4]


@given(tables)
def test_ids_are_unique_and_never_reused(count_OC: np.ndarray) -> None:
    old = 3 * np.arange(len(count_OC))
    new, next_id = matched(count_OC, old, 1000)
    assert len(set(new.tolist())) == count_OC.shape[1]
    fresh = [cluster for cluster in new.tolist() if cluster not in old]
    assert fresh == list(range(1000, next_id))
    assert new.dtype == np.int64


@given(arrays(np.int64, 6, elements=st.integers(1, 40)), st.permutations(range(6)))
def test_nothing_has_changed_but_the_order(size_C: np.ndarray, order: list[int]) -> None:
    old = np.array([4, 9, 11, 2, 30, 1])
    new, next_id = matched(np.diag(size_C)[:, order], old, 50)
    assert (new.tolist(), next_id) == (old[order].tolist(), 50)
    assert [(event.cluster, event.event) for event in told(np.diag(size_C).tolist(), old.tolist(), old.tolist())] == [
        (cluster, "kept") for cluster in sorted(old.tolist())
    ]


@given(st.permutations(range(12)), st.permutations(range(3)))
def test_names_go_with_columns(powers: list[int], order: list[int]) -> None:
    count_OC = (2 ** np.array(powers)).reshape(4, 3)  # no two pairings share as many rows
    old = np.arange(4)
    before, after = (matched(count, old, 100)[0] for count in (count_OC, count_OC[:, order]))
    survive = before < 100
    assert np.array_equal(after[np.argsort(order)][survive], before[survive])
    assert np.array_equal(after < 100, survive[order])


def test_a_survivor_keeps() -> None:
    assert told([[90, 4], [3, 50]], [1, 2], [1, 2]) == [Event(1, "kept", (1,)), Event(2, "kept", (2,))]


def test_a_split_has_two_children_and_one_parent() -> None:
    expected = [Event(1, "split", (1,)), Event(2, "kept", (2,)), Event(7, "split", (1,))]
    assert told([[60, 0, 40], [0, 9, 0]], [1, 2], [1, 2, 7]) == expected


def test_a_merge_names_its_own_id_first_and_then_the_largest() -> None:
    expected = [
        Event(2, "merged", (2, 3, 1)),
        Event(1, "died", (1,)),
        Event(3, "died", (3,)),
    ]
    assert told([[30], [20], [40]], [1, 2, 3], [2]) == expected


def test_a_split_whose_larger_child_merges() -> None:
    count_OC = [[40, 60], [0, 200]]
    assert told(count_OC, [1, 2], ids(count_OC, [1, 2])) == [
        Event(2, "merged", (2, 1)),
        Event(100, "split", (1,)),
        Event(1, "died", (1,)),
    ]


def test_a_merge_and_a_split_of_the_same_cluster() -> None:
    count_OC = [[60, 40], [30, 0]]
    assert told(count_OC, [1, 2], ids(count_OC, [1, 2])) == [
        Event(1, "merged", (1, 2)),
        Event(100, "split", (1,)),
        Event(2, "died", (2,)),
    ]


def test_a_birth_has_no_parents() -> None:
    # 30 of its 100 rows came from another cluster, a tenth of that one's.
    assert told([[270, 30]], [1], [1, 5], [270, 100]) == [Event(1, "kept", (1,)), Event(5, "born", ())]
    # With 60 rows more from there it is a part of it.
    assert told([[240, 60]], [1], [1, 5], [240, 100]) == [Event(1, "split", (1,)), Event(5, "split", (1,))]


def test_arrivals_alone_are_a_birth() -> None:
    assert told([[10, 0]], [1], [1, 5], [12, 40]) == [Event(1, "kept", (1,)), Event(5, "born", ())]


def test_crumbs_of_many_clusters_are_no_split_of_any() -> None:
    count_OC = [[1000 if c == o else 0 for c in range(4)] + [10] for o in range(4)]
    assert told(count_OC, [1, 2, 3, 4], [1, 2, 3, 4, 9])[-1] == Event(9, "born", ())


def test_a_cluster_without_a_successor_dies() -> None:
    assert told([[90, 0], [1, 1], [0, 40]], [1, 2, 3], [1, 3])[-1] == Event(2, "died", (2,))
    nothing = events(np.array([4]), np.array([1]), np.array([[0]]), np.array([0]), np.array([5]))
    assert nothing == [Event(1, "born", ()), Event(4, "died", (4,))]


def test_rows_that_were_removed_are_not_missed() -> None:
    gone = events(np.array([1, 2]), np.array([1]), np.array([[90], [30]]), np.array([90, 40]), np.array([120]))
    assert gone == [Event(1, "merged", (1, 2)), Event(2, "died", (2,))]


@given(tables, arrays(np.int64, 6, elements=st.integers(0, 30)))
def test_every_cluster_has_one_event_and_known_parents(count_OC: np.ndarray, arrived: np.ndarray) -> None:
    old = 2 * np.arange(len(count_OC))
    new, _ = matched(count_OC, old, 100)
    found = events(old, new, count_OC, count_OC.sum(axis=1), count_OC.sum(axis=0) + arrived[: count_OC.shape[1]])
    assert [event.cluster for event in found] == sorted(new.tolist()) + sorted(set(old.tolist()) - set(new.tolist()))
    for event in found:
        assert set(event.parents) <= set(old.tolist())
        assert (event.event == "died") == (event.cluster not in new)
        assert (event.event == "born") == (event.parents == ())
        if event.cluster in old:
            assert event.parents[0] == event.cluster
