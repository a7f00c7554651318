"""Room in a cluster whose machines come on demand: asked for, waited for, and given back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pipeline.progress import Progress

Room = Sequence[Mapping[str, float]]
"""Bundles of resources, each of which one machine has to have: `[{"CPU": 2, "GPU": 1}] * 8`."""

_LOOK_S = 1.0


@contextmanager
def room_for(room: Room, wait_s: float, on_progress: Progress) -> Iterator[None]:
    """Ask the autoscaler of this Ray session for `room`, and wait until it is there, but no longer than `wait_s`.

    Without `wait_s` nothing is asked for. What has not come by then is left to the work, which says what it lacks or
    does with less. The request stands while the work goes on, so that its machines are not taken for idle.
    """
    if not room or wait_s <= 0:
        yield
        return
    from ray.autoscaler.sdk import request_resources  # noqa: PLC0415  seconds, and only clusters have one

    request_resources(bundles=[dict(bundle) for bundle in room])
    try:
        _wait(room, wait_s, on_progress)
        yield
    finally:
        request_resources(bundles=[])


def bundles(count: int, cpus: float, gpus: float = 0) -> list[dict[str, float]]:
    """Room for so many equal workers."""
    return [{"CPU": cpus} | ({"GPU": gpus} if gpus else {}) for _ in range(count)]


def _wait(room: Room, wait_s: float, on_progress: Progress) -> None:
    from ray import nodes as machines  # noqa: PLC0415

    until = time.monotonic() + wait_s
    while True:
        nodes = [node["Resources"] for node in machines() if node["Alive"]]  # type: ignore[no-untyped-call]
        there = fitting(room, nodes)
        on_progress(f"wait for machines, room for {there} of {len(room)}", there, len(room))
        if there == len(room) or time.monotonic() >= until:
            return
        time.sleep(min(_LOOK_S, max(0.0, until - time.monotonic())))


def fitting(room: Room, nodes: Sequence[Mapping[str, float]]) -> int:
    """Bundles that find a place when each goes to the first machine with what is left for it, the largest first."""
    left = [Counter(node) for node in nodes]
    found = 0
    for bundle in sorted(room, key=lambda each: (each.get("GPU", 0), each.get("CPU", 0)), reverse=True):
        place = next((node for node in left if all(node[name] >= least for name, least in bundle.items())), None)
        if place is not None:
            place.subtract(bundle)
            found += 1
    return found
