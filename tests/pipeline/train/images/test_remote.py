"""Views that actors make: the same batches, whoever dies."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
from image_shards import LARGE, LOOP, SMALL, Worker

from models.errors import ShoalError
from pipeline.train.images.feed import ImageSource

pytestmark = pytest.mark.slow
SourceOf = Callable[..., ImageSource]


def rows_and_views(batches: object) -> list[list[object]]:
    return [
        [batch.begin, batch.total, batch.row_B.tolist(), *(view.tolist() for view in batch.views)]
        for batch in batches  # type: ignore[attr-defined]
    ]


def test_remote_batches_are_the_local_ones(ray_session: None, source_of: SourceOf) -> None:
    for views in (SMALL, LARGE):
        local = source_of(views).open(LOOP, 16, Worker(0, 1), None)
        remote = source_of(views, feed="remote").open(LOOP, 16, Worker(0, 1), None)
        for epoch, start in ((0, 0), (1, 0), (1, 2)):
            assert rows_and_views(remote.draw(epoch, start)) == rows_and_views(local.draw(epoch, start))
        del remote


def test_a_producer_that_dies_is_replaced_and_one_that_is_left_ends(ray_session: None, source_of: SourceOf) -> None:
    local = source_of().open(LOOP, 16, Worker(), None)
    remote = source_of(feed="remote", producers=1, ahead=1).open(LOOP, 16, Worker(), None)
    batches = remote.draw(0, 0)
    begun = [next(batches)]
    ray.kill(remote._parts._actors[0])
    assert rows_and_views([*begun, *batches]) == rows_and_views(local.draw(0, 0))
    left = remote.draw(1, 0)
    next(left)
    left.close()
    assert remote._parts._actors == []
    assert rows_and_views(remote.draw(1, 3)) == rows_and_views(local.draw(1, 3))


def test_what_producers_find_wrong_is_told(ray_session: None, source_of: SourceOf, shards: list[str]) -> None:
    source = source_of(feed="remote")
    Path(shards[1]).unlink()
    with pytest.raises(ShoalError, match=r"^\S+b\.tar is not as it was indexed: it is gone"):
        list(source.open(LOOP, 16, Worker(), None).draw(0, 0))


def test_a_cluster_without_room_is_told(ray_session: None, source_of: SourceOf) -> None:
    with pytest.raises(ShoalError, match=r"need 6 CPUs but the cluster has 2; set train.images.producers lower"):
        source_of(feed="remote").open(LOOP, 16, Worker(0, 2), None)


def test_busy_cpus_are_told_and_nobody_waits_for_them_on_the_way_out(
    ray_session: None, source_of: SourceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.train.images.remote._PATIENCE_S", 0.0)

    @ray.remote(num_cpus=2)
    class Other:
        def begun(self) -> None: ...

    other = Other.remote()
    ray.get(other.begun.remote())
    remote = source_of(feed="remote", producers=1).open(LOOP, 16, Worker(), None)
    batches = remote.draw(0, 0)
    with ThreadPoolExecutor(1) as thread, pytest.warns(UserWarning, match="1 of 1 producers of views wait for 1 free"):
        begun = thread.submit(next, batches)
        with pytest.raises(TimeoutError):
            begun.result(timeout=4)
        remote._parts.stop()  # as closing does first
        with pytest.raises(InterruptedError):
            begun.result(timeout=60)
    ray.kill(other)
    monkeypatch.undo()
    local = source_of().open(LOOP, 16, Worker(), None)
    assert rows_and_views(remote.draw(0, 0)) == rows_and_views(local.draw(0, 0))
