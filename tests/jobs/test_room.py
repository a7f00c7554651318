"""Room in a cluster: what fits where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.room import bundles, fitting, room_for
from pipeline.progress import silent

NODES = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 8.0}]


@pytest.mark.parametrize(
    ("room", "there"),
    [
        ([], 0),
        (bundles(1, 4, 1), 1),
        (bundles(2, 1, 1), 1),  # one machine has a GPU
        (bundles(2, 1, 0.5), 2),
        (bundles(3, 4), 3),
        (bundles(2, 6), 1),  # 12 CPUs, but no two machines with 6
        ([*bundles(2, 4), *bundles(1, 4, 1)], 3),  # GPUs first, or a CPU worker would take that machine
    ],
)
def test_bundles_find_machines(room: list[dict[str, float]], there: int) -> None:
    assert fitting(room, NODES) == there


@given(count=st.integers(0, 20), cpus=st.integers(1, 4), machines=st.lists(st.integers(0, 16), max_size=5))
def test_equal_bundles_fit_as_often_as_each_machine_holds_them(count: int, cpus: int, machines: list[int]) -> None:
    nodes = [{"CPU": float(each)} for each in machines]
    assert fitting(bundles(count, cpus), nodes) == min(count, sum(each // cpus for each in machines))


@pytest.mark.parametrize(("room", "wait_s"), [((), 100.0), (bundles(9, 9), 0.0)])
def test_nothing_is_asked_for_where_nobody_waits(room: list[dict[str, float]], wait_s: float) -> None:
    """There is no Ray here that could be asked."""
    with room_for(room, wait_s, silent):
        pass
