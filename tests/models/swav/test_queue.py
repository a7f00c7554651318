"""Queues are in the order of batches, whoever held their parts."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from worlds import run_workers

from models.objective import Batch, Reduce
from models.swav.queue import Queue, Waiting, empty_queue, push_all


def numbered(first: int, rows: int) -> Tensor:
    """Two views of rows that hold their number; the second view's are negative."""
    row_TD = torch.arange(first, first + rows).float()[:, None].repeat(1, 3)
    return torch.stack([row_TD, -row_TD])


def batch(begin: int, rows: int, total: int) -> Batch:
    return Batch((), torch.arange(rows), begin, total)


def numbers(queue: Queue) -> list[int]:
    assert torch.equal(queue.row_AMD[0], -queue.row_AMD[1])
    return [int(row) for row in queue.row_AMD[0, :, 0]]


def test_the_newest_batch_comes_first_and_the_oldest_rows_go() -> None:
    queue = empty_queue(2, 6, 3)
    assert queue.share == 0
    queue = queue.pushed(numbered(1, 3))
    assert (numbers(queue), queue.share) == ([1, 2, 3, 0, 0, 0], 0.5)
    queue = queue.pushed(numbered(4, 2))
    assert (numbers(queue), queue.share) == ([4, 5, 1, 2, 3, 0], 5 / 6)
    queue = queue.pushed(numbered(6, 3))
    assert (numbers(queue), queue.share) == ([6, 7, 8, 4, 5, 1], 1)
    assert numbers(Queue.from_tensors(queue.tensors())) == numbers(queue)


def test_several_batches_at_once_are_pushed_in_their_order() -> None:
    def work(rank: int, reduce: Reduce) -> Queue:
        own = [(0, 2), (2, 3)][rank]  # first row and rows of this worker, of batches of 5
        first, second = numbered(1, 5), numbered(6, 5)
        parts = [Waiting(each[:, own[0] : sum(own)], own[0], 5) for each in (first, second)]
        return push_all(empty_queue(2, 12, 3), parts, reduce)

    for queue in run_workers(2, work):
        assert (numbers(queue), queue.filled) == ([6, 7, 8, 9, 10, 1, 2, 3, 4, 5, 0, 0], 10)


def test_parts_of_any_sizes_take_every_row_once() -> None:
    queue = empty_queue(2, 12, 3).pushed(numbered(1, 12))
    for bounds in ([0, 7], [0, 1, 7], [0, 2, 3, 7], list(range(8))):
        taken = [queue.part(batch(begin, end - begin, 7)) for begin, end in itertools.pairwise(bounds)]
        assert torch.equal(torch.cat(taken, dim=1), queue.row_AMD)
        assert all(part.shape[1] for part in taken)
