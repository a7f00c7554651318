"""Workers that are threads: each has a part, and sums wait for all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from models.objective import Reduce

R = TypeVar("R")
PATIENCE_S = 60


class _Thread:
    """One worker's `Reduce`. Its calls must be the same, tensor by tensor, as those of the others."""

    def __init__(self, rank: int, given: list[tuple[str, tuple[Tensor, ...]]], barrier: threading.Barrier) -> None:
        self._rank, self._given, self._barrier = rank, given, barrier

    def sum(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._join("sum", tensors)

    def max(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._join("max", tensors)

    def _join(self, name: str, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self._given[self._rank] = name, tuple(tensor.detach().clone() for tensor in tensors)
        self._barrier.wait(PATIENCE_S)
        everyone = list(self._given)
        self._barrier.wait(PATIENCE_S)  # nobody gives anew before all have read
        calls = {(called, *((each.shape, each.dtype) for each in given)) for called, given in everyone}
        assert len(calls) == 1, f"workers call differently: {calls}"
        stacked = [torch.stack(each) for each in zip(*(given for _, given in everyone), strict=True)]
        return tuple(each.sum(dim=0) if name == "sum" else each.amax(dim=0) for each in stacked)


def run_workers(workers: int, work: Callable[[int, Reduce], R]) -> list[R]:
    """What `work(rank, reduce)` returns on each worker. The first error of any of them is raised."""
    given: list[tuple[str, tuple[Tensor, ...]]] = [("", ())] * workers
    barrier = threading.Barrier(workers)

    def one(rank: int) -> R:
        try:
            return work(rank, _Thread(rank, given, barrier))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(one, rank) for rank in range(workers)]
        errors = [error for future in futures if (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda each: isinstance(each, threading.BrokenBarrierError)):
        raise error
    return [future.result() for future in futures]
