import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.extract.ahead import map_ahead, one_ahead, single_threads


@given(items=st.lists(st.integers(), max_size=30), window=st.integers(0, 8))
def test_map_ahead_is_map(items: list[int], window: int) -> None:
    with ThreadPoolExecutor(3) as threads:
        assert list(map_ahead(lambda i: i * 2, items, threads, window)) == [i * 2 for i in items]


def test_map_ahead_reads_no_further_than_its_window() -> None:
    read: list[int] = []

    def items() -> Iterator[int]:
        for i in range(100):
            read.append(i)
            yield i

    with ThreadPoolExecutor(2) as threads:
        ahead = map_ahead(str, items(), threads, window=5)
        assert [next(ahead), next(ahead)] == ["0", "1"]
    assert len(read) == 7  # the two that were asked for, and five at work


def test_map_ahead_holds_no_more_than_its_window_weighs_and_an_item_that_is_heavier_alone() -> None:
    held: list[int] = []

    def items() -> Iterator[int]:
        for weight in (3, 3, 3, 50, 3):
            held.append(weight)
            yield weight

    with ThreadPoolExecutor(2) as threads:
        ahead = map_ahead(lambda weight: weight, items(), threads, window=6, weight=lambda weight: weight)
        assert [next(ahead), held] == [3, [3, 3, 3]]
        assert [next(ahead), held] == [3, [3, 3, 3, 50]]
        assert [next(ahead), next(ahead), held] == [3, 50, [3, 3, 3, 50]]
        assert list(ahead) == [3]


def test_one_ahead_makes_the_next_item_while_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for i in range(3):
            made[i].set()
            yield i

    with ThreadPoolExecutor(1) as thread:
        for i in one_ahead(items(), thread):
            assert i == 2 or made[i + 1].wait(10)
            assert not made[3].is_set()


def test_one_ahead_raises_what_its_items_raise_and_leaves_no_thread_waiting() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with ThreadPoolExecutor(1) as thread:
        ahead = one_ahead(items(), thread)
        assert next(ahead) == 1
        with pytest.raises(OSError, match="gone"):
            next(ahead)


def test_torch_uses_one_thread_in_each_decoding_thread_and_the_caller_keeps_its_own(torch_threads: None) -> None:
    threads = single_threads(2)
    torch.set_num_threads(2)
    together = threading.Barrier(2)

    def count() -> int:
        together.wait(10)
        return torch.get_num_threads()

    assert [future.result() for future in [threads.submit(count) for _ in range(2)]] == [1, 1]
    assert torch.get_num_threads() == 2
    threads.shutdown()
